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


class SwiGLUFunction(Function):
    """silu(gate) · up with both gradients in one pass. Saved for backward: ``gate`` and ``up``, and not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from sigmoid_op.kernels.gates import swiglu_forward

        return fused.forward(ctx, swiglu_forward, _op, gate, up)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        from sigmoid_op.kernels.gates import swiglu_backward

        return fused.backward(ctx, swiglu_backward, _op, grad_out)


class PackedSwiGLUFunction(Function):
    """The same of one tensor that holds gate and up side by side. Saved for backward: that tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from sigmoid_op.kernels.gates import packed_swiglu_forward

        return fused.forward(ctx, packed_swiglu_forward, _packed_op, x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        from sigmoid_op.kernels.gates import packed_swiglu_backward

        return fused.backward(ctx, packed_swiglu_backward, _packed_op, grad_out)


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

    Saved for backward: ``gate`` and ``up``.

    Raises:
        ValueError: without ``up``, for a last dimension that is not there or of odd size.
        Otherwise whatever ``F.silu(gate) * up`` raises.

    Source: N. Shazeer, *GLU Variants Improve Transformer*, 2020.
    """
    out: Tensor
    if up is None:
        # What FX or TorchScript traces has no size yet.
        if isinstance(gate, Tensor) and not torch.jit.is_tracing() and (gate.dim() == 0 or gate.shape[-1] % 2):
            raise ValueError(f"swiglu needs a last dimension of even size to halve, got shape {tuple(gate.shape)}")
        if dispatch.AVAILABLE and dispatch.fuses(gate):
            out = PackedSwiGLUFunction.apply(gate)
            return out
        return _packed_op(gate)
    if dispatch.AVAILABLE and dispatch.fuses(gate, up) and gate.dtype == up.dtype and gate.shape == up.shape:
        out = SwiGLUFunction.apply(gate, up)
        return out
    return _op(gate, up)
