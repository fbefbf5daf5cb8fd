"""Scalar maths of σ and its derivatives: a tuple of loaded values in, a tuple of results out, no memory.

16-bit values are computed in float32 and rounded once, by the store; float32 and float64 in their own precision.
"""

import math

import triton
import triton.language as tl

from .intrinsics import exp2_approx, fma, reciprocal_approx, widen

LOG2_E = tl.constexpr(1.4426950408889634)
# ln 2 in two parts, from fdlibm's e_exp.c: the first ends in 21 zero bits, so its product with an integer is exact.
LN2_HIGH = tl.constexpr(6.93147180369123816490e-01)
LN2_LOW = tl.constexpr(1.90821492927058770002e-10)
FACTORIAL = tl.constexpr(tuple(float(math.factorial(k)) for k in range(14)))


@triton.jit
def _sigmoid_16bit(x, mantissa_bits: tl.constexpr, scale_exponent: tl.constexpr):
    """σ(x) = 1 / (1 + 2^(-x·log2 e)) in two special-function operations and no branch, for a result of 16 bits.

    Near 0, σ(x) = 1/2 + x/4 - x³/48. Where x/4 ends halfway between two results, only the cubic term says which of
    them is nearer, and it is too small for float32. It always says the one nearer 1/2; so for small x the exponent is
    shrunk by 2^-1.5 of the distance between neighbouring x: enough to decide such ties, too little to carry any other
    result across one. Without it float16 misses the nearest result 6 times more often (python -m bench accuracy).

    A scale of 2^-8 keeps the denominator finite where bfloat16 results are subnormal, x from -87.3 to -92.9.
    """
    shrunk: tl.constexpr = LOG2_E * (1.0 - 2.0 ** (-mantissa_bits - 1.5))
    scale: tl.constexpr = 2.0**scale_exponent
    factor = tl.where(tl.abs(x) < 2.0**-5, shrunk, LOG2_E)
    return reciprocal_approx(scale + exp2_approx(fma(x, -1.0 * factor, scale_exponent))) * scale


@triton.jit
def _sigmoid_float32(x):
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


@triton.jit
def _sigmoid_float64(x):
    """σ(x) = t/(1 + t) for x < 0, 1/(1 + t) otherwise, with t = e^-|x| = 2^-n · e^-r, |r| <= ln 2 / 2.

    e^-r is its Taylor polynomial; the first term left out is below r^14/14! = 5e-18. The power of two is kept 2^64 too
    large until the last product, which so rounds a subnormal result once. 1/(1 + t) starts from the float32 reciprocal;
    each Newton step squares its error, and the last takes the residual of 1 + t before rounding, as 1 - r is exact.
    Without call or branch: CUDA's own exp and division cost 73 instructions with 8 branches (python -m bench codegen).
    """
    magic: tl.constexpr = 1.5 * 2.0**52  # adding it rounds to an integer
    a = tl.minimum(tl.abs(x), 746.0, propagate_nan=tl.PropagateNan.ALL)
    n = fma(a, LOG2_E, magic) - magic
    r = fma(n, -LN2_HIGH, a)
    r = fma(n, -LN2_LOW, r)
    exp = fma(r, -1.0 / FACTORIAL[13], 1.0 / FACTORIAL[12])
    for i in tl.static_range(12):
        exp = fma(exp, -1.0 * r, 1.0 / FACTORIAL[11 - i])
    scaled_t = exp * ((1023 + 64 - n.to(tl.int64)) << 52).to(tl.float64, bitcast=True)
    t = scaled_t * 2.0**-64
    reciprocal = reciprocal_approx((1.0 + t).to(tl.float32)).to(tl.float64)
    reciprocal = fma(fma(-1.0 * reciprocal, 1.0 + t, 1.0), reciprocal, reciprocal)
    reciprocal = fma(fma(-1.0 * reciprocal, t, 1.0 - reciprocal), reciprocal, reciprocal)
    return tl.where(x < 0, scaled_t * (reciprocal * 2.0**-64), reciprocal)


@triton.jit
def sigmoid(args):
    """out = σ(x)"""
    (x,) = args
    if x.dtype == tl.float16:
        return (_sigmoid_16bit(widen(x), 10, 0),)
    elif x.dtype == tl.bfloat16:
        return (_sigmoid_16bit(widen(x), 7, -8),)
    elif x.dtype == tl.float32:
        return (_sigmoid_float32(x),)
    else:
        return (_sigmoid_float64(x),)


@triton.jit
def _derivative(out):
    """σ' = σ·(1 - σ), as σ - σ² in one rounding where there is a fused multiply-add for it."""
    if out.dtype == tl.float64:
        return out * (1.0 - out)
    else:
        return fma(-1.0 * out, out, out)


@triton.jit
def sigmoid_backward(args):
    """grad_in = grad_out · σ'(x), with σ'(x) = out·(1 - out)"""
    grad_out, out = args
    return (widen(grad_out) * _derivative(widen(out)),)


@triton.jit
def sigmoid_double_backward(args):
    """The gradients of grad_in = grad_out·out·(1 - out) with respect to grad_out and to out."""
    grad_grad_in, grad_out, out = args
    grad_grad_in = widen(grad_grad_in)
    out = widen(out)
    return grad_grad_in * _derivative(out), grad_grad_in * widen(grad_out) * (1.0 - 2.0 * out)
