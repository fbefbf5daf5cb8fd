"""``logsigmoid``: the logarithm of σ(x)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared
from sigmoid_op.ops.shared import EagerFunction, kernels


def _gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    _, s_minus = shared.both_sides(x)
    return grad_out * s_minus


def _forward(x: Tensor) -> Tensor:
    out = None if dispatch.is_watched() else kernels.losses.launch_logsigmoid(x)
    return F.logsigmoid(x) if out is None else out


class LogSigmoidFunction(EagerFunction):
    """log σ(x) with its fused gradient. Saved for backward: the input."""

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
            grad_in = kernels.losses.launch_logsigmoid_backward(grad_out, x)
        return shared.by_operators(_gradient, grad_out, x) if grad_in is None else grad_in


def logsigmoid(input: Tensor) -> Tensor:
    r"""Take the logarithm of σ of each element: a drop-in for :func:`torch.nn.functional.logsigmoid`.

    .. math:: \text{logsigmoid}(x) = \log \sigma(x) = \min(x, 0) - \log(1 + e^{-|x|}), \qquad
        \text{logsigmoid}'(x) = \sigma(-x)

    A large CUDA tensor of float16, bfloat16, float32 or float64 takes a fused Triton kernel, whose result keeps all its
    digits down to subnormal numbers; everything else goes to PyTorch.

    Args:
        input: a tensor of any shape that ``F.logsigmoid`` takes.

    Returns:
        a tensor of the shape, dtype and device of ``input``.

    Saved for backward: ``input``, as PyTorch does.

    Raises:
        whatever ``F.logsigmoid`` raises for the same argument.

    Source: :func:`torch.nn.functional.logsigmoid`.
    """
    if torch.jit.is_scripting():
        return F.logsigmoid(input)
    if dispatch.AVAILABLE and dispatch.takes("logsigmoid", input):
        out: Tensor = LogSigmoidFunction.apply(input) if dispatch.records(input) else _forward(input)
        return out
    return F.logsigmoid(input)


class LogSigmoid(nn.LogSigmoid):
    r"""Take the logarithm of σ of each element: a drop-in for :class:`torch.nn.LogSigmoid`.

    .. math:: \text{LogSigmoid}(x) = \log \sigma(x)

    See :func:`sigmoid_op.logsigmoid`.

    Shape:
        - Input: any
        - Output: that of the input
    """

    def forward(self, input: Tensor) -> Tensor:
        return logsigmoid(input)
