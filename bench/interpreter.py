"""Where a command runs the kernels: compiled on CUDA, and else in Triton's interpreter."""

import argparse
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from bench.environment import without_out
from bench.options import UsageError
from sigmoid_op import dispatch


def exit_code(args: argparse.Namespace, device: torch.device, folder: Path) -> int | None:
    """None if the kernels can run on ``device`` in this process; else the command's exit code.

    On a CPU the command is run again with TRITON_INTERPRET=1, which Triton reads once, when it is imported.
    """
    if not dispatch.HAS_TRITON:
        raise UsageError("Triton is not installed (pip install triton)")
    if device.type == "cuda" and dispatch.INTERPRETED:
        raise UsageError("TRITON_INTERPRET is set: unset it for CUDA")
    if device.type == "cuda" or dispatch.INTERPRETED:
        return None
    print("On a CPU in Triton's interpreter: the command again, with TRITON_INTERPRET=1.", flush=True)
    command = [sys.executable, "-m", "bench", *without_out(args.arguments), "--out", str(folder)]
    with subprocess.Popen(command, env={**os.environ, "TRITON_INTERPRET": "1"}) as process:
        while process.poll() is None:
            with suppress(KeyboardInterrupt):  # the other process gets it, too, and tells what it kept
                process.wait()
    return process.returncode
