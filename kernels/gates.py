"""x · σ(gate), of two tensors or of the halves of one: the formulas, and their launchers.

A launcher takes tensors and returns new ones; None for a memory layout that the templates do not take. Nothing is saved
but the operands: backward takes σ of them again, as t = σ(-|x|), which is small and exact where σ saturates.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from .elementwise import in_order_of, write, write_gradient
from .frame import Frame, frame_of_broadcast, frame_of_halves, half_of
from .intrinsics import widen
from .pointwise import empty_output, launch
from .scalar import both_sides, sigmoid_of
from .sums import add_up
from .tiled import launch_tiled, tiling


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


def launch_gate(x: Tensor, gate: Tensor) -> Tensor | None:
    """out = x · σ(gate). Moves 3 bytes per byte of ``x``, 2 where ``gate``, which broadcasts to it, is small."""
    out = empty_output(x)
    return out if launch_gate_out(x, gate, out) else None


def launch_gate_out(x: Tensor, gate: Tensor, out: Tensor) -> bool:
    """The same written to ``out``, which may be ``x`` or ``gate``; False where nothing was. Does not tell autograd."""
    if gate.shape == x.shape:
        return write(sigmoid_gate, (x, gate), (out,))
    layout = frame_of_broadcast(x.shape, (out.stride(), x.stride()), gate.shape, gate.stride())
    if layout is None:
        return False
    if layout.is_flat:
        launch(sigmoid_gate, (), (x, gate), (out,))
    else:
        launch_tiled(sigmoid_gate, (), (x, gate), (out,), layout)
    return True


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
    grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    layout = _gate_frame(gate, *grad_x, grad_out, x)
    if layout is None:
        grad_out = in_order_of(x, grad_out)
        layout = _gate_frame(gate, *grad_x, grad_out, x)
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
        sums = x.new_empty(shape, dtype=dtype)
    launch_tiled(formula, (), (grad_out, x, gate), grad_x, layout, (), sums, axis)
    if not in_place:
        add_up(sums, grad_gate, (batch_step, step or 0))
    return *grad_x, grad_gate


def _gate_frame(gate: Tensor, *tensors: Tensor) -> Frame | None:
    return frame_of_broadcast(tensors[0].shape, tuple([x.stride() for x in tensors]), gate.shape, gate.stride())


def launch_glu(x: Tensor, dim: int) -> Tensor | None:
    """out = a · σ(b) of the halves a and b of ``x`` along ``dim``, read in place. Moves 3 bytes per byte of ``out``."""
    return packed_result(sigmoid_gate, x, dim)


def launch_glu_backward(grad_out: Tensor, x: Tensor, dim: int) -> Tensor | None:
    """The gradient of both halves, written in place into one tensor. Moves 5 bytes per byte of ``grad_out``."""
    return packed_gradient(sigmoid_gate_backward, grad_out, x, dim)


def result(formula: Any, first: Tensor, *others: Tensor, constants: tuple[Any, ...] = ()) -> Tensor | None:
    """A new tensor, in the memory order of ``first``."""
    out = empty_output(first)
    return out if write(formula, (first, *others), (out,), constants=constants) else None


def packed_result(formula: Any, x: Tensor, dim: int, constants: tuple[Any, ...] = ()) -> Tensor | None:
    """Of the halves of ``x``, without making a view of either where it is contiguous."""
    if x.is_contiguous():
        layout = frame_of_halves(x.shape, dim, (None, 0, 1))
        if layout is not None:
            out = x.new_empty(half_of(x.shape, dim))
            launch_tiled(formula, (), (x, x), (out,), layout, constants)
            return out
    return result(formula, *x.chunk(2, dim), constants=constants)


def packed_gradient(
    formula: Any, grad_out: Tensor, x: Tensor, dim: int, constants: tuple[Any, ...] = ()
) -> Tensor | None:
    grad_x = empty_output(x)
    if x.is_contiguous() and grad_out.is_contiguous():
        layout = frame_of_halves(x.shape, dim, (0, 1, None, 0, 1))
        if layout is not None:
            launch_tiled(formula, (), (grad_out, x, x), (grad_x, grad_x), layout, constants)
            return grad_x
    written = write_gradient(formula, grad_out, x.chunk(2, dim), grad_x.chunk(2, dim), constants)
    return grad_x if written else None
