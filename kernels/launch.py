"""Launching a kernel: compiled once for each class of operands, and found again by one look-up."""

from contextlib import nullcontext
from typing import Any

import torch
from triton import knobs
from triton.runtime import driver

NUM_WARPS = 4
# Said in every compilation, since Triton's default is the user's to change. What a formula fuses it spells as ``fma``.
FP_FUSION = False

INTERPRETED: bool = knobs.runtime.interpret

Key = tuple[Any, ...]

# Classes of operands are few: formulas, dtypes, alignments, layouts. A program that goes on making new ones (constants
# that change, say) must not fill the memory: at this many the table is emptied, and Triton finds its kernels again.
LIMIT = 4096
_compiled: dict[Key, "Compiled"] = {}


class Compiled:
    """A compiled kernel on one device, as its driver starts it."""

    __slots__ = ("current_device", "function", "metadata", "run", "stream_of")

    def __init__(self, kernel: Any) -> None:
        self.run, self.function, self.metadata = kernel.run, kernel.function, kernel.packed_metadata
        self.current_device = driver.active.get_current_device
        self.stream_of = driver.active.get_current_stream

    def start(self, device: int, programs: int, args: tuple[Any, ...]) -> None:
        """Launch on the current stream of ``device``, which is the current device; there are no hooks."""
        self.run(programs, 1, 1, self.stream_of(device), self.function, self.metadata, None, None, None, *args)


def launch(kernel: Any, programs: int, args: tuple[Any, ...], key: Key, max_registers: int | None = None) -> None:
    """``kernel[(programs,)](*args)``: the first call for a ``key`` compiles, the others find the compiled kernel by it.

    ``key`` begins with what names the kernel, and the device. It holds all that Triton specializes the kernel on: the
    constants, and of the other arguments the dtype, whether an address is a multiple of 16, and the class of an integer
    (:func:`kind`). ``max_registers``, what a thread may have (None: as many as the compiler likes), follows from it.
    """
    if INTERPRETED:
        kernel[(programs, 1, 1)](*args)
        return
    device: int = key[1]
    compiled = _compiled.get(key)
    hooks = knobs.runtime
    if compiled is None or hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler's
        _launch_by_triton(kernel, device, programs, args, key, max_registers)
    elif device == compiled.current_device():
        compiled.start(device, programs, args)
    else:
        with torch.cuda.device(device):
            compiled.start(device, programs, args)


def _launch_by_triton(
    kernel: Any, device: int, programs: int, args: tuple[Any, ...], key: Key, max_registers: int | None
) -> None:
    """Bind and, where Triton does not have it yet, compile; remember what came of it."""
    with nullcontext() if device == driver.active.get_current_device() else torch.cuda.device(device):
        found = kernel[(programs, 1, 1)](*args, num_warps=NUM_WARPS, maxnreg=max_registers, enable_fp_fusion=FP_FUSION)
    if len(_compiled) >= LIMIT:
        _compiled.clear()
    _compiled[key] = Compiled(found)


def kind(value: int | None) -> tuple[bool, bool, bool] | None:
    """What Triton specializes an integer argument on: whether it is 1, a multiple of 16, of 32 bits."""
    return None if value is None else (value == 1, value % 16 == 0, -(2**31) <= value < 2**31)
