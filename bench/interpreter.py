"""Where a command runs the kernels: compiled on CUDA, and else in Triton's interpreter."""

import argparse
import os
import subprocess
import sys

import torch

from sigmoid_op import dispatch


def exit_code(args: argparse.Namespace, device: torch.device) -> int | None:
    """None if the kernels can run on ``device`` in this process; else the command's exit code.

    On a CPU the command is run again with TRITON_INTERPRET=1, which Triton reads once, when it is imported.
    """
    if not dispatch.HAS_TRITON:
        error = "Triton is not installed (pip install triton)"
    elif device.type == "cuda" and dispatch.INTERPRETED:
        error = "TRITON_INTERPRET is set: unset it for CUDA"
    elif device.type == "cpu" and not dispatch.INTERPRETED:
        print("On a CPU in Triton's interpreter: the command again, with TRITON_INTERPRET=1.", flush=True)
        command = [sys.executable, "-m", "bench", *args.arguments]
        return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode
    else:
        return None
    print(f"python -m bench {args.arguments[0]}: error: {error}", file=sys.stderr)
    return 2
