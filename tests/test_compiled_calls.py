"""What the interpreter takes, Triton's compiler takes, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sigmoid_op.kernels.catalogue import FAMILY, SIGMOID


def test_every_call_compiles() -> None:
    """The kernel of each call in the tests' tables, whatever its shapes and layouts; every formula is among them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compile_calls"]
    root = Path(__file__).parents[1]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert set(json.loads(process.stdout)) == {kernel.formula.__name__ for kernel in (*SIGMOID, *FAMILY)}
