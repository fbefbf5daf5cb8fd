"""Launching a kernel without Triton's own argument binding, which it would do anew in each call."""

from contextlib import nullcontext
from typing import Any

import torch
from triton import knobs

NUM_WARPS = 4
# Said in every compilation, since Triton's default is the user's to change. What a formula fuses it spells as ``fma``.
FP_FUSION = False

INTERPRETED: bool = knobs.runtime.interpret

# Tiled kernels are kept by layout, so that varying lengths would fill the table: at this many it is emptied. Triton
# keeps the compiled kernels; only its binding of one call's arguments is repeated.
LIMIT = 4096
_prepared: dict[tuple[Any, ...], Any] = {}


def launch_prepared(
    kernel: Any,
    grid: tuple[int, int, int],
    args: tuple[Any, ...],
    key: tuple[Any, ...],
    max_registers: int | None = None,
) -> None:
    """``kernel[grid](*args)``: the first call for a ``key`` compiles, the others find the compiled kernel by it.

    ``key`` names the kernel and the device, and holds all that Triton specializes the kernel on: which arguments are
    constants, and of the others the dtype, whether an address is a multiple of 16, and the value of an integer; and
    ``max_registers``, what a thread may have (None: as many as the compiler likes), follows from it.
    """
    if INTERPRETED:
        kernel[grid](*args)
        return
    device = key[1]
    with nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        prepared = _prepared.get(key)
        if prepared is None:
            if len(_prepared) >= LIMIT:
                _prepared.clear()
            _prepared[key] = kernel[grid](*args, num_warps=NUM_WARPS, maxnreg=max_registers, enable_fp_fusion=FP_FUSION)
        else:
            prepared[grid](*args)
