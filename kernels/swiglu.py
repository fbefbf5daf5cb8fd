"""silu(gate) · up, with a slope, a limit and an offset: the formulas, and their launchers, as in :mod:`.gates`."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import write, write_gradient
from .gates import packed_gradient, packed_result, result
from .intrinsics import round_to, widen
from .pointwise import empty_output
from .silu import LARGEST_CONSTANT, scaled_sides, scaled_sigmoid, silu_slope

# α, the limit or None, up_offset, and whether the gradient is passed on at the limit itself.
Constants = tuple[float, float | None, float, bool]
PLAIN: Constants = (1.0, None, 0.0, True)

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
PAIRS = {2: torch.int32, 4: torch.int64}  # by the bytes of an element


@triton.jit
def _at_most(x, limit: tl.constexpr):
    """min(x, limit), NaN of NaN"""
    return tl.minimum(x, tl.full(x.shape, limit, x.dtype), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _clamped(gate, up, constants: tl.constexpr):
    """g' = min(gate, limit) and u' + up_offset, u' being ``up`` between -limit and limit; no limit is -1"""
    limit: tl.constexpr = constants[1]
    up_offset: tl.constexpr = constants[2]
    if limit >= 0.0:
        gate = _at_most(gate, limit)
        up = tl.maximum(_at_most(up, limit), tl.full(up.shape, -limit, up.dtype), propagate_nan=tl.PropagateNan.ALL)
    if up_offset != 0.0:
        up = up + up_offset
    return gate, up


@triton.jit
def _swiglu(gate, up, constants: tl.constexpr, dtype: tl.constexpr):
    gate, up = _clamped(gate, up, constants)
    return gate * scaled_sigmoid(gate, constants[0], dtype) * up


@triton.jit
def _swiglu_backward(grad_out, gate, up, constants: tl.constexpr, dtype: tl.constexpr):
    alpha: tl.constexpr = constants[0]
    limit: tl.constexpr = constants[1]
    x, factor = _clamped(gate, up, constants)
    s, s_minus = scaled_sides(x, alpha, dtype)
    grad_gate = grad_out * factor * silu_slope(x, s, s_minus, alpha)
    grad_up = grad_out * (x * s)
    if limit >= 0.0:  # 0 for NaN, too
        bound = tl.full(gate.shape, limit, gate.dtype)  # the interpreter compares with a float32 otherwise
        at_limit: tl.constexpr = constants[3]
        if at_limit:
            grad_gate = tl.where(gate <= bound, grad_gate, 0.0)
            grad_up = tl.where(tl.abs(up) <= bound, grad_up, 0.0)
        else:
            grad_gate = tl.where(gate < bound, grad_gate, 0.0)
            grad_up = tl.where(tl.abs(up) < bound, grad_up, 0.0)
    return grad_gate, grad_up


@triton.jit
def swiglu(args, constants: tl.constexpr):
    """out = g' · σ(α·g') · (u' + up_offset); ``constants`` are α, the limit (-1: none), up_offset, at_limit"""
    gate, up = args
    return (_swiglu(widen(gate), widen(up), constants, gate.dtype),)


@triton.jit
def swiglu_backward(args, constants: tl.constexpr):
    """grad_gate = grad_out · (u' + up_offset) · (g'·σ(α·g'))' and grad_up = grad_out · g'·σ(α·g'); 0 where clamped"""
    grad_out, gate, up = args
    return _swiglu_backward(widen(grad_out), widen(gate), widen(up), constants, gate.dtype)


@triton.jit
def _first_and_second(pair, dtype: tl.constexpr):
    """Two neighbours in memory, loaded as one integer of twice their width."""
    bits: tl.constexpr = dtype.primitive_bitwidth
    integer: tl.constexpr = tl.int16 if bits == 16 else tl.int32
    return pair.to(integer).to(dtype, bitcast=True), (pair >> bits).to(integer).to(dtype, bitcast=True)


@triton.jit
def _pair(first, second, dtype: tl.constexpr):
    """The integer that stands for two neighbours."""
    bits: tl.constexpr = dtype.primitive_bitwidth
    integer: tl.constexpr = tl.int16 if bits == 16 else tl.int32
    wide: tl.constexpr = tl.int32 if bits == 16 else tl.int64
    low = round_to(first, dtype).to(integer, bitcast=True).to(wide) & (2**bits - 1)
    return low | (round_to(second, dtype).to(integer, bitcast=True).to(wide) << bits)


@triton.jit
def interleaved_swiglu(args, constants: tl.constexpr):
    """swiglu of a gate and an up that are neighbours in memory; the dtype of both is the last of ``constants``"""
    dtype: tl.constexpr = constants[4]
    gate, up = _first_and_second(args[0], dtype)
    return (_swiglu(widen(gate), widen(up), constants, dtype),)


@triton.jit
def interleaved_swiglu_backward(args, constants: tl.constexpr):
    """Both gradients, neighbours in memory as gate and up are"""
    dtype: tl.constexpr = constants[4]
    grad_out, pair = args
    gate, up = _first_and_second(pair, dtype)
    grad_gate, grad_up = _swiglu_backward(widen(grad_out), widen(gate), widen(up), constants, dtype)
    return (_pair(grad_gate, grad_up, dtype),)


def launch_swiglu(gate: Tensor, up: Tensor, constants: Constants = PLAIN) -> Tensor | None:
    """out = g' · σ(α·g') · (u' + up_offset). Moves 3 bytes per byte of ``gate``."""
    spelled = _spelled(constants)
    return None if spelled is None else result(swiglu, gate, up, constants=spelled)


def launch_swiglu_backward(
    grad_out: Tensor, gate: Tensor, up: Tensor, constants: Constants = PLAIN
) -> tuple[Tensor, Tensor] | None:
    """The gradients of ``gate`` and ``up``. Moves 5 bytes per byte of ``gate``."""
    spelled = _spelled(constants)
    if spelled is None:
        return None
    grad_gate, grad_up = empty_output(gate), empty_output(up)
    written = write_gradient(swiglu_backward, grad_out, (gate, up), (grad_gate, grad_up), spelled)
    return (grad_gate, grad_up) if written else None


def launch_packed_swiglu(x: Tensor, constants: Constants = PLAIN, interleaved: bool = False) -> Tensor | None:
    """swiglu of the halves of the last dimension, or of its even and odd columns, read in place.

    Moves 3 bytes per byte of ``out``. Interleaved, two neighbours are read as one integer.
    """
    spelled = _spelled(constants)
    if spelled is None:
        return None
    if not interleaved:
        return packed_result(swiglu, x, -1, spelled)
    pairs = _pairs(x)
    if pairs is None:
        return result(swiglu, *_columns(x), constants=spelled)
    out = empty_output(x[..., ::2])
    written = write(interleaved_swiglu, (pairs,), (out,), constants=(*spelled, TRITON_DTYPES[x.dtype]))
    return out if written else None


def launch_packed_swiglu_backward(
    grad_out: Tensor, x: Tensor, constants: Constants = PLAIN, interleaved: bool = False
) -> Tensor | None:
    """The gradient of ``x``, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    spelled = _spelled(constants)
    if spelled is None:
        return None
    if not interleaved:
        return packed_gradient(swiglu_backward, grad_out, x, -1, spelled)
    grad_x = empty_output(x)
    pairs, grad_pairs = _pairs(x), _pairs(grad_x)
    if pairs is None or grad_pairs is None:
        gradients = launch_swiglu_backward(grad_out, *_columns(x), constants)
        return None if gradients is None else _interleaved(gradients, grad_x)
    written = write_gradient(
        interleaved_swiglu_backward, grad_out, (pairs,), (grad_pairs,), (*spelled, TRITON_DTYPES[x.dtype])
    )
    return grad_x if written else None


@lru_cache(maxsize=1024)
def _spelled(constants: Constants) -> tuple[float, float, float, bool] | None:
    """As the formulas take them; None where one is too large."""
    alpha, limit, up_offset, at_limit = constants
    if max(abs(alpha), limit or 0.0, abs(up_offset)) > LARGEST_CONSTANT:
        return None
    return alpha, -1.0 if limit is None else limit, up_offset, at_limit or limit is None


def _pairs(x: Tensor) -> Tensor | None:
    """Neighbours of the last dimension as one integer; None where they are none, not aligned, or 128 bits wide."""
    integer = PAIRS.get(x.element_size())
    if integer is None or x.stride(-1) != 1 or x.data_ptr() % (2 * x.element_size()) or x.storage_offset() % 2:
        return None
    return None if any(step % 2 for step in x.stride()[:-1]) else x.view(integer)


def _columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of the even and the odd ones."""
    return x[..., ::2].clone(), x[..., 1::2].clone()


def _interleaved(columns: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
    out[..., ::2], out[..., 1::2] = columns
    return out
