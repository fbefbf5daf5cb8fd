"""σ of one number, and what the formulas make of it, in each precision.

16-bit values are computed in float32, which the store rounds; float32 and float64 in their own precision.
"""

import triton
import triton.language as tl

from .intrinsics import exp2_approx, fma, reciprocal_approx

LOG2_E = tl.constexpr(1.4426950408889634)
# Of _sigmoid_float32: β has 16 bits, α/β is log2 e. The first coefficient of w is 2^-10·log2 e, 2 % above the best one,
# so that it shares a register with the argument reduction; a search for the smallest errors of σ found the others.
ALPHA = tl.constexpr(float.fromhex("0x1.002560p+0"))
BETA = tl.constexpr(float.fromhex("0x1.6318p-1"))
W = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.715476p-10",
            "-0x1.11c2c2p-7",
            "0x1.548668p-5",
            "-0x1.54be84p-3",
            "0x1.ff6aaap-2",
            "0x1.2adp-11",
        )
    )
)


@triton.jit
def _sigmoid_16bit(x, mantissa_bits: tl.constexpr, scale_exponent: tl.constexpr):
    """σ(x) = 1 / (1 + 2^(-x·log2 e)) in two special-function operations and no branch, for a result of 16 bits.

    Near 0, σ(x) = 1/2 + x/4 - x³/48. Where x/4 ends halfway between two results, only the cubic term says which of
    them is nearer, and it is too small for float32. It always says the one nearer 1/2; so for small x the exponent is
    shrunk by 2^-1.5 of the distance between neighbouring x: enough to decide such ties, too little to carry any other
    result across one. So 1 float16 result is not the nearest, against 7 of PyTorch's (python -m bench accuracy).

    A scale of 2^-8 keeps the denominator finite where bfloat16 results are subnormal, x from -87.3 to -92.9.
    """
    shrunk: tl.constexpr = LOG2_E * (1.0 - 2.0 ** (-mantissa_bits - 1.5))
    scale: tl.constexpr = 2.0**scale_exponent
    factor = tl.where(tl.abs(x) < 2.0**-5, shrunk, LOG2_E)
    return reciprocal_approx(scale + exp2_approx(fma(x, -1.0 * factor, scale_exponent))) * scale


@triton.jit
def _sigmoid_float32(x, negative: tl.constexpr):
    """σ(x) = scale / (scale + scale·e^-x) within 0.94 ulp of float32 for every x.

    The GPU's own 2^x is too coarse for that (2 ulp), so e^-x = 2^n · 2^f is a polynomial, in IEEE operations. With β of
    16 bits, n·β is exact, and x·α + n·β = g reduces the argument in one step, α/β being log2 e to 2.3e-11;
    2^f - 1 = g·w(g) - g has no constant term to round. ``scale`` = 2^-40 keeps the power finite for x from -105 on,
    where results are subnormal, and the last product rounds those once.

    The reciprocal is taken of a rounded denominator, and corrected with the residual of the unrounded one, held in
    three parts: p = 2^n + scale, -2^n·g, and the rest. So the largest error, 0.931 ulp, is no larger for a reciprocal
    that is 1 ulp off. All 2^32 inputs were compared (python -m bench proof, docs/accuracy.md).
    """
    scale: tl.constexpr = 2.0**-40
    x = tl.maximum(x, -105.0, propagate_nan=tl.PropagateNan.ALL)
    if not negative:
        x = tl.minimum(x, 30.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = fma(x, -LOG2_E * 2.0**-10, 1.5 * 2.0**13)  # rounds to 2^-10·n; n stands in the low bits
    g = fma(x, ALPHA, fma(shifted, BETA * 2.0**10, -BETA * 1.5 * 2.0**23))
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
    """σ(x) = e^-|x| / (1 + e^-|x|), or 1 over the same where x >= 0, within 2 ulp by Triton's own exponential."""
    t = tl.exp(-tl.abs(x))
    whole = 1.0 + t
    lost = t - (whole - 1.0)  # by rounding; relative to ``whole`` where that is near 1, and the error largest
    s = tl.where(x < 0, t, 1.0) / whole
    return s - s * lost


@triton.jit
def sigmoid_of(x, dtype: tl.constexpr, negative: tl.constexpr = False):
    """σ of a widened x, as accurate as a result of ``dtype`` can show. ``negative``: no x is above 0."""
    if dtype == tl.float16:
        return _sigmoid_16bit(x, 10, 0)
    elif dtype == tl.bfloat16:
        return _sigmoid_16bit(x, 7, -8)
    elif dtype == tl.float32:
        return _sigmoid_float32(x, negative)
    else:
        return _sigmoid_float64(x)


@triton.jit
def both_sides(x, dtype: tl.constexpr):
    """σ(x) and σ(-x) of a widened x in one evaluation, each with all its digits."""
    t = sigmoid_of(-tl.abs(x), dtype, negative=True)
    return tl.where(x < 0, t, 1.0 - t), tl.where(x < 0, 1.0 - t, t)


# Of softplus, from the highest power down: q minimizes the largest relative error of t + t²·q(t) for 0 <= t <= 1/2.
# That is 2^-19.9 and 2^-28.0 for results of 16 and 32 bits.
Q_16 = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.ef6f16p-1",
            "-0x1.33a6ep-1",
            "0x1.ffc98cp-2",
            "0x1.8dff8p-3",
            "0x1.5a0c4cp-2",
            "0x1.ffdf62p-2",
        )
    )
)
# Of log1p_exp in 16 bits: p minimizes the largest relative error, 2^-19.5, of e·p(e) for e = 2^-8·scaled up to 1.
P_16 = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.cf5f9p-63",
            "-0x1.0ffb6ap-52",
            "0x1.319c5ep-43",
            "-0x1.e15bfcp-35",
            "0x1.530a72p-26",
            "-0x1.ffddd6p-18",
            "0x1.ffffd6p-9",
        )
    )
)
Q_32 = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.be3f52p+0",
            "-0x1.3ce7ap+1",
            "0x1.f86962p+0",
            "-0x1.2f1988p-1",
            "0x1.5c26dp-2",
            "0x1.683726p-3",
            "0x1.01e99ap-2",
            "0x1.5542f8p-2",
            "0x1.00001ep-1",
        )
    )
)


@triton.jit
def tail(x, wide: tl.constexpr):
    """t = σ(-|x|) = e^-|x| / (1 + e^-|x|) of a widened x.

    For 16 bits, a scale of 2^8 keeps the exponential normal where bfloat16 results are subnormal, |x| from 87.3 on.
    """
    if x.dtype == tl.float64:
        return sigmoid_of(-tl.abs(x), tl.float64)
    elif wide:
        return sigmoid_of(-tl.abs(x), tl.float32, negative=True)
    else:
        scaled = exp2_approx(fma(tl.abs(x), -LOG2_E, 8.0))
        return scaled * reciprocal_approx(scaled + 2.0**8)


@triton.jit
def polynomial(t, coefficients: tl.constexpr, degree: tl.constexpr):
    value = fma(t, coefficients[0], coefficients[1])
    for i in tl.static_range(degree - 1):
        value = fma(value, t, coefficients[2 + i])
    return value


@triton.jit
def softplus(t, wide: tl.constexpr):
    """log(1 + e^-|x|) = -log(1 - t) = t + t²·q(t)"""
    if t.dtype == tl.float64:
        rest = 1.0 - t
        return t - (1.0 - rest) - tl.log(rest)  # what rounding ``rest`` lost, and the logarithm
    elif wide:
        return fma(t * t, polynomial(t, Q_32, 8), t)
    else:
        return fma(t * t, polynomial(t, Q_16, 5), t)


@triton.jit
def log1p_exp(x, wide: tl.constexpr):
    """log(1 + e^-|x|) of a widened x where t is not wanted: 16 bits need no reciprocal."""
    if wide or x.dtype == tl.float64:
        return softplus(tail(x, wide), wide)
    else:
        scaled = exp2_approx(fma(tl.abs(x), -LOG2_E, 8.0))
        return scaled * polynomial(scaled, P_16, 6)
