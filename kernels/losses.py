"""The losses: the formulas, which :mod:`.kept` launches, and logsigmoid.

All is made of t = σ(-|x|), which is small and exact where σ saturates. With it σ(x) and σ(-x) are t and 1 - t, in the
order that the sign of x says, and log(1 + e^-|x|) is -log(1 - t): one exponential per element, and no logarithm.

A target y, which need not be 0 or 1, has two parts, y and 1 - y. The one that speaks against the sign of x, y for x < 0
and 1 - y otherwise, is called ``against``, the other ``agreeing``. In their terms the loss is the same function of |x|
on both sides of 0, and the gradient changes sign. Operands may differ in dtype; ``wide`` says whether the result has
more than 16 bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import write, write_gradient
from .intrinsics import exp2_approx, fma, widen
from .pointwise import empty_output
from .scalar import log1p_exp, softplus, tail


@triton.jit
def logsigmoid(args):
    """out = log σ(x) = min(x, 0) - log(1 + e^-|x|)"""
    (x,) = args
    wide: tl.constexpr = x.dtype.primitive_bitwidth > 16
    x = widen(x)
    return (tl.minimum(x, 0.0) - log1p_exp(x, wide),)


@triton.jit
def logsigmoid_backward(args):
    """grad_in = grad_out · σ(-x)"""
    grad_out, x = args
    wide: tl.constexpr = x.dtype.primitive_bitwidth > 16
    x = widen(x)
    t = tail(x, wide)
    return (widen(grad_out) * tl.where(x < 0, 1.0 - t, t),)


@triton.jit
def _shares(x, positive, negative):
    """The parts of a target that speak against the sign of x, and for it."""
    return tl.where(x < 0, positive, negative), tl.where(x < 0, negative, positive)


@triton.jit
def _counted(x, against):
    """x, or 0 where nothing speaks against its sign: an infinite x that is right has the loss 0 rather than NaN."""
    return tl.where(against == 0, 0.0, x)


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
    loss = log1p_exp(x, wide)
    if has_pos_weight:
        positive = widen(args[2 + has_weight]) * y
        loss = loss * (positive + (1.0 - y))
        signed = tl.where(x < 0, -1.0 * positive, 1.0 - y)
    else:
        signed = tl.where(x < 0, 0.0, 1.0) - y
    if has_weight:
        weight = widen(args[2])
        signed = signed * weight
        loss = loss * weight
    return (fma(_counted(x, signed), signed, loss),)  # against·|x|, as both or neither have the sign of x


@triton.jit
def bce_backward(args, constants: tl.constexpr):
    """grad_in = grad_out · weight · sign(x) · (against·(1 - t) - agreeing·t)

    That is (1 - y)·σ(x) - pos_weight·y·σ(-x). ``args`` are grad_out, x, y, and weight and pos_weight where the
    constants (has_weight, has_pos_weight) say so. Without pos_weight the parts add up to 1, and the slope is
    against - t.
    """
    has_weight: tl.constexpr = constants[0]
    has_pos_weight: tl.constexpr = constants[1]
    wide: tl.constexpr = args[1].dtype.primitive_bitwidth > 16
    grad_out, x, y = widen(args[0]), widen(args[1]), widen(args[2])
    if has_weight:
        grad_out = grad_out * widen(args[3])
    t = tail(x, wide)
    if has_pos_weight:
        against, agreeing = _shares(x, widen(args[3 + has_weight]) * y, 1.0 - y)
        slope = fma(against, 1.0 - t, -1.0 * agreeing * t)
    else:
        slope = tl.where(x < 0, y, 1.0 - y) - t
    return (grad_out * tl.where(x < 0, -1.0 * slope, slope),)


@triton.constexpr_function
def _halves(exponent):
    """How many halves make up the exponent; -1 where that is no whole number from 0 to 9."""
    return int(2 * exponent) if exponent in [n / 2 for n in range(10)] else -1


@triton.jit
def _times_power(value, base, exponent: tl.constexpr):
    """value · base^exponent: by products and a root up to 4.5, else by logarithms; a whole power of any base."""
    halves: tl.constexpr = _halves(exponent)
    if halves >= 0:
        for _ in tl.static_range(halves // 2):
            value = value * base
        if halves % 2 == 1:
            value = value * tl.sqrt(base)
        return value
    if exponent % 1 == 0:
        if exponent % 2 == 1:
            value = tl.where(base < 0, -1.0 * value, value)
        base = tl.abs(base)
    if base.dtype == tl.float64:
        return value * tl.exp2(tl.log2(base) * exponent)
    else:
        return value * exp2_approx(tl.log2(base) * exponent)


@triton.constexpr_function
def _is_exact(alpha):
    """Whether α, 1 - α and 2α - 1 are numbers of 20 bits after the point, as 1/4 is."""
    return alpha * 2**20 == int(alpha * 2**20)


@triton.jit
def _balance(y, alpha: tl.constexpr):
    """α_t = α·y + (1 - α)·(1 - y)"""
    if _is_exact(alpha):
        return fma(y, 2.0 * alpha - 1.0, 1.0 - alpha)
    else:
        return fma(y, alpha, (1.0 - y) * (1.0 - alpha))


@triton.jit
def _missed(against, t):
    """m = 1 - p_t = against·(1 - t) + (1 - against)·t, exact where a label is hard"""
    return fma(against, 1.0 - t, fma(-1.0 * against, t, t))


@triton.jit
def focal(args, constants: tl.constexpr):
    """loss = α_t · m^γ · cross entropy, with m = 1 - p_t

    The parts of the target are y and 1 - y. The constants are (alpha, gamma, wide); a negative alpha is none.
    """
    alpha: tl.constexpr = constants[0]
    gamma: tl.constexpr = constants[1]
    wide: tl.constexpr = constants[2]
    x, y = widen(args[0]), widen(args[1])
    t = tail(x, wide)
    against = tl.where(x < 0, y, 1.0 - y)
    counting = against
    if alpha == 0 or alpha == 1:  # half of the labels count for nothing, however wrong the logit
        counting = against * _balance(y, alpha)
    cross_entropy = fma(_counted(tl.abs(x), counting), against, softplus(t, wide))
    loss = _times_power(cross_entropy, _missed(against, t), gamma)
    if alpha >= 0:
        loss = loss * _balance(y, alpha)
    return (loss,)


@triton.jit
def focal_backward(args, constants: tl.constexpr):
    """grad_in = grad_out · α_t · sign(x) · m^(γ - 1) · (m·(against - t) + γ·(2·against - 1)·t·(1 - t)·cross entropy)

    with m = 1 - p_t. Where y is 0 or 1 no digits cancel. The constants are (alpha, gamma).
    """
    alpha: tl.constexpr = constants[0]
    gamma: tl.constexpr = constants[1]
    wide: tl.constexpr = args[1].dtype.primitive_bitwidth > 16
    grad_out, x, y = widen(args[0]), widen(args[1]), widen(args[2])
    t = tail(x, wide)
    against = tl.where(x < 0, y, 1.0 - y)
    slope = against - t
    if gamma != 0:
        m = _missed(against, t)
        pull = fma(against, 2.0 * gamma, -1.0 * gamma)
        # t is 0 from |x| = 746 on, as is its product with a cross entropy that is finite.
        distance = tl.minimum(tl.abs(x), 1024.0, propagate_nan=tl.PropagateNan.ALL)
        cross_entropy = fma(distance, against, softplus(t, wide))
        if gamma < 1:
            # A power below 0 is infinite where m is 0, as t is there; and t² is 0 before t^(γ + 1) is.
            smallest: tl.constexpr = 2.0**-1022 if x.dtype == tl.float64 else 2.0**-126
            m = tl.where(tl.abs(m) < smallest, smallest, m)
            slope = _times_power(fma(t / m * pull, (1.0 - t) * cross_entropy, slope), m, gamma)
        else:
            slope = _times_power(fma(m, slope, (1.0 - t) * pull * (t * cross_entropy)), m, gamma - 1)
    if alpha >= 0:
        slope = slope * _balance(y, alpha)
    return (grad_out * tl.where(x < 0, -1.0 * slope, slope),)


def launch_logsigmoid(x: Tensor) -> Tensor | None:
    """out = log σ(x). Moves 2 bytes per byte of ``x``."""
    out = empty_output(x)
    return out if write(logsigmoid, (x,), (out,)) else None


def launch_logsigmoid_backward(grad_out: Tensor, x: Tensor) -> Tensor | None:
    """grad_in = grad_out · σ(-x). Moves 3 bytes per byte of ``x``."""
    grad_in = empty_output(x)
    return grad_in if write_gradient(logsigmoid_backward, grad_out, (x,), (grad_in,)) else None
