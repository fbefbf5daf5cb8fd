"""x · σ(βx): the formulas, and their launchers, as in :mod:`.gates`."""

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import write_gradient
from .gates import result
from .intrinsics import fma, widen
from .pointwise import empty_output
from .scalar import both_sides, sigmoid_of

# Constants of a larger magnitude go to PyTorch: float32 would lose them, or their products.
LARGEST_CONSTANT = 2.0**100


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
def scaled_sigmoid(x, slope: tl.constexpr, dtype: tl.constexpr):
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
def scaled_sides(x, slope: tl.constexpr, dtype: tl.constexpr):
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
    t = scaled_sigmoid(tl.abs(x), -slope, dtype)
    return tl.where(x < 0, t, 1.0 - t), tl.where(x < 0, 1.0 - t, t)


@triton.jit
def silu_slope(x, s, s_minus, beta: tl.constexpr):
    """The derivative of x·σ(βx): σ(βx)·(1 + x·β·σ(-βx))"""
    return s * fma(x, s_minus * beta, 1.0)


@triton.jit
def silu(args, constants: tl.constexpr):
    """out = x · σ(βx); ``constants`` are (β,)"""
    (x,) = args
    return (widen(x) * scaled_sigmoid(widen(x), constants[0], x.dtype),)


@triton.jit
def silu_backward(args, constants: tl.constexpr):
    """grad_x = grad_out · (x·σ(βx))'"""
    grad_out, x = args
    s, s_minus = scaled_sides(widen(x), constants[0], x.dtype)
    return (widen(grad_out) * silu_slope(widen(x), s, s_minus, constants[0]),)


def launch_silu(x: Tensor, beta: float = 1.0) -> Tensor | None:
    """out = x · σ(βx). Moves 2 bytes per byte of ``x``."""
    return result(silu, x, constants=(beta,)) if abs(beta) <= LARGEST_CONSTANT else None


def launch_silu_backward(grad_out: Tensor, x: Tensor, beta: float = 1.0) -> Tensor | None:
    """grad_x = grad_out · (x·σ(βx))'. Moves 3 bytes per byte of ``x``."""
    if abs(beta) > LARGEST_CONSTANT:
        return None
    grad_x = empty_output(x)
    return grad_x if write_gradient(silu_backward, grad_out, (x,), (grad_x,), (beta,)) else None
