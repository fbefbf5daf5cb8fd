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
# Of _sigmoid_float64: β has 38 bits, and w minimizes the largest relative error of 2^f for |f| <= 1/2.
ALPHA_64 = tl.constexpr(float.fromhex("0x1.fffffffe66d25p-1"))
BETA_64 = tl.constexpr(float.fromhex("0x1.62e42fee88p-1"))
W_64 = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.1f1a6d92cf9c4p-29",
            "-0x1.af7812c4c395cp-26",
            "0x1.27e516115448ap-22",
            "-0x1.71dde7a7e2cdfp-19",
            "0x1.a01a019579f80p-16",
            "-0x1.a01a01c0ff705p-13",
            "0x1.6c16c172ed7c7p-10",
            "-0x1.1111111550e29p-7",
            "0x1.5555555998792p-5",
            "-0x1.5555555887b18p-3",
            "0x1.00000001992dbp-1",
            "-0x1.992dafcb90ee5p-33",
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
def _sigmoid_float32(x, negative: tl.constexpr = False):
    """σ(x) = scale / (scale + scale·e^-x) within 0.94 ulp of float32 for every x.

    The GPU's own 2^x is too coarse for that (2 ulp), so e^-x = 2^n · 2^f is a polynomial, in IEEE operations. With β of
    16 bits, n·β is exact, and x·α + n·β = g reduces the argument in one step, α/β being log2 e to 2.3e-11;
    2^f - 1 = g·w(g) - g has no constant term to round. ``scale`` = 2^-40 keeps the power finite for x from -105 on,
    where results are subnormal, and the last product rounds those once.

    The reciprocal is taken of a rounded denominator, and corrected with the residual of the unrounded one, held in
    three parts: p = 2^n + scale, -2^n·g, and the rest. So the largest error, 0.931 ulp, is no larger for a reciprocal
    that is 1 ulp off. All 2^32 inputs were compared (python -m bench proof, bench/ACCURACY.md).
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
    """σ(x) = scale / (scale + scale·e^-x) within 0.88 ulp of float64: float32's formula with another last step.

    β has 38 bits, and α/β is log2 e to 2.2e-22; w leaves a relative error of 6e-20 in e^-x. The reciprocal is taken in
    float32, of the denominator brought near 1 by a power of two, and is off by up to 2^-22. p is cut to 29 bits, what
    is cut joins the rest, and p times the 24 bits of the reciprocal is exact. So the residual ε of the unrounded
    denominator errs less than g changes from one x to the next; and reciprocal·(1 + ε + ε²), short of ε³ < 2^-66, is
    rounded once, where a Newton step would round its reciprocal first. The order of neighbours is kept.

    A sample, not a proof: in 2 billion pairs of neighbours, from every range and where a rounding changes, no result is
    below that of the smaller x, with the float32 reciprocal off by -1, 0 and 1 ulp. Normal results are within 0.78 ulp,
    subnormal ones, rounded twice, within 0.88 (python -m bench proof). CUDA's own exp and division would branch, and
    call a slow path.
    """
    scale: tl.constexpr = 2.0**-100
    x = tl.maximum(x, -746.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 40.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = fma(x, -LOG2_E, 1.5 * 2.0**52)  # rounds to n, which stands in the low bits
    g = fma(x, ALPHA_64, fma(shifted, BETA_64, -BETA_64 * 1.5 * 2.0**52))
    power_bits = (shifted.to(tl.int64, bitcast=True) << 52) + 0x39B0000000000000
    power = power_bits.to(tl.float64, bitcast=True)  # 2^n · scale
    w = fma(g, W_64[0], W_64[1])
    for i in tl.static_range(10):
        w = fma(w, g, W_64[2 + i])
    power_g = power * g
    p_bits = (power + scale).to(tl.int64, bitcast=True) & -(2**24)
    p = p_bits.to(tl.float64, bitcast=True)
    rest = fma(power_g, w, scale - (p - power))
    normalizer = (0x7FE0000000000000 - (p_bits & 0x7FF0000000000000)).to(tl.float64, bitcast=True)  # times p: in [1, 2)
    reciprocal = reciprocal_approx(((p + (rest - power_g)) * normalizer).to(tl.float32)).to(tl.float64) * normalizer
    residual = fma(-1.0 * reciprocal, rest, fma(reciprocal, power_g, fma(-1.0 * reciprocal, p, 1.0)))
    return fma(reciprocal, fma(residual, residual, residual), reciprocal) * scale


@triton.jit
def sigmoid_of(x, dtype: tl.constexpr):
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
def both_sides(x, dtype: tl.constexpr):
    """σ(x) and σ(-x) of a widened x in one evaluation, each with all its digits."""
    t = sigmoid_of(-tl.abs(x), dtype)
    return tl.where(x < 0, t, 1.0 - t), tl.where(x < 0, 1.0 - t, t)


# Of softplus, from the highest power down: q minimizes the largest relative error of t + t²·q(t) for 0 <= t <= 1/2.
# That is 2^-19.9, 2^-28.0 and 2^-56.7 for results of 16, 32 and 64 bits.
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
Q_64 = tl.constexpr(
    tuple(
        float.fromhex(coefficient)
        for coefficient in (
            "0x1.af9739e992212p+4",
            "-0x1.c81edf45b6b94p+6",
            "0x1.c9b97cd50e363p+7",
            "-0x1.1d8ef5318f3f6p+8",
            "0x1.ee72468016707p+7",
            "-0x1.39662a83b892fp+7",
            "0x1.2d29ee64fe71cp+6",
            "-0x1.bc007080fd61ap+4",
            "0x1.02c47b1e366b5p+3",
            "-0x1.b7c6bacc1b784p+0",
            "0x1.a07c6482b2a38p-2",
            "0x1.d3fea5853fa86p-5",
            "0x1.d956601cdd375p-4",
            "0x1.fe94b84b1a9ep-4",
            "0x1.249c9ab32657dp-3",
            "0x1.5554ec2334c32p-3",
            "0x1.99999c5e1abafp-3",
            "0x1.fffffff4c8892p-3",
            "0x1.5555555560ef7p-2",
            "0x1.fffffffffff79p-2",
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
        return _sigmoid_float32(-tl.abs(x), negative=True)
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
        q = polynomial(t, Q_64, 19)
    elif wide:
        q = polynomial(t, Q_32, 8)
    else:
        q = polynomial(t, Q_16, 5)
    return fma(t * t, q, t)


@triton.jit
def log1p_exp(x, wide: tl.constexpr):
    """log(1 + e^-|x|) of a widened x where t is not wanted: 16 bits need no reciprocal."""
    if wide or x.dtype == tl.float64:
        return softplus(tail(x, wide), wide)
    else:
        scaled = exp2_approx(fma(tl.abs(x), -LOG2_E, 8.0))
        return scaled * polynomial(scaled, P_16, 6)
