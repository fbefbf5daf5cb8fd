"""Options that several commands share, and the folder that their files go to."""

import argparse
import math
import re
import tempfile
from datetime import datetime
from pathlib import Path

import torch

from bench.environment import device_name

DEFAULT_FOLDER = Path(__file__).with_name("out")
CPU = torch.device("cpu")


class UsageError(Exception):
    """A command that cannot run as it was asked to: one line, and exit code 2."""


def add_device_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    add_out(parser)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/out/<time>-<device>)")


def choose_device(asked: str | None) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here")
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def positive(text: str) -> int:
    """A whole number from 1 to 2^62, as many bytes as PyTorch can count, written 1000 or 2^20."""
    number = 2 ** min(int(text[2:]), 63) if text.startswith("2^") else int(text)
    if not 1 <= number <= 2**62:
        raise ValueError(text)
    return number


def minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def device_slug(device: torch.device) -> str:
    """The device's name for a path: nvidia-h200, or cpu."""
    return "cpu" if device.type == "cpu" else re.sub(r"\W+", "-", device_name(device)).lower()


def output_folder(asked: Path | None, device: torch.device = CPU) -> Path:
    """The folder for a run's files, made and tried before anything is computed."""
    folder = asked or DEFAULT_FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}-{device_slug(device)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from None
