"""``silu``: x · σ(βx), for β = 1 also known as swish; ``quick_gelu`` for β = 1.702."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op._torch import scripts_as
from sigmoid_op.ops import shared
from sigmoid_op.ops.arguments import check_number
from sigmoid_op.ops.shared import EagerFunction, kernels


def _op(x: Tensor, beta: float) -> Tensor:
    return F.silu(x) if beta == 1 else x * torch.sigmoid(beta * x)


def _form(input: Tensor, inplace: bool = False, beta: float = 1.0) -> Tensor:
    """``silu`` in PyTorch's operators."""
    if beta == 1.0:
        return F.silu(input, inplace=inplace)
    if not inplace:
        return input * torch.sigmoid(beta * input)
    if input.requires_grad and torch.is_grad_enabled():
        x = input.clone()  # for backward, as F.silu keeps one
        return input.copy_(x * torch.sigmoid(beta * x))
    return input.mul_(torch.sigmoid(beta * input))


def _gradient(grad_out: Tensor, x: Tensor, beta: float) -> Tensor:
    s, s_minus = shared.both_sides(beta * x)
    return grad_out * (s * (1 + x * (beta * s_minus)))


def _forward(x: Tensor, beta: float) -> Tensor:
    out = None if dispatch.is_watched() else kernels.silu.launch_silu(x, beta)
    return _op(x, beta) if out is None else out


class SiLUFunction(EagerFunction):
    """x · σ(βx) with its fused gradient. Saved for backward: the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float) -> Tensor:
        shared.save(ctx, x)
        ctx.beta = beta
        return _forward(x, beta)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_out is None:
            return None, None
        (x,) = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, x):
            grad_in = kernels.silu.launch_silu_backward(grad_out, x, ctx.beta)
        if grad_in is None:
            grad_in = shared.by_operators(partial(_gradient, beta=ctx.beta), grad_out, x)
        return grad_in, None


@scripts_as(_form)
def silu(input: Tensor, inplace: bool = False, *, beta: float = 1.0) -> Tensor:
    r"""Apply the sigmoid linear unit to each element: a drop-in for :func:`torch.nn.functional.silu`.

    .. math:: \text{silu}(x) = x \, \sigma(\beta x), \qquad
        \text{silu}'(x) = \sigma(\beta x) \, (1 + \beta x \, \sigma(-\beta x))

    A large dense CUDA tensor of float16, bfloat16, float32 or float64 takes a fused Triton kernel, compiled for each
    ``beta``; everything else, and every call with ``inplace``, goes to PyTorch: for a ``beta`` other than 1 that is
    ``input * torch.sigmoid(beta * input)``, three launches. Where σ is subnormal, in float32 and bfloat16 below
    βx = -87, out lacks digits, too; PyTorch's float32 result is 0 from x = -88.7 on.

    Args:
        input: a tensor of any shape that ``F.silu`` takes.
        inplace: whether to overwrite ``input``.
        beta: a finite number, the slope of σ; it is not trained.

    Returns:
        a tensor of the shape, dtype and device of ``input``.

    Saved for backward: ``input``, as PyTorch does.

    Raises:
        TypeError: for a ``beta`` that is no Python number, such as a tensor.
        ValueError: for one that is not finite.
        Otherwise whatever ``F.silu`` raises for the same arguments.

    Source: S. Elfwing, E. Uchibe, K. Doya, *Sigmoid-Weighted Linear Units*, 2017; P. Ramachandran, B. Zoph, Q. Le,
    *Searching for Activation Functions*, 2017, for β.
    """
    if type(beta) is not float or beta != 1.0:
        check_number("beta", beta)
        beta = float(beta)  # PyTorch takes no whole number above 2^63
    if not inplace and dispatch.AVAILABLE and dispatch.takes("silu" if beta == 1.0 else "quick_gelu", input):
        out: Tensor = SiLUFunction.apply(input, beta) if dispatch.records(input) else _forward(input, beta)
        return out
    return F.silu(input, inplace) if beta == 1.0 else _form(input, inplace, beta)


def quick_gelu(input: Tensor) -> Tensor:
    r"""Approximate GELU by σ, as CLIP does: ``input * torch.sigmoid(1.702 * input)`` in one pass over memory.

    .. math:: \text{quick\_gelu}(x) = x \, \sigma(1.702 \, x)

    It is :func:`sigmoid_op.silu` with ``beta=1.702``; see there for dtypes and kernels.

    Args:
        input: a floating-point tensor of any shape.

    Returns:
        a tensor of the shape, dtype and device of ``input``.

    Saved for backward: ``input``.

    Raises:
        whatever ``input * torch.sigmoid(1.702 * input)`` raises.

    Source: D. Hendrycks, K. Gimpel, *Gaussian Error Linear Units*, 2016.
    """
    return silu(input, beta=1.702)


class SiLU(nn.SiLU):
    r"""Apply the sigmoid linear unit to each element: a drop-in for :class:`torch.nn.SiLU`.

    .. math:: \text{SiLU}(x) = x \, \sigma(\beta x)

    See :func:`sigmoid_op.silu`.

    Args:
        inplace: whether to overwrite the input, which PyTorch's operator does.
        beta: a finite number, the slope of σ.

    Shape:
        - Input: any
        - Output: that of the input
    """

    __constants__ = ["inplace", "beta"]  # noqa: RUF012  # as in nn.SiLU
    beta: float = 1.0  # on the class too, for modules that were made as nn.SiLU

    def __init__(self, inplace: bool = False, *, beta: float = 1.0) -> None:
        super().__init__(inplace)
        check_number("beta", beta)
        self.beta = float(beta)  # TorchScript does not convert an int

    def forward(self, input: Tensor) -> Tensor:
        return silu(input, self.inplace, beta=self.beta)

    def extra_repr(self) -> str:
        beta = "" if self.beta == 1 else f"beta={self.beta:g}"
        return ", ".join(filter(None, (super().extra_repr(), beta)))


class QuickGELU(nn.Module):
    r"""Approximate GELU by σ: the module form of :func:`sigmoid_op.quick_gelu`.

    .. math:: \text{QuickGELU}(x) = x \, \sigma(1.702 \, x)

    Shape:
        - Input: any
        - Output: that of the input
    """

    def forward(self, input: Tensor) -> Tensor:
        return quick_gelu(input)
