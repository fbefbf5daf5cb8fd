"""Products with σ: the formulas, and their launchers.

A launcher takes tensors and returns new ones; None for a memory layout that the templates do not take. Nothing is saved
but the operands: backward takes σ of them again, as t = σ(-|x|), which is small and exact where σ saturates.
"""

from typing import Any

import torch
import triton
import triton.language as tl  # noqa: F401  # the interpreter wants it beside every jit function
from torch import Tensor

from .elementwise import frame_of, in_order_of, write, write_gradient
from .frame import Frame
from .intrinsics import fma, widen
from .pointwise import empty_output
from .scalar import both_sides, sigmoid_of
from .tiled import launch_tiled


@triton.jit
def _silu_slope(x, s, s_minus):
    """silu'(x) = σ(x)·(1 + x·σ(-x))"""
    return s * fma(x, s_minus, 1.0)


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
def silu(args):
    """out = x · σ(x)"""
    (x,) = args
    return (widen(x) * sigmoid_of(widen(x), x.dtype),)


@triton.jit
def silu_backward(args):
    """grad_x = grad_out · silu'(x)"""
    grad_out, x = args
    s, s_minus = both_sides(widen(x), x.dtype)
    return (widen(grad_out) * _silu_slope(widen(x), s, s_minus),)


@triton.jit
def swiglu(args):
    """out = silu(gate) · up"""
    gate, up = args
    return (widen(gate) * sigmoid_of(widen(gate), gate.dtype) * widen(up),)


@triton.jit
def swiglu_backward(args):
    """grad_gate = grad_out · up · silu'(gate) and grad_up = grad_out · silu(gate)"""
    grad_out, gate, up = args
    x = widen(gate)
    s, s_minus = both_sides(x, gate.dtype)
    grad_out = widen(grad_out)
    return grad_out * widen(up) * _silu_slope(x, s, s_minus), grad_out * (x * s)


def launch_gate(x: Tensor, gate: Tensor) -> Tensor | None:
    """out = x · σ(gate). Moves 3 bytes per byte of ``x``, 2 where ``gate``, which broadcasts to it, is small."""
    return _result(sigmoid_gate, x, gate.expand_as(x))


def launch_gate_backward(grad_out: Tensor, x: Tensor, gate: Tensor, *, to_x: bool) -> tuple[Tensor, ...] | None:
    """grad_x = grad_out · σ(gate), and grad_gate = grad_out · x · σ'(gate), summed where ``gate`` was broadcast.

    Moves 5 bytes per byte of ``x``, 3 where ``gate`` is small; one less without ``to_x``, which leaves grad_x out. The
    sums are accumulated in float32, or float64, in one order for all runs: each tile's in the kernel, and those of the
    tiles by PyTorch.
    """
    formula = sigmoid_gate_backward if to_x else sigmoid_gate_backward_to_gate
    grad_x = (torch.empty_like(x),) if to_x else ()
    if gate.shape == x.shape:
        grad_gate = torch.empty_like(gate)
        if not write_gradient(formula, grad_out, (x, gate), (*grad_x, grad_gate)):
            return None
    else:
        wide = gate.contiguous().expand_as(x)
        layout = frame_of(*grad_x, grad_out, x, wide)
        if layout is None:
            grad_out = in_order_of(x, grad_out)
            layout = frame_of(*grad_x, grad_out, x, wide)
        axis = None if layout is None else _summed_axis(layout)
        if layout is None or axis is None:
            return None
        (sums,) = launch_tiled(formula, (), (grad_out, x, wide), grad_x, layout, summed=1, axis=axis)
        grad_gate = _sum_to(gate, sums, layout, axis)
    return *grad_x, grad_gate


def _summed_axis(layout: Frame) -> int | None:
    """Along which side of a tile the last operand is broadcast: 0 its rows, 1 its columns."""
    _, row, column = layout.strides[-1]
    return 1 if column == 0 else 0 if row == 0 else None


def _sum_to(gate: Tensor, sums: Tensor, layout: Frame, axis: int) -> Tensor:
    """The sums of tiles, [batch, tile, row or column], added up to the shape of ``gate``."""
    batch, row, column = layout.strides[-1]
    kept = row if axis == 1 else column
    broadcast = [1]  # the tiles
    if batch == 0:
        broadcast.append(0)
    if kept == 0:
        broadcast.append(2)
    padded = (1,) * (len(layout.order) - gate.dim()) + gate.shape
    in_memory_order = sums.sum(broadcast).reshape([padded[d] for d in layout.order])
    back = sorted(range(len(layout.order)), key=lambda position: layout.order[position])
    return in_memory_order.permute(back).reshape(gate.shape).to(gate.dtype)


def launch_glu(x: Tensor, dim: int) -> Tensor | None:
    """out = a · σ(b) of the halves a and b of ``x`` along ``dim``, read in place. Moves 3 bytes per byte of ``out``."""
    return _result(sigmoid_gate, *x.chunk(2, dim))


def launch_glu_backward(grad_out: Tensor, x: Tensor, dim: int) -> Tensor | None:
    """The gradient of both halves, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    return _packed_gradient(sigmoid_gate_backward, grad_out, x, dim)


def launch_silu(x: Tensor) -> Tensor | None:
    """out = x · σ(x). Moves 2 bytes per byte of ``x``."""
    return _result(silu, x)


def launch_silu_backward(grad_out: Tensor, x: Tensor) -> Tensor | None:
    """grad_x = grad_out · silu'(x). Moves 3 bytes per byte of ``x``."""
    grad_x = torch.empty_like(x)
    return grad_x if write_gradient(silu_backward, grad_out, (x,), (grad_x,)) else None


def launch_swiglu(gate: Tensor, up: Tensor) -> Tensor | None:
    """out = silu(gate) · up. Moves 3 bytes per byte of ``gate``."""
    return _result(swiglu, gate, up)


def launch_swiglu_backward(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor] | None:
    """grad_gate = grad_out · up · silu'(gate), grad_up = grad_out · silu(gate). Moves 5 bytes per byte of ``gate``."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    written = write_gradient(swiglu_backward, grad_out, (gate, up), (grad_gate, grad_up))
    return (grad_gate, grad_up) if written else None


def launch_packed_swiglu(x: Tensor) -> Tensor | None:
    """out = silu(gate) · up of the halves of the last dimension, read in place. Moves 3 bytes per byte of ``out``."""
    return _result(swiglu, *x.chunk(2, -1))


def launch_packed_swiglu_backward(grad_out: Tensor, x: Tensor) -> Tensor | None:
    """The gradient of both halves, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    return _packed_gradient(swiglu_backward, grad_out, x, -1)


def _result(formula: Any, first: Tensor, *others: Tensor) -> Tensor | None:
    """A new tensor, in the memory order of ``first``."""
    out = empty_output(first)
    return out if write(formula, (first, *others), (out,)) else None


def _packed_gradient(formula: Any, grad_out: Tensor, x: Tensor, dim: int) -> Tensor | None:
    grad_x = torch.empty_like(x)
    return grad_x if write_gradient(formula, grad_out, x.chunk(2, dim), grad_x.chunk(2, dim)) else None
