"""``swiglu``: silu(gate) · up, the feed-forward gate of today's transformers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.family import fused


def _op(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _packed_op(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return _op(gate, up)


def _gradients(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    s, s_minus = fused.both_sides(gate)
    silu = gate * s
    return grad_out * up * (s + silu * s_minus), grad_out * silu


def _packed_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    return torch.cat(_gradients(grad_out, *x.chunk(2, -1)), -1)


class SwiGLUFunction(Function):
    """silu(gate) · up with both gradients in one pass.

    Saved for backward: ``gate``, and not silu(gate); ``up``, unless ``gate`` needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from sigmoid_op.kernels.gates import swiglu_forward

        fused.save(ctx, gate, up if ctx.needs_input_grad[0] else None)
        return fused.forward(swiglu_forward, _op, gate, up)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        from sigmoid_op.kernels.gates import swiglu_backward, swiglu_forward

        if grad_out is None:
            return None, None
        gate, up = ctx.saved_tensors
        if up is None:  # grad_up = silu(gate) · grad_out
            return None, fused.backward(lambda g, x: swiglu_forward(x, g), lambda g, x: _op(x, g), grad_out, gate)
        grad_gate, grad_up = fused.backward(swiglu_backward, _gradients, grad_out, gate, up)
        return grad_gate, grad_up


class PackedSwiGLUFunction(Function):
    """The same of one tensor that holds gate and up side by side. Saved for backward: that tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from sigmoid_op.kernels.gates import packed_swiglu_forward

        fused.save(ctx, x)
        return fused.forward(packed_swiglu_forward, _packed_op, x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Tensor | None:
        from sigmoid_op.kernels.gates import packed_swiglu_backward

        grad_in: Tensor | None = fused.backward(packed_swiglu_backward, _packed_gradient, grad_out, *ctx.saved_tensors)
        return grad_in


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    r"""Gate ``up`` by silu(gate): ``F.silu(gate) * up`` in one pass over memory.

    .. math:: \text{swiglu}(g, u) = g \, \sigma(g) \, u

    Large CUDA tensors of one floating dtype take a fused Triton kernel, which moves 3 bytes per byte of ``gate`` where
    PyTorch moves 5, and 5 in backward where it moves 9; everything else goes to PyTorch.

    Args:
        gate: a tensor of any shape; without ``up``, one of shape [..., 2d] that holds gate and up side by side, as a
            merged projection writes them. It is read, and its gradient written, in place, without a copy.
        up: a tensor of the shape and dtype of ``gate``.

    Returns:
        a tensor of the shape of ``gate``, or [..., d].

    Saved for backward, where a kernel runs: ``gate`` and ``up``; where ``gate`` needs no gradient, ``gate`` alone.

    Raises:
        ValueError: without ``up``, for a last dimension that is not there or of odd size.
        Otherwise whatever ``F.silu(gate) * up`` raises.

    Source: N. Shazeer, *GLU Variants Improve Transformer*, 2020.
    """
    if torch.jit.is_scripting():
        return _packed_op(gate) if up is None else _op(gate, up)
    if up is None:
        # What FX or TorchScript traces has no size yet.
        if isinstance(gate, Tensor) and not torch.jit.is_tracing() and (gate.dim() == 0 or gate.shape[-1] % 2):
            raise ValueError(f"swiglu needs a last dimension of even size to halve, got shape {tuple(gate.shape)}")
        if dispatch.AVAILABLE and dispatch.fuses(gate):
            packed_out: Tensor = PackedSwiGLUFunction.apply(gate)
            return packed_out
        return _packed_op(gate)
    if dispatch.AVAILABLE and dispatch.fuses(gate, up) and gate.dtype == up.dtype and gate.shape == up.shape:
        out: Tensor = SwiGLUFunction.apply(gate, up)
        return out
    return _op(gate, up)
