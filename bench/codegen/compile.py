"""Compile a kernel of the :mod:`.catalogue` for a named GPU without having one; :mod:`.machine_code` reads the result.

Needs nothing but Triton's wheel, which brings the assemblers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from bench.codegen.catalogue import Kernel, TiledKernel
from sigmoid_op.kernels.launch import FP_FUSION, INTERPRETED, NUM_WARPS

TARGETS: dict[str, GPUTarget] = {f"sm_{cc}": GPUTarget("cuda", cc, 32) for cc in (80, 89, 90, 100, 120)}
TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)


class _CompileOnlyDriver:
    """Names a GPU to the compiler. The target stands for the device, too: Triton keeps compiled kernels by device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[None]:
    """Make ``target`` the GPU that ``JITFunction.warmup`` compiles for and that ``target_info`` reports.

    The formulas ask ``target_info.is_cuda()``, which asks the active driver. With no driver they would leave out their
    PTX, and the kernel without it would be cached on disk under the key of the one with it.

    Raises:
        RuntimeError: under TRITON_INTERPRET, where nothing is compiled.
    """
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it and start anew")
    try:
        previous = driver.active
    except RuntimeError:  # no GPU: None lets Triton look for one again
        previous = None
    driver.set_active(_CompileOnlyDriver(target))
    try:
        yield
    finally:
        driver.set_active(previous)


def compile_kernel(kernel: Kernel | TiledKernel, dtype: torch.dtype, target: GPUTarget) -> CompiledKernel:
    """What a launcher would compile on ``target`` for operands of ``dtype``."""
    options: dict[str, Any] = {"num_warps": NUM_WARPS, "enable_fp_fusion": FP_FUSION}
    if target.backend == "cuda":
        options["maxnreg"] = kernel.max_registers(dtype)
    with compiling_for(target):
        return kernel.template.warmup(*kernel.arguments(dtype), grid=(1, 1, 1), **options)


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
