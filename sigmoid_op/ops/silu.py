"""``silu``: x · σ(x), also known as swish."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared
from sigmoid_op.ops.shared import kernels


def _gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    s, s_minus = shared.both_sides(x)
    return grad_out * (s * (1 + x * s_minus))


def _forward(x: Tensor) -> Tensor:
    out = None if dispatch.is_watched() else kernels.gates.launch_silu(x)
    return F.silu(x) if out is None else out


class SiLUFunction(Function):
    """silu with its fused gradient. Saved for backward: the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shared.save(ctx, x)
        return _forward(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Tensor | None:
        if grad_out is None:
            return None
        (x,) = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, x):
            grad_in = kernels.gates.launch_silu_backward(grad_out, x)
        return shared.by_operators(_gradient, grad_out, x) if grad_in is None else grad_in


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Apply the sigmoid linear unit to each element: a drop-in for :func:`torch.nn.functional.silu`.

    .. math:: \text{silu}(x) = x \, \sigma(x), \qquad \text{silu}'(x) = \sigma(x) \, (1 + x \, \sigma(-x))

    A large dense CUDA tensor of float16, bfloat16, float32 or float64 takes a fused Triton kernel; everything else, and
    every call with ``inplace``, goes to PyTorch. Where σ is subnormal, in float32 and bfloat16 below x = -87, out lacks
    digits, too; PyTorch's float32 result is 0 from x = -88.7 on.

    Args:
        input: a tensor of any shape that ``F.silu`` takes.
        inplace: whether to overwrite ``input``.

    Returns:
        a tensor of the shape, dtype and device of ``input``.

    Saved for backward: ``input``, as PyTorch does.

    Raises:
        whatever ``F.silu`` raises for the same arguments.

    Source: S. Elfwing, E. Uchibe, K. Doya, *Sigmoid-Weighted Linear Units*, 2017.
    """
    if torch.jit.is_scripting():
        return F.silu(input, inplace=inplace)
    if not inplace and dispatch.AVAILABLE and dispatch.takes("silu", input):
        out: Tensor = SiLUFunction.apply(input) if dispatch.records(input) else _forward(input)
        return out
    return F.silu(input, inplace=inplace)


class SiLU(nn.SiLU):
    r"""Apply the sigmoid linear unit to each element: a drop-in for :class:`torch.nn.SiLU`.

    .. math:: \text{SiLU}(x) = x \, \sigma(x)

    See :func:`sigmoid_op.silu`.

    Args:
        inplace: whether to overwrite the input, which PyTorch's operator does.

    Shape:
        - Input: any
        - Output: that of the input
    """

    def forward(self, input: Tensor) -> Tensor:
        return silu(input, self.inplace)
