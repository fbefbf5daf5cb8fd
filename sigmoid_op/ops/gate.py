"""``sigmoid_gate``: x · σ(gate), as in gated units and squeeze-and-excitation blocks."""

from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_op import dispatch
from sigmoid_op._torch import scripts_as
from sigmoid_op.ops import shared
from sigmoid_op.ops.overlap import are_apart, is_same, overlaps_itself
from sigmoid_op.ops.shared import EagerFunction, kernels


def _op(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


def _form(x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """``sigmoid_gate`` in PyTorch's operators."""
    return x * torch.sigmoid(gate) if out is None else torch.mul(x, torch.sigmoid(gate), out=out)


def gradients(grad_out: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Those of ``x`` and ``gate`` in PyTorch's operators."""
    s, s_minus = shared.both_sides(gate)
    grad_x = grad_out * s
    return grad_x, (grad_x * x * s_minus).sum_to_size(gate.shape)


def _forward(x: Tensor, gate: Tensor) -> Tensor:
    out = None if dispatch.is_watched() else kernels.gates.launch_gate(x, gate)
    return _op(x, gate) if out is None else out


class SigmoidGateFunction(EagerFunction):
    """x · σ(gate) with both gradients in one pass, or the one that is needed.

    Saved for backward: ``gate``, and not σ(gate); ``x``, unless ``gate`` needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        shared.save(ctx, x if ctx.needs_input_grad[1] else None, gate)
        return _forward(x, gate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad_out is None:
            return None, None
        x, gate = ctx.saved_tensors
        by_kernel = dispatch.reads(grad_out, x, gate)
        if x is None:  # grad_x = grad_out · σ(gate)
            grad_x = kernels.gates.launch_gate(grad_out, gate) if by_kernel else None
            return shared.by_operators(_op, grad_out, gate) if grad_x is None else grad_x, None
        to_x = ctx.needs_input_grad[0]
        found = kernels.gates.launch_gate_backward(grad_out, x, gate, to_x=to_x) if by_kernel else None
        if found is None:
            found = shared.by_operators(gradients, grad_out, x, gate)
        return found[0] if to_x else None, found[-1]


@scripts_as(_form)
def sigmoid_gate(x: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""Scale ``x`` by a gate between 0 and 1: ``x * torch.sigmoid(gate)`` in one pass over memory.

    .. math:: \text{out} = x \, \sigma(g), \qquad
        \frac{\partial\,\text{out}}{\partial x} = \sigma(g), \qquad
        \frac{\partial\,\text{out}}{\partial g} = x \, \sigma(g) \, \sigma(-g)

    Large CUDA tensors of one floating dtype take a fused Triton kernel, which moves 3 bytes per byte of ``x`` where
    PyTorch moves 5, and 5 in backward where it moves 9; its gradient of ``gate`` does not die where σ saturates.
    Everything else goes to PyTorch, whose gradient does. Slices of a fused projection, as ``qkvg[:, :d]``, are read
    where they are.

    Args:
        x: a tensor of any shape.
        gate: a tensor of the same dtype that broadcasts with ``x``: of its shape; one number per channel, as
            [N, C, 1, 1] for [N, C, H, W], contiguous or channels_last; one per feature, per row, as [N, 1] for
            [N, C], or per head, as [N, H, 1] for [N, H, D].
        out: where to write the result, as ``torch.mul`` does: ``x`` itself, for decoding in place, or another tensor.
            Such a call is not differentiable.

    Returns:
        a tensor of the shape and dtype that PyTorch would give it; ``out``, where given.

    Saved for backward, where a kernel runs: ``x`` and ``gate``; where ``gate`` needs no gradient, ``gate`` alone.
    PyTorch saves σ(gate) in place of ``gate``. So changing ``gate`` in place before backward is an error ("modified by
    an inplace operation") where a kernel ran, and works where none did; changing ``x`` is an error in both.

    Raises:
        whatever ``x * torch.sigmoid(gate)`` raises; with ``out``, ``torch.mul(x, torch.sigmoid(gate), out=out)``:
        RuntimeError where a gradient would be recorded, where ``out`` overlaps itself or part of ``x``, and for a dtype
        that cannot hold the result. One of another shape is resized, with PyTorch's warning.

    Source: J. Hu, L. Shen, G. Sun, *Squeeze-and-Excitation Networks*, 2018.
    """
    if out is not None:
        return out if _wrote(x, gate, out) else _form(x, gate, out)
    if (
        dispatch.AVAILABLE
        and dispatch.takes("gate", x, gate)
        and x.dtype == gate.dtype
        and (x.shape == gate.shape or shared.broadcasts_to(gate, x))
    ):
        result: Tensor = SigmoidGateFunction.apply(x, gate) if dispatch.records(x, gate) else _forward(x, gate)
        return result
    return _op(x, gate)


def _wrote(x: Tensor, gate: Tensor, out: Tensor) -> bool:
    """Whether a kernel took the call: one whose every result depends on elements that it alone overwrites, if any."""
    if not (
        dispatch.AVAILABLE
        and dispatch.takes("gate", x, gate, out)
        and x.dtype == gate.dtype == out.dtype
        and out.shape == x.shape
        and shared.broadcasts_to(gate, x)
        and not dispatch.is_watched()
        and not dispatch.records(x, gate, out)
        and (torch.is_inference_mode_enabled() or not out.is_inference())
        and not overlaps_itself(out)
        and all(is_same(out, operand) or are_apart(out, operand) for operand in (x, gate))
    ):
        return False
    written: bool = kernels.gates.launch_gate_out(x, gate, out)
    if written and not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return written


class SigmoidGate(nn.Module):
    r"""Scale the first input by a gate: the module form of :func:`sigmoid_op.sigmoid_gate`.

    .. math:: \text{SigmoidGate}(x, g) = x \, \sigma(g)

    Shape:
        - x: any
        - gate: that of x, or one that broadcasts to it
        - Output: that of x
    """

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return sigmoid_gate(x, gate)
