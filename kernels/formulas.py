"""Scalar maths of σ and its derivatives: a tuple of loaded values in, a tuple of results out, no memory.

16-bit values are computed in float32 and rounded once, by the store; float32 and float64 in their own precision.
"""

import math

import triton
import triton.language as tl

from .intrinsics import exp2_approx, fma, reciprocal_approx, widen

LOG2_E = tl.constexpr(1.4426950408889634)
# Of _sigmoid_float32: β has 16 bits, α/β is log2 e, and w minimizes the largest relative error of 2^f for |f| <= 1/2.
ALPHA = tl.constexpr(float.fromhex("0x1.002560p+0"))
BETA = tl.constexpr(float.fromhex("0x1.6318p-1"))
W = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.6a7054p-10",
            "-0x1.11971ep-7",
            "0x1.548f7ep-5",
            "-0x1.54bed4p-3",
            "0x1.ff6aa0p-2",
            "0x1.2adp-11",
        )
    )
)
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
    """σ(x) = scale / (scale + scale·e^-x) within 0.94 ulp of float32 for every x, in IEEE operations only.

    The GPU's own 2^x is too coarse for that (2 ulp), so e^-x = 2^n · 2^f is a polynomial. With β of 16 bits, n·β is
    exact, and x·α + n·β = g reduces the argument in one step, α/β being log2 e to 2.3e-11; 2^f - 1 = g·w(g) - g has no
    constant term to round. ``scale`` = 2^-40 keeps the power finite for x from -105 on, where results are subnormal,
    and the last product rounds those once.

    The reciprocal is taken of a rounded denominator, and corrected with the residual of the unrounded one, held in
    three parts: p = 2^n + scale, -2^n·g, and the rest. So a reciprocal 1 ulp off moves the largest error by no more
    than from 0.935 to 0.936 ulp. All 2^32 inputs were compared (python -m bench proof, bench/ACCURACY.md).
    """
    scale: tl.constexpr = 2.0**-40
    x = tl.maximum(x, -105.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 30.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = fma(x, -LOG2_E, 1.5 * 2.0**23)  # rounds to n, which stands in the low bits
    g = fma(x, ALPHA, fma(shifted, BETA, -BETA * 1.5 * 2.0**23))
    power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x2B800000).to(tl.float32, bitcast=True)  # 2^n · scale
    w = fma(g, W[0], W[1])
    for i in tl.static_range(4):
        w = fma(w, g, W[2 + i])
    power_g = power * g
    p = power + scale
    rest = fma(power_g, w, scale - (p - power))
    reciprocal = reciprocal_approx(p + (rest - power_g))
    residual = fma(-1.0 * reciprocal, rest, fma(reciprocal, power_g, fma(-1.0 * reciprocal, p, 1.0)))
    return fma(reciprocal, residual, reciprocal) * scale


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
def _sigmoid(x, dtype: tl.constexpr):
    """σ of a widened x, as accurate as a result of ``dtype`` can show."""
    if dtype == tl.float16:
        return _sigmoid_16bit(x, 10, 0)
    elif dtype == tl.bfloat16:
        return _sigmoid_16bit(x, 7, -8)
    elif dtype == tl.float32:
        return _sigmoid_float32(x)
    else:
        return _sigmoid_float64(x)


@triton.jit
def sigmoid(args):
    """out = σ(x)"""
    (x,) = args
    return (_sigmoid(widen(x), x.dtype),)


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


@triton.jit
def sigmoid_exact(args):
    """out = σ(x), and t = σ(-|x|) with the sign of x in its sign bit"""
    (x,) = args
    wide = widen(x)
    t = _sigmoid(-tl.abs(wide), x.dtype)
    return _sigmoid(wide, x.dtype), tl.where(wide < 0, -1.0 * t, t)


@triton.jit
def sigmoid_exact_backward(args):
    """grad_in = grad_out · σ'(x), with σ'(x) = |t|·(1 - |t|)"""
    grad_out, t = args
    return (widen(grad_out) * _derivative(tl.abs(widen(t))),)


@triton.jit
def sigmoid_exact_double_backward(args):
    """The gradients of grad_in = grad_out·|t|·(1 - |t|) with respect to grad_out and to t."""
    grad_grad_in, grad_out, t = args
    grad_grad_in = widen(grad_grad_in)
    t = widen(t)
    slope = tl.where(t < 0, -1.0, 1.0) - 2.0 * t  # of |t|·(1 - |t|)
    return grad_grad_in * _derivative(tl.abs(t)), grad_grad_in * widen(grad_out) * slope
