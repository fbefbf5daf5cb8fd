"""``glu``: the gated linear unit."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared
from sigmoid_op.ops.gate import gradients
from sigmoid_op.ops.shared import EagerFunction, kernels


def _gradient(grad_out: Tensor, x: Tensor, dim: int) -> Tensor:
    return torch.cat(gradients(grad_out, *x.chunk(2, dim)), dim)


def _forward(x: Tensor, dim: int) -> Tensor:
    out = None if dispatch.is_watched() else kernels.gates.launch_glu(x, dim)
    return F.glu(x, dim) if out is None else out


class GLUFunction(EagerFunction):
    """glu with its fused gradient, read from and written to the halves in place. Saved for backward: the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        shared.save(ctx, x)
        ctx.dim = dim
        return _forward(x, dim)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_out is None:
            return None, None
        (x,) = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, x):
            grad_in = kernels.gates.launch_glu_backward(grad_out, x, ctx.dim)
        if grad_in is None:
            grad_in = shared.by_operators(partial(_gradient, dim=ctx.dim), grad_out, x)
        return grad_in, None


def glu(input: Tensor, dim: int = -1) -> Tensor:
    r"""Gate one half of a tensor by the other: a drop-in for :func:`torch.nn.functional.glu`.

    .. math:: \text{glu}(a, b) = a \, \sigma(b)

    where ``input`` is split in half along ``dim`` to give a and b. Large CUDA tensors of a floating dtype take a fused
    Triton kernel that reads the halves where they are, for any ``dim``, and whose gradient of b does not die where σ
    saturates. Everything else goes to PyTorch, whose gradient does.

    Args:
        input: a tensor of any shape, even in size along ``dim``.
        dim: the dimension to halve.

    Returns:
        a tensor of half the size along ``dim``.

    Saved for backward: ``input``, as PyTorch does.

    Raises:
        whatever ``F.glu`` raises: for a dimension that is not there or of odd size, and for a tensor of no dimension.

    Source: Y. Dauphin et al., *Language Modeling with Gated Convolutional Networks*, 2017.
    """
    if torch.jit.is_scripting():
        return F.glu(input, dim)
    if dispatch.AVAILABLE and dispatch.takes("glu", input) and _halves_at(input, dim):
        out: Tensor = GLUFunction.apply(input, dim) if dispatch.records(input) else _forward(input, dim)
        return out
    return F.glu(input, dim)


def _halves_at(x: Tensor, dim: int) -> bool:
    """Whether ``x`` has a dimension ``dim``, of even size; of any other ``dim`` F.glu says what is wrong."""
    return type(dim) is int and -x.dim() <= dim < x.dim() and x.shape[dim] % 2 == 0


class GLU(nn.GLU):
    r"""Gate one half of the input by the other: a drop-in for :class:`torch.nn.GLU`.

    .. math:: \text{GLU}(a, b) = a \, \sigma(b)

    See :func:`sigmoid_op.glu`.

    Args:
        dim: the dimension to halve.

    Shape:
        - Input: any, even in size along ``dim``
        - Output: that of the input, half as large along ``dim``
    """

    def forward(self, input: Tensor) -> Tensor:
        return glu(input, self.dim)
