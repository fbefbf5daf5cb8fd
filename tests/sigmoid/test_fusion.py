"""Results do not depend on whether Triton fuses multiplications and additions by default, which a user can set."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from sigmoid_op.kernels import pointwise
from sigmoid_op.kernels import sigmoid as formulas
from sigmoid_op.kernels.launch import FP_FUSION
from tests.fake_kernel import FakeKernel

# Compiles kernels of sm_90 and prints a hash of each one's PTX.
PROGRAM = """
import hashlib, torch
from bench.codegen.catalogue import FAMILY, SIGMOID
from bench.codegen.compile import TARGETS, compile_kernel
for i, kernel in enumerate(SIGMOID + FAMILY[:9]):
    ptx = compile_kernel(kernel, (torch.float64, torch.float32)[i % 2], TARGETS["sm_90"]).asm["ptx"]
    print(kernel.name, hashlib.sha256(ptx.encode()).hexdigest())
"""


def test_every_launch_says_whether_to_fuse(jit: FakeKernel) -> None:
    """The compiler is told, so that its default does not count."""
    x = torch.zeros(64)
    pointwise.launch(formulas.sigmoid, (), (x,), (torch.empty_like(x),))
    assert jit.options["enable_fp_fusion"] is FP_FUSION


def test_the_default_changes_no_bit() -> None:
    """Both defaults compile to the same code, and neither warns that it will change, as Triton 3.9 does."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            cwd=Path(__file__).parents[2],
            env=inherited | {"TRITON_ALWAYS_COMPILE": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in ({}, {"TRITON_DEFAULT_FP_FUSION": "0"})
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[0][0] == printed[1][0]
    assert len(printed[0][0].splitlines()) == 16
    assert not any("fusion" in errors for _, errors in printed)
