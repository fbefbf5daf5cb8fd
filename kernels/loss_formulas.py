"""Scalar maths of the losses: as in :mod:`.formulas`, loaded values in, a tuple of results out.

All is made of t = σ(-|x|), which is small and exact where σ saturates. With it σ(x) and σ(-x) are t and 1 - t, in the
order that the sign of x says, and log(1 + e^-|x|) is -log(1 - t): one exponential per element, and no logarithm.

A target y, which need not be 0 or 1, has two parts, y and 1 - y. The one that speaks against the sign of x, y for x < 0
and 1 - y otherwise, is called ``against``, the other ``agreeing``. In their terms the loss is the same function of |x|
on both sides of 0, and the gradient changes sign. Operands may differ in dtype; ``wide`` says whether the result has
more than 16 bits.
"""

import triton
import triton.language as tl

from .formulas import LOG2_E, _sigmoid
from .intrinsics import exp2_approx, fma, reciprocal_approx, widen

# Of _softplus, from the highest power down: q minimizes the largest relative error of t + t²·q(t) for 0 <= t <= 1/2.
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
def _tail(x, wide: tl.constexpr):
    """t = σ(-|x|) = e^-|x| / (1 + e^-|x|) of a widened x.

    For 16 bits, a scale of 2^8 keeps the exponential normal where bfloat16 results are subnormal, |x| from 87.3 on.
    """
    if x.dtype == tl.float64:
        return _sigmoid(-tl.abs(x), tl.float64)
    elif wide:
        return _sigmoid(-tl.abs(x), tl.float32)
    else:
        scaled = exp2_approx(fma(tl.abs(x), -LOG2_E, 8.0))
        return scaled * reciprocal_approx(scaled + 2.0**8)


@triton.jit
def _polynomial(t, coefficients: tl.constexpr, degree: tl.constexpr):
    value = fma(t, coefficients[0], coefficients[1])
    for i in tl.static_range(degree - 1):
        value = fma(value, t, coefficients[2 + i])
    return value


@triton.jit
def _softplus(t, wide: tl.constexpr):
    """log(1 + e^-|x|) = -log(1 - t) = t + t²·q(t)"""
    if t.dtype == tl.float64:
        q = _polynomial(t, Q_64, 19)
    elif wide:
        q = _polynomial(t, Q_32, 8)
    else:
        q = _polynomial(t, Q_16, 5)
    return fma(t * t, q, t)


@triton.jit
def logsigmoid(args):
    """out = log σ(x) = min(x, 0) - log(1 + e^-|x|)"""
    (x,) = args
    wide: tl.constexpr = x.dtype.primitive_bitwidth > 16
    x = widen(x)
    return (tl.minimum(x, 0.0) - _softplus(_tail(x, wide), wide),)


@triton.jit
def logsigmoid_backward(args):
    """grad_in = grad_out · σ(-x)"""
    grad_out, x = args
    wide: tl.constexpr = x.dtype.primitive_bitwidth > 16
    x = widen(x)
    t = _tail(x, wide)
    return (widen(grad_out) * tl.where(x < 0, 1.0 - t, t),)


@triton.jit
def _shares(x, positive, negative):
    """The parts of a target that speak against the sign of x, and for it."""
    return tl.where(x < 0, positive, negative), tl.where(x < 0, negative, positive)


@triton.jit
def bce(args, constants: tl.constexpr):
    """loss = weight · (against·|x| + (against + agreeing)·log(1 + e^-|x|)), in which no digits cancel

    The parts of the target are pos_weight·y and 1 - y. ``args`` are x, y, and weight and pos_weight where the constants
    (has_weight, has_pos_weight, wide) say so.
    """
    has_weight: tl.constexpr = constants[0]
    has_pos_weight: tl.constexpr = constants[1]
    wide: tl.constexpr = constants[2]
    x, y = widen(args[0]), widen(args[1])
    loss = _softplus(_tail(x, wide), wide)
    positive = y
    if has_pos_weight:
        positive = widen(args[2 + has_weight]) * y
        loss = loss * (positive + (1.0 - y))
    loss = fma(tl.abs(x), tl.where(x < 0, positive, 1.0 - y), loss)
    if has_weight:
        loss = loss * widen(args[2])
    return (loss,)


@triton.jit
def bce_backward(args, constants: tl.constexpr):
    """grad_in = grad_out · weight · sign(x) · (against·(1 - t) - agreeing·t)

    That is (1 - y)·σ(x) - pos_weight·y·σ(-x). ``args`` are grad_out, x, y, and weight and pos_weight where the
    constants (has_weight, has_pos_weight) say so.
    """
    has_weight: tl.constexpr = constants[0]
    has_pos_weight: tl.constexpr = constants[1]
    wide: tl.constexpr = args[1].dtype.primitive_bitwidth > 16
    grad_out, x, y = widen(args[0]), widen(args[1]), widen(args[2])
    positive = y
    if has_pos_weight:
        positive = widen(args[3 + has_weight]) * y
    if has_weight:
        grad_out = grad_out * widen(args[3])
    t = _tail(x, wide)
    against, agreeing = _shares(x, positive, 1.0 - y)
    slope = fma(against, 1.0 - t, -1.0 * agreeing * t)
    return (grad_out * tl.where(x < 0, -1.0 * slope, slope),)


@triton.constexpr_function
def _halves(exponent):
    """How many halves make up the exponent; -1 where that is no whole number from 0 to 9."""
    return int(2 * exponent) if exponent in [n / 2 for n in range(10)] else -1


@triton.jit
def _times_power(value, base, exponent: tl.constexpr):
    """value · base^exponent: by products and a root up to 4.5; else by logarithms, with NaN of a negative base."""
    halves: tl.constexpr = _halves(exponent)
    if halves >= 0:
        for _ in tl.static_range(halves // 2):
            value = value * base
        if halves % 2 == 1:
            value = value * tl.sqrt(base)
        return value
    elif base.dtype == tl.float64:
        return value * tl.exp2(tl.log2(base) * exponent)
    else:
        return value * exp2_approx(tl.log2(base) * exponent)


@triton.jit
def _balance(y, alpha: tl.constexpr):
    """α_t = α·y + (1 - α)·(1 - y)"""
    return y * alpha + (1.0 - y) * (1.0 - alpha)


@triton.jit
def focal(args, constants: tl.constexpr):
    """loss = α_t · m^γ · cross entropy, with m = 1 - p_t = against·(1 - t) + agreeing·t

    The parts of the target are y and 1 - y. The constants are (alpha, gamma, wide); a negative alpha is none.
    """
    alpha: tl.constexpr = constants[0]
    gamma: tl.constexpr = constants[1]
    wide: tl.constexpr = constants[2]
    x, y = widen(args[0]), widen(args[1])
    t = _tail(x, wide)
    against, agreeing = _shares(x, y, 1.0 - y)
    cross_entropy = fma(tl.abs(x), against, _softplus(t, wide))
    loss = _times_power(cross_entropy, fma(agreeing, t, against * (1.0 - t)), gamma)
    if alpha >= 0:
        loss = loss * _balance(y, alpha)
    return (loss,)


@triton.jit
def focal_backward(args, constants: tl.constexpr):
    """grad_in = grad_out · α_t · sign(x) · m^(γ - 1) · (m·(u - v) + γ·(against - agreeing)·t·(1 - t)·cross entropy)

    with u = against·(1 - t), v = agreeing·t and m = u + v. Where y is 0 or 1 no digits cancel. The constants are
    (alpha, gamma).
    """
    alpha: tl.constexpr = constants[0]
    gamma: tl.constexpr = constants[1]
    wide: tl.constexpr = args[1].dtype.primitive_bitwidth > 16
    grad_out, x, y = widen(args[0]), widen(args[1]), widen(args[2])
    t = _tail(x, wide)
    against, agreeing = _shares(x, y, 1.0 - y)
    u, v = against * (1.0 - t), agreeing * t
    m = u + v
    slope = u - v
    if gamma != 0:
        pull = (against - agreeing) * gamma
        cross_entropy = fma(tl.abs(x), against, _softplus(t, wide))
        if gamma < 1:
            # A power below 0 is infinite where m is 0, as t is there; and t² is 0 before t^(γ + 1) is.
            smallest: tl.constexpr = 2.0**-1022 if x.dtype == tl.float64 else 2.0**-126
            m = tl.maximum(m, smallest, propagate_nan=tl.PropagateNan.ALL)
            slope = _times_power(fma(t / m * pull, (1.0 - t) * cross_entropy, slope), m, gamma)
        else:
            slope = _times_power(fma(m, slope, (1.0 - t) * pull * (t * cross_entropy)), m, gamma - 1)
    if alpha >= 0:
        slope = slope * _balance(y, alpha)
    return (grad_out * tl.where(x < 0, -1.0 * slope, slope),)
