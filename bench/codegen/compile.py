"""Compile a kernel of the :mod:`.catalogue` for a named GPU without having one; :mod:`.machine_code` reads the result.

Needs nothing but Triton's wheel, which brings the assemblers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from bench.codegen.catalogue import Kernel, Launch
from sigmoid_op.kernels.launch import FP_FUSION, NUM_WARPS

TARGETS: dict[str, GPUTarget] = {f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 89, 90, 100, 120)}
TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[None]:
    """Make ``target`` the GPU that ``JITFunction.warmup`` compiles for and that ``target_info`` reports.

    The formulas ask ``target_info.is_cuda()``, which asks the active driver. With no driver they would leave out their
    PTX, and the kernel without it would be cached on disk under the key of the one with it.
    """
    try:
        previous = driver.active
    except RuntimeError:  # no GPU: None lets Triton look for one again
        previous = None
    # The target stands for the device, too: Triton keeps compiled kernels by device.
    get = {"get_current_target": lambda: target, "get_current_device": lambda: target}
    driver.set_active(SimpleNamespace(**get, get_current_stream=lambda device: 0))
    try:
        yield
    finally:
        driver.set_active(previous)


def compile_launch(launch: Launch, target: GPUTarget) -> CompiledKernel:
    """What ``launch.launch`` would compile on ``target``."""
    options: dict[str, Any] = {"num_warps": NUM_WARPS, "enable_fp_fusion": FP_FUSION}
    if target.backend == "cuda":
        options["maxnreg"] = launch.max_registers
    with compiling_for(target):
        return launch.kernel.warmup(*launch.args, grid=(1, 1, 1), **options)


def compile_kernel(kernel: Kernel, dtype: torch.dtype, target: GPUTarget) -> CompiledKernel:
    """For operands of ``dtype``."""
    return compile_launch(kernel.launch(dtype), target)


def narrow_offsets(compiled: CompiledKernel) -> set[str]:
    """The 32-bit integer arithmetic that addresses depend on, in Triton's IR: past 2^31 elements it would overflow."""
    definitions: dict[str, tuple[str, list[str]]] = {}  # a name of one branch is defined anew in the other
    narrow: set[str] = set()
    for line in compiled.asm["ttir"].splitlines():
        if not (match := re.match(r"\s*(%\w+) = (.*?)(?: loc\(.*)?$", line)):
            continue
        name, operation = match.groups()
        definitions[name] = (operation, re.findall(r"%\w+", operation))
        waiting = [name] if operation.startswith("tt.addptr") else []
        while waiting:
            operation, operands = definitions.get(waiting.pop(), ("", []))
            waiting += operands
            if re.match(r"arith\.(addi|subi|muli|shli|ori) .*i32>?$", operation):
                narrow.add(operation)
    return narrow
