"""``sigmoid_gate``: x · σ(gate), as in gated units and squeeze-and-excitation blocks."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sigmoid_op import dispatch
from sigmoid_op.family import fused


def _op(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


class SigmoidGateFunction(Function):
    """x · σ(gate) with both gradients in one pass. Saved for backward: ``x`` and ``gate``, and not σ(gate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        from sigmoid_op.kernels.gates import sigmoid_gate_forward

        return fused.forward(ctx, sigmoid_gate_forward, _op, x, gate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        from sigmoid_op.kernels.gates import sigmoid_gate_backward

        return fused.backward(ctx, sigmoid_gate_backward, _op, grad_out)


def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    r"""Scale ``x`` by a gate between 0 and 1: ``x * torch.sigmoid(gate)`` in one pass over memory.

    .. math:: \text{out} = x \, \sigma(g), \qquad
        \frac{\partial\,\text{out}}{\partial x} = \sigma(g), \qquad
        \frac{\partial\,\text{out}}{\partial g} = x \, \sigma(g) \, \sigma(-g)

    Large CUDA tensors of one floating dtype take a fused Triton kernel, which moves 3 bytes per byte of ``x`` where
    PyTorch moves 5, and 5 in backward where it moves 9. The gradient of ``gate`` does not die where σ saturates.
    Everything else goes to PyTorch.

    Args:
        x: a tensor of any shape.
        gate: a tensor of the same dtype that broadcasts with ``x``: of its shape; one number per channel, as
            [N, C, 1, 1] for [N, C, H, W], contiguous or channels_last; one per feature, or per row.

    Returns:
        a tensor of the shape and dtype that PyTorch would give it.

    Saved for backward: ``x`` and ``gate``.

    Raises:
        whatever ``x * torch.sigmoid(gate)`` raises.

    Source: J. Hu, L. Shen, G. Sun, *Squeeze-and-Excitation Networks*, 2018.
    """
    if dispatch.AVAILABLE and dispatch.fuses(x, gate) and x.dtype == gate.dtype and fused.broadcasts_to(gate, x):
        out: Tensor = SigmoidGateFunction.apply(x, gate)
        return out
    return _op(x, gate)
