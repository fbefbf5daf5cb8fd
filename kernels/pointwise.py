"""The one launch template that every elementwise op shares: each byte in is read once, each byte out written once."""

import struct
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .intrinsics import fma, round_to, widen
from .launch import launch as launch_kernel

# Elements that one program handles, by the bytes of an element. With 4 warps of 32 threads, two 16-byte accesses a
# thread and operand for 16-bit dtypes and four for wider ones. Not tuned on a GPU yet (python -m bench tune). Changed
# to 8, 16 and 32 elements a thread, python -m bench codegen counts 9.4, 9.1 and 11.0 sm_90 instructions an element for
# bfloat16 forward, 25.3, 24.9 and 25.0 for float32.
BLOCK_SIZES = {2: 2048, 4: 2048, 8: 1024}


def max_registers(itemsize: int, n_inputs: int) -> int | None:
    """Registers that ptxas may give a thread; None: as many as it likes.

    Left alone it saves some in float32 and loads late for it: σ's four loads want 55 registers to be under way before
    the first is waited for, and it would make do with 34. The loads of three inputs want more than 56, and get them.
    """
    return 56 if itemsize == 4 and n_inputs < 3 else None


@triton.jit
def apply(formula: tl.constexpr, args, constants: tl.constexpr):
    """The results of a formula, which has a second parameter where there are constants."""
    if len(constants) == 0:
        return formula(args)
    else:
        return formula(args, constants)


@triton.jit
def scaled(x, scale):
    """x times ``scale`` (:func:`factor`), rounded once to the precision of x (of 16 bits: float32)."""
    scale = scale.to(tl.int64)
    x = widen(x)
    if x.dtype == tl.float64:
        return x * scale.to(tl.float64, bitcast=True)
    else:
        high = (scale >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        return fma(x, high, x * scale.to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit
def store_sum(pointer, total, scale, mask=None):
    """Store a sum, times ``scale`` where that is not None."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    if scale is not None:
        total = total.to(tl.float64) * scale.to(tl.int64).to(tl.float64, bitcast=True)
    if total.dtype == tl.float64 and dtype != tl.float64:
        total = total.to(tl.float32)
    tl.store(pointer, round_to(total, dtype), mask=mask)


@triton.jit
def load_scalars(scalars, scale, SUMMED: tl.constexpr):
    """The operands of one element; the first of them times ``scale``, unless that is for the sum."""
    loaded = tl.tuple([tl.load(pointer) for pointer in scalars])
    if scale is None or SUMMED:
        return loaded
    else:
        return tl.tuple([scaled(loaded[0], scale)]) + loaded[1:]


@triton.jit
def _block(uniform, inputs, outputs, start, lane, mask, formula: tl.constexpr, constants: tl.constexpr):
    """Write the elements start + lane, where ``mask`` allows, and return all results."""
    loaded = tl.tuple([tl.load(pointer + start + lane, mask=mask) for pointer in inputs])
    results = apply(formula, uniform + loaded, constants)
    for i in tl.static_range(len(outputs)):
        tl.store(outputs[i] + start + lane, round_to(results[i], outputs[i].dtype.element_ty), mask=mask)
    return results


@triton.jit(do_not_specialize=["n_elements", "zero", "scale"])
def pointwise_kernel(
    scalars,
    inputs,
    outputs,
    sums,
    n_elements: tl.int64,
    zero,
    scale,
    formula: tl.constexpr,
    constants: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """outputs[i] = formula(*scalars, *inputs)[i], element by element, in the order in which they lie in memory.

    Where ``sums`` is given, the result after those of the outputs is added up, each block by itself, in one order.
    ``scale`` multiplies that sum, being the bits of a float64; where there is none, the first scalar, as :func:`factor`
    says. It may be None.

    A full block runs without a mask. One that the compiler cannot prove uniform over 16 bytes would split every access
    of the last block into single elements, and their addresses and predicates would take so many registers (56 for σ in
    16 bits, which has 32 by python -m bench codegen) that half as many blocks of either kind fit on a multiprocessor.
    So it is cut at a multiple of 16, which leaves its accesses wide, and the fewer than 16 elements after that come by
    themselves. Offsets are 64 bits wide.

    ``zero`` is None when every operand is aligned to 16 bytes, else 0, which hides from the compiler that some are. If
    it knew, it would give each thread 8 neighbouring elements for their sake; loads of the others would stride by 16
    bytes and fetch every sector 8 times. With no alignment known, neighbouring threads take neighbouring elements:
    narrow but coalesced accesses. By the data sheet an H200's load/store units do 32 lanes · 132 SMs · 1.98 GHz · 2
    bytes = 16.7 TB/s of them, its memory 4.8 TB/s.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    if zero is not None:
        start += zero
    lane = tl.arange(0, BLOCK_SIZE)
    uniform = load_scalars(scalars, scale, sums is not None)
    # Each branch has names of its own: what both define, the compiler would carry out of them.
    if start + BLOCK_SIZE <= n_elements:
        of_full = _block(uniform, inputs, outputs, start, lane, None, formula, constants)
        if sums is not None:
            store_sum(sums + tl.program_id(0), tl.sum(of_full[len(outputs)], axis=0), scale)
    else:
        whole = n_elements // 16 * 16
        of_cut = _block(uniform, inputs, outputs, start, lane, start + lane < whole, formula, constants)
        rest = tl.arange(0, 16)
        of_rest = _block(uniform, inputs, outputs, whole, rest, whole + rest < n_elements, formula, constants)
        if sums is not None:
            total = tl.sum(tl.where(start + lane < whole, of_cut[len(outputs)], 0.0), axis=0)
            total += tl.sum(tl.where(whole + rest < n_elements, of_rest[len(outputs)], 0.0), axis=0)
            store_sum(sums + tl.program_id(0), total, scale)


_empty_like, _CONTIGUOUS = torch.empty_like, torch.contiguous_format  # looking them up takes a tenth of a call


def empty_output(x: Tensor) -> Tensor:
    """An uninitialized result for ``x``, with the strides that PyTorch's own elementwise operators give it.

    They keep the memory order of ``x``, but not the strides it happens to have in dimensions of size 1.
    """
    if x.is_contiguous():
        return _empty_like(x, memory_format=_CONTIGUOUS)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x, memory_format=torch.channels_last)
    return torch.empty_like(x)


dtype_of: Callable[[Tensor], torch.dtype] = attrgetter("dtype")  # called by map, faster than a loop


@lru_cache(maxsize=1024)
def bits_of(factor: float) -> int:
    """A float64 as the integer that a kernel takes for its ``scale``; Triton's own float arguments have 32 bits."""
    (bits,) = struct.unpack("q", struct.pack("d", factor))
    return int(bits)


@lru_cache(maxsize=1024)
def factor(value: float, dtype: torch.dtype) -> int:
    """A factor of scalars of ``dtype``: the bits of a float64, or else of two float32 whose sum it is."""
    if dtype == torch.float64:
        return bits_of(value)
    (high,) = struct.unpack("f", struct.pack("f", value))
    return int(struct.unpack("q", struct.pack("ff", value - high, high))[0])


def alignments(tensors: tuple[Tensor, ...]) -> tuple[bool, ...] | None:
    """Which addresses are multiples of 16; None, most often, if all are."""
    bits = 0
    for x in tensors:
        bits |= x.data_ptr()
    return tuple([x.data_ptr() % 16 == 0 for x in tensors]) if bits & 15 else None


def block_size(x: Tensor) -> int:
    """How many elements of ``x``, the first output or else the first input, one program handles."""
    return BLOCK_SIZES[x.element_size()]


def launch(
    formula: Any,
    scalars: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    constants: tuple[Any, ...] = (),
    sums: Tensor | None = None,
    scale: int | None = None,
) -> None:
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, and to ``sums`` the sum of one more result, block by block.

    ``inputs`` and ``outputs`` are dense tensors of one shape and one memory layout on one device; each of ``scalars``
    holds one element. A formula is compiled for each set of its ``constants``. Nothing is checked here: the callers in
    this package do.
    """
    first = outputs[0] if outputs else inputs[0]
    n_elements = inputs[0].numel()
    if n_elements == 0:
        return
    tensors = (*scalars, *inputs, *outputs) if sums is None else (*scalars, *inputs, *outputs, sums)
    aligned = alignments(tensors)
    zero = None if aligned is None else 0
    size = BLOCK_SIZES[first.element_size()]
    args = (scalars, inputs, outputs, sums, n_elements, zero, scale, formula, constants, size)
    counts = (len(scalars), len(outputs), sums is None, scale is None)
    key = (id(formula), first.get_device(), constants, counts, aligned, *map(dtype_of, tensors))
    programs = (n_elements - 1) // size + 1
    launch_kernel(pointwise_kernel, programs, args, key, max_registers(first.element_size(), len(inputs)))
