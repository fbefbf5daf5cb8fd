"""``swiglu``: silu(gate) · up, the feed-forward gate of today's transformers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared
from sigmoid_op.ops.shared import kernels


def _op(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _op_of_grad(grad_out: Tensor, gate: Tensor) -> Tensor:
    return _op(gate, grad_out)


def _packed_op(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return _op(gate, up)


def _gradients(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    s, s_minus = shared.both_sides(gate)
    silu = gate * s
    return grad_out * up * (s + silu * s_minus), grad_out * silu


def _packed_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    return torch.cat(_gradients(grad_out, *x.chunk(2, -1)), -1)


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    out = None if dispatch.is_watched() else kernels.gates.launch_swiglu(gate, up)
    return _op(gate, up) if out is None else out


def _packed_forward(x: Tensor) -> Tensor:
    out = None if dispatch.is_watched() else kernels.gates.launch_packed_swiglu(x)
    return _packed_op(x) if out is None else out


class SwiGLUFunction(Function):
    """silu(gate) · up with both gradients in one pass.

    Saved for backward: ``gate``, and not silu(gate); ``up``, unless ``gate`` needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        shared.save(ctx, gate, up if ctx.needs_input_grad[0] else None)
        return _forward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad_out is None:
            return None, None
        gate, up = ctx.saved_tensors
        by_kernel = dispatch.reads(grad_out, gate, up)
        if up is None:  # grad_up = silu(gate) · grad_out
            grad_up = kernels.gates.launch_swiglu(gate, grad_out) if by_kernel else None
            return None, shared.by_operators(_op_of_grad, grad_out, gate) if grad_up is None else grad_up
        found = kernels.gates.launch_swiglu_backward(grad_out, gate, up) if by_kernel else None
        grad_gate, grad_up = shared.by_operators(_gradients, grad_out, gate, up) if found is None else found
        return grad_gate, grad_up


class PackedSwiGLUFunction(Function):
    """The same of one tensor that holds gate and up side by side. Saved for backward: that tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shared.save(ctx, x)
        return _packed_forward(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Tensor | None:
        if grad_out is None:
            return None
        (x,) = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, x):
            grad_in = kernels.gates.launch_packed_swiglu_backward(grad_out, x)
        return shared.by_operators(_packed_gradient, grad_out, x) if grad_in is None else grad_in


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
        if dispatch.AVAILABLE and dispatch.takes("swiglu", gate):
            packed: Tensor = PackedSwiGLUFunction.apply(gate) if dispatch.records(gate) else _packed_forward(gate)
            return packed
        return _packed_op(gate)
    if dispatch.AVAILABLE and dispatch.takes("swiglu", gate, up) and gate.dtype == up.dtype and gate.shape == up.shape:
        out: Tensor = SwiGLUFunction.apply(gate, up) if dispatch.records(gate, up) else _forward(gate, up)
        return out
    return _op(gate, up)


class SwiGLU(nn.Module):
    r"""Gate one input by the SiLU of the other: the module form of :func:`sigmoid_op.swiglu`.

    .. math:: \text{SwiGLU}(g, u) = g \, \sigma(g) \, u

    Shape:
        - gate: any; without ``up`` [..., 2d], which holds both side by side
        - up: that of gate
        - Output: that of gate, or [..., d]
    """

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return swiglu(gate, up)
