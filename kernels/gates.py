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
from .intrinsics import fma, widen
from .pointwise import empty_output
from .scalar import both_sides, sigmoid_of
from .sums import add_up
from .tiled import launch_tiled, tiling


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
    wide, grad_gate = gate.expand_as(x), torch.empty_like(gate, memory_format=torch.contiguous_format)
    layout = frame_of(*grad_x, grad_out, x, wide)
    if layout is None:
        grad_out = in_order_of(x, grad_out)
        layout = frame_of(*grad_x, grad_out, x, wide)
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
    launch_tiled(formula, (), (grad_out, x, wide), grad_x, layout, (), sums, axis)
    if not in_place:
        add_up(sums, grad_gate, (batch_step, step or 0))
    return *grad_x, grad_gate


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
    grad_x = empty_output(x)
    return grad_x if write_gradient(silu_backward, grad_out, (x,), (grad_x,)) else None


def launch_swiglu(gate: Tensor, up: Tensor) -> Tensor | None:
    """out = silu(gate) · up. Moves 3 bytes per byte of ``gate``."""
    return _result(swiglu, gate, up)


def launch_swiglu_backward(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor] | None:
    """grad_gate = grad_out · up · silu'(gate), grad_up = grad_out · silu(gate). Moves 5 bytes per byte of ``gate``."""
    grad_gate, grad_up = empty_output(gate), empty_output(up)
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
