"""Scalar maths of the gates, products with σ: as in :mod:`.formulas`, loaded values in, a tuple of results out.

Nothing is saved but the operands. σ is taken of them again in backward, as t = σ(-|x|), which is small and exact where
σ saturates; σ(x) and σ(-x) are t and 1 - t, in the order that the sign of x says.
"""

import triton
import triton.language as tl

from .formulas import _sigmoid
from .intrinsics import fma, widen


@triton.jit
def _both_sides(x, dtype: tl.constexpr):
    """σ(x) and σ(-x) of a widened x in one evaluation, each with all its digits."""
    t = _sigmoid(-tl.abs(x), dtype)
    return tl.where(x < 0, t, 1.0 - t), tl.where(x < 0, 1.0 - t, t)


@triton.jit
def _silu_slope(x, s, s_minus):
    """silu'(x) = σ(x)·(1 + x·σ(-x))"""
    return s * fma(x, s_minus, 1.0)


@triton.jit
def sigmoid_gate(args):
    """out = x · σ(gate)"""
    x, gate = args
    return (widen(x) * _sigmoid(widen(gate), gate.dtype),)


@triton.jit
def sigmoid_gate_backward(args):
    """grad_x = grad_out · σ(gate) and grad_gate = grad_out · x · σ(gate) · σ(-gate)"""
    grad_out, x, gate = args
    s, s_minus = _both_sides(widen(gate), gate.dtype)
    grad_x = widen(grad_out) * s
    return grad_x, grad_x * widen(x) * s_minus


@triton.jit
def sigmoid_gate_backward_to_gate(args):
    """grad_gate alone, for an x that needs no gradient"""
    return (sigmoid_gate_backward(args)[1],)


@triton.jit
def silu(args):
    """out = x · σ(x)"""
    (x,) = args
    return (widen(x) * _sigmoid(widen(x), x.dtype),)


@triton.jit
def silu_backward(args):
    """grad_x = grad_out · silu'(x)"""
    grad_out, x = args
    s, s_minus = _both_sides(widen(x), x.dtype)
    return (widen(grad_out) * _silu_slope(widen(x), s, s_minus),)


@triton.jit
def swiglu(args):
    """out = silu(gate) · up"""
    gate, up = args
    return (widen(gate) * _sigmoid(widen(gate), gate.dtype) * widen(up),)


@triton.jit
def swiglu_backward(args):
    """grad_gate = grad_out · up · silu'(gate) and grad_up = grad_out · silu(gate)"""
    grad_out, gate, up = args
    x = widen(gate)
    s, s_minus = _both_sides(x, gate.dtype)
    grad_out = widen(grad_out)
    return grad_out * widen(up) * _silu_slope(x, s, s_minus), grad_out * (x * s)
