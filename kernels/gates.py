"""Products with σ: the formulas, and their launchers.

A launcher takes tensors and returns new ones; None for a memory layout that the templates do not take. Nothing is saved
but the operands: backward takes σ of them again, as t = σ(-|x|), which is small and exact where σ saturates.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import in_order_of, write, write_gradient
from .frame import Frame, frame_of_broadcast, frame_of_halves, half_of
from .intrinsics import fma, round_to, widen
from .pointwise import empty_output, launch
from .scalar import both_sides, sigmoid_of
from .sums import add_up
from .tiled import launch_tiled, tiling

# Constants of a larger magnitude go to PyTorch: float32 would lose them, or their products.
LARGEST_CONSTANT = 2.0**100
PLAIN = (1.0, -1.0, 0.0, True)  # swiglu's constants where none is given

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
PAIRS = {2: torch.int32, 4: torch.int64}  # by the bytes of an element


@triton.jit
def _product(x, slope: tl.constexpr):
    """slope·x rounded, and what is missing; σ of the rounded product alone is 40 ulp off in float32 at -80.

    The first bits of ``slope``, which is a float64, are split off by Veltkamp's method: 24 for float32, 26 for float64,
    where the products of parts are exact, so that no fused operation is needed.
    """
    scaled: tl.constexpr = slope * (2.0**29 + 1.0 if x.dtype == tl.float32 else 2.0**27 + 1.0)
    high: tl.constexpr = scaled - (scaled - slope)
    low: tl.constexpr = slope - high
    if x.dtype == tl.float32:
        product = x * high
        rest = fma(x, low, fma(x, high, -1.0 * product))
    else:
        product = x * slope
        x_high = (x.to(tl.int64, bitcast=True) & -(2**27)).to(tl.float64, bitcast=True)
        x_low = x - x_high
        rest = (((x_high * high - product) + x_high * low) + x_low * high) + x_low * low
    return product, tl.where(tl.abs(product) < 1000.0, rest, 0.0)  # past that σ is 0 or 1, and the rest may be NaN


@triton.jit
def _sigmoid_of(x, slope: tl.constexpr, dtype: tl.constexpr):
    """σ(slope·x) of a widened x, with σ(p + rest) = σ(p) + rest·σ'(p)"""
    if slope == 1.0:
        return sigmoid_of(x, dtype)
    elif dtype.primitive_bitwidth == 16:
        return sigmoid_of(x * slope, dtype)
    else:
        product, rest = _product(x, slope)
        s = sigmoid_of(product, dtype)
        return fma(rest, fma(-1.0 * s, s, s), s)


@triton.jit
def _both_sides(x, slope: tl.constexpr, dtype: tl.constexpr):
    """σ(slope·x) and σ(-slope·x) of a widened x in one evaluation, each with all its digits"""
    if slope == 1.0:
        return both_sides(x, dtype)
    elif slope < 0.0:
        s, s_minus = _both_sides_of_positive(x, -slope, dtype)
        return s_minus, s
    else:
        return _both_sides_of_positive(x, slope, dtype)


@triton.jit
def _both_sides_of_positive(x, slope: tl.constexpr, dtype: tl.constexpr):
    t = _sigmoid_of(tl.abs(x), -slope, dtype)
    return tl.where(x < 0, t, 1.0 - t), tl.where(x < 0, 1.0 - t, t)


@triton.jit
def _silu_slope(x, s, s_minus, beta: tl.constexpr):
    """The derivative of x·σ(βx): σ(βx)·(1 + x·β·σ(-βx))"""
    return s * fma(x, s_minus * beta, 1.0)


@triton.jit
def sigmoid_gate(args):
    """out = x · σ(gate)"""
    x, gate = args
    return (widen(x) * sigmoid_of(widen(gate), gate.dtype),)


@triton.jit
def sigmoid_gate_backward(args):
    """grad_x = grad_out · σ(gate) and grad_gate = grad_out · x · σ(gate) · σ(-gate)"""
    grad_out, x, gate = args
    s, s_minus = both_sides(widen(gate), gate.dtype)
    grad_x = widen(grad_out) * s
    return grad_x, grad_x * widen(x) * s_minus


@triton.jit
def sigmoid_gate_backward_to_gate(args):
    """grad_gate alone, for an x that needs no gradient"""
    return (sigmoid_gate_backward(args)[1],)


@triton.jit
def silu(args, constants: tl.constexpr):
    """out = x · σ(βx); ``constants`` are (β,)"""
    (x,) = args
    return (widen(x) * _sigmoid_of(widen(x), constants[0], x.dtype),)


@triton.jit
def silu_backward(args, constants: tl.constexpr):
    """grad_x = grad_out · (x·σ(βx))'"""
    grad_out, x = args
    s, s_minus = _both_sides(widen(x), constants[0], x.dtype)
    return (widen(grad_out) * _silu_slope(widen(x), s, s_minus, constants[0]),)


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
    return gate * _sigmoid_of(gate, constants[0], dtype) * up


@triton.jit
def _swiglu_backward(grad_out, gate, up, constants: tl.constexpr, dtype: tl.constexpr):
    alpha: tl.constexpr = constants[0]
    limit: tl.constexpr = constants[1]
    x, factor = _clamped(gate, up, constants)
    s, s_minus = _both_sides(x, alpha, dtype)
    grad_gate = grad_out * factor * _silu_slope(x, s, s_minus, alpha)
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


def launch_gate(x: Tensor, gate: Tensor) -> Tensor | None:
    """out = x · σ(gate). Moves 3 bytes per byte of ``x``, 2 where ``gate``, which broadcasts to it, is small."""
    out = empty_output(x)
    return out if launch_gate_out(x, gate, out) else None


def launch_gate_out(x: Tensor, gate: Tensor, out: Tensor) -> bool:
    """The same written to ``out``, which may be ``x`` or ``gate``; False where nothing was. Does not tell autograd."""
    if gate.shape == x.shape:
        return write(sigmoid_gate, (x, gate), (out,))
    layout = frame_of_broadcast(x.shape, (out.stride(), x.stride()), gate.shape, gate.stride())
    if layout is None:
        return False
    if layout.is_flat:
        launch(sigmoid_gate, (), (x, gate), (out,))
    else:
        launch_tiled(sigmoid_gate, (), (x, gate), (out,), layout)
    return True


def launch_gate_backward(grad_out: Tensor, x: Tensor, gate: Tensor, *, to_x: bool) -> tuple[Tensor, ...] | None:
    """grad_x = grad_out · σ(gate), and grad_gate = grad_out · x · σ'(gate), summed where ``gate`` was broadcast.

    Moves 5 bytes per byte of ``x``, 3 where ``gate`` is small; one less without ``to_x``, which leaves grad_x out. The
    sums are taken in one order for all runs: each tile's in float32, or float64 for float64, those of the tiles in
    float64 by a second launch, which is left out where a tile holds all that is added up.
    """
    formula = sigmoid_gate_backward if to_x else sigmoid_gate_backward_to_gate
    grad_x = (empty_output(x),) if to_x else ()
    if gate.shape == x.shape:
        grad_gate = empty_output(gate)
        written = write_gradient(formula, grad_out, (x, gate), (*grad_x, grad_gate))
        return (*grad_x, grad_gate) if written else None
    gate = gate.contiguous()
    grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    layout = _gate_frame(gate, *grad_x, grad_out, x)
    if layout is None:
        grad_out = in_order_of(x, grad_out)
        layout = _gate_frame(gate, *grad_x, grad_out, x)
    if layout is None or all(layout.steps[-1][1:]):  # summed over batches alone, which no tile does
        return None
    batch_step, row_step, column_step = layout.steps[-1]
    axis, step = (1, row_step) if column_step is None else (0, column_step)
    tiles = tiling(layout, x.element_size(), axis)
    batch, n_tiles, kept = tiles.shape_of_sums
    # What is added up next: the tiles; the batches, too, where the gate has but one; and all where it is one number.
    shape = (batch, n_tiles, kept) if batch_step else (1, batch * n_tiles, kept)
    if step is None:
        shape = (shape[0], shape[1] * kept, 1)
    in_place = shape[1] == 1 and step in (1, None) and (shape[0] == 1 or batch_step == shape[2])
    sums = grad_gate
    if not in_place:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        sums = torch.empty(shape, dtype=dtype, device=x.device)
    launch_tiled(formula, (), (grad_out, x, gate), grad_x, layout, (), sums, axis)
    if not in_place:
        add_up(sums, grad_gate, (batch_step, step or 0))
    return *grad_x, grad_gate


def _gate_frame(gate: Tensor, *tensors: Tensor) -> Frame | None:
    return frame_of_broadcast(tensors[0].shape, tuple([x.stride() for x in tensors]), gate.shape, gate.stride())


def launch_glu(x: Tensor, dim: int) -> Tensor | None:
    """out = a · σ(b) of the halves a and b of ``x`` along ``dim``, read in place. Moves 3 bytes per byte of ``out``."""
    return _packed_result(sigmoid_gate, x, dim)


def launch_glu_backward(grad_out: Tensor, x: Tensor, dim: int) -> Tensor | None:
    """The gradient of both halves, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    return _packed_gradient(sigmoid_gate_backward, grad_out, x, dim)


def launch_silu(x: Tensor, beta: float = 1.0) -> Tensor | None:
    """out = x · σ(βx). Moves 2 bytes per byte of ``x``."""
    return _result(silu, x, constants=(beta,)) if abs(beta) <= LARGEST_CONSTANT else None


def launch_silu_backward(grad_out: Tensor, x: Tensor, beta: float = 1.0) -> Tensor | None:
    """grad_x = grad_out · (x·σ(βx))'. Moves 3 bytes per byte of ``x``."""
    if abs(beta) > LARGEST_CONSTANT:
        return None
    grad_x = empty_output(x)
    return grad_x if write_gradient(silu_backward, grad_out, (x,), (grad_x,), (beta,)) else None


def launch_swiglu(
    gate: Tensor,
    up: Tensor,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    at_limit: bool = True,
) -> Tensor | None:
    """out = g' · σ(α·g') · (u' + up_offset). Moves 3 bytes per byte of ``gate``."""
    constants = _swiglu_constants(alpha, limit, up_offset, at_limit)
    return None if constants is None else _result(swiglu, gate, up, constants=constants)


def launch_swiglu_backward(
    grad_out: Tensor,
    gate: Tensor,
    up: Tensor,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    at_limit: bool = True,
) -> tuple[Tensor, Tensor] | None:
    """The gradients of ``gate`` and ``up``. Moves 5 bytes per byte of ``gate``."""
    constants = _swiglu_constants(alpha, limit, up_offset, at_limit)
    if constants is None:
        return None
    grad_gate, grad_up = empty_output(gate), empty_output(up)
    written = write_gradient(swiglu_backward, grad_out, (gate, up), (grad_gate, grad_up), constants)
    return (grad_gate, grad_up) if written else None


def launch_packed_swiglu(
    x: Tensor,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    at_limit: bool = True,
    interleaved: bool = False,
) -> Tensor | None:
    """swiglu of the halves of the last dimension, or of its even and odd columns, read in place.

    Moves 3 bytes per byte of ``out``. Interleaved, two neighbours are read as one integer.
    """
    constants = _swiglu_constants(alpha, limit, up_offset, at_limit)
    if constants is None:
        return None
    if not interleaved:
        return _packed_result(swiglu, x, -1, constants)
    pairs = _pairs(x)
    if pairs is None:
        return _result(swiglu, *_columns(x), constants=constants)
    out = empty_output(x[..., ::2])
    written = write(interleaved_swiglu, (pairs,), (out,), constants=(*constants, TRITON_DTYPES[x.dtype]))
    return out if written else None


def launch_packed_swiglu_backward(
    grad_out: Tensor,
    x: Tensor,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    at_limit: bool = True,
    interleaved: bool = False,
) -> Tensor | None:
    """The gradient of ``x``, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    constants = _swiglu_constants(alpha, limit, up_offset, at_limit)
    if constants is None:
        return None
    if not interleaved:
        return _packed_gradient(swiglu_backward, grad_out, x, -1, constants)
    grad_x = empty_output(x)
    pairs, grad_pairs = _pairs(x), _pairs(grad_x)
    if pairs is None or grad_pairs is None:
        gradients = launch_swiglu_backward(grad_out, *_columns(x), alpha, limit, up_offset, at_limit)
        return None if gradients is None else _interleaved(gradients, grad_x)
    written = write_gradient(
        interleaved_swiglu_backward, grad_out, (pairs,), (grad_pairs,), (*constants, TRITON_DTYPES[x.dtype])
    )
    return grad_x if written else None


def _swiglu_constants(
    alpha: float, limit: float | None, up_offset: float, at_limit: bool
) -> tuple[float, float, float, bool] | None:
    """As the formulas take them; ``at_limit``, whether the gradient is passed on at the limit itself."""
    if alpha == 1.0 and limit is None and up_offset == 0.0:
        return PLAIN
    if max(abs(alpha), limit or 0.0, abs(up_offset)) > LARGEST_CONSTANT:
        return None
    return alpha, -1.0 if limit is None else limit, up_offset, at_limit


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


def _result(formula: Any, first: Tensor, *others: Tensor, constants: tuple[Any, ...] = ()) -> Tensor | None:
    """A new tensor, in the memory order of ``first``."""
    out = empty_output(first)
    return out if write(formula, (first, *others), (out,), constants=constants) else None


def _packed_result(formula: Any, x: Tensor, dim: int, constants: tuple[Any, ...] = ()) -> Tensor | None:
    """Of the halves of ``x``, without making a view of either where it is contiguous."""
    if x.is_contiguous():
        layout = frame_of_halves(x.shape, dim, (None, 0, 1))
        if layout is not None:
            out = torch.empty(half_of(x.shape, dim), dtype=x.dtype, device=x.device)
            launch_tiled(formula, (), (x, x), (out,), layout, constants)
            return out
    return _result(formula, *x.chunk(2, dim), constants=constants)


def _packed_gradient(
    formula: Any, grad_out: Tensor, x: Tensor, dim: int, constants: tuple[Any, ...] = ()
) -> Tensor | None:
    grad_x = empty_output(x)
    if x.is_contiguous() and grad_out.is_contiguous():
        layout = frame_of_halves(x.shape, dim, (0, 1, None, 0, 1))
        if layout is not None:
            launch_tiled(formula, (), (grad_out, x, x), (grad_x, grad_x), layout, constants)
            return grad_x
    written = write_gradient(formula, grad_out, x.chunk(2, dim), grad_x.chunk(2, dim), constants)
    return grad_x if written else None
