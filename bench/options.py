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
MOST_ELEMENTS = 2**62  # as many bytes as PyTorch can count


class UsageError(Exception):
    """A command that cannot run as it was asked to: one line, and exit code 2."""


def add_device_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, help="cuda or cpu (default: cuda where there is one)")
    add_out(parser)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder for the results (default: bench/out/<time>-<device>)")


def choose_device(asked: torch.device | None) -> torch.device:
    return asked or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def elements(text: str) -> int:
    """A positive number of elements, written 1000 or 2^20."""
    match = re.fullmatch(r"(\d+)(?:\^(\d{1,2}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of elements such as 1000 or 2^20")
    count: int = int(match[1]) ** int(match[2] or 1)
    if not 1 <= count <= MOST_ELEMENTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and 2^62")
    return count


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of minutes")
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


def _device(text: str) -> torch.device:
    if text not in ("cuda", "cpu"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cuda nor cpu")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("PyTorch finds no CUDA device here")
    return torch.device(text)
