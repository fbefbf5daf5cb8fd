"""``binary_cross_entropy_with_logits``: the loss of a binary or multi-label classifier."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared
from sigmoid_op.ops.shared import kernels


def _op(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)


def _gradient(
    grad_out: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str
) -> Tensor:
    s, s_minus = shared.both_sides(x)
    positive = y if pos_weight is None else pos_weight * y
    slope = (1 - y) * s - positive * s_minus
    return shared.grad_per_element(grad_out, x, reduction) * (slope if weight is None else weight * slope)


def _forward(input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str) -> Tensor:
    out: Tensor | None = None
    if not dispatch.is_watched():
        dtype = shared.result_dtype(target.dtype, input.device.type)
        out = kernels.losses.launch_bce(input, target, weight, pos_weight, reduction, dtype)
    return _op(input, target, weight, pos_weight, reduction) if out is None else out


class BCEWithLogitsFunction(Function):
    """The loss with the gradient of its input. Saved for backward: all its tensors, and no result of them."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str
    ) -> Tensor:
        shared.save(ctx, input, target, weight, pos_weight)
        ctx.reduction = reduction
        return _forward(input, target, weight, pos_weight, reduction)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        if grad_out is None:
            return None, None, None, None, None
        saved = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, *saved):
            grad_in = kernels.losses.launch_bce_backward(grad_out, *saved, ctx.reduction)
        if grad_in is None:
            grad_in = shared.by_operators(partial(_gradient, reduction=ctx.reduction), grad_out, *saved)
        return grad_in, None, None, None, None


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    r"""Compare logits with targets: a drop-in for :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    .. math:: \ell = -w \left( p \, y \log \sigma(x) + (1 - y) \log \sigma(-x) \right), \qquad
        \frac{\partial \ell}{\partial x} = w \left( (1 - y) \, \sigma(x) - p \, y \, \sigma(-x) \right)

    with the input x, the target y, ``weight`` w and ``pos_weight`` p. Large CUDA tensors take a fused Triton kernel,
    which reads input and target once, and again for the gradient. Loss and gradient keep their digits where they are
    nearly 0, and sums have the same bits on every run. Everything else goes to PyTorch: float64 beside other dtypes, a
    target that requires a gradient, and the deprecated ``size_average`` and ``reduce``.

    At an infinite input the kernel's loss is 0 where the input is right (-inf for 0, inf for 1) and inf where it is
    wrong. PyTorch's own function, which everything else goes to, finds NaN in all of these but inf for 0.

    Args:
        input: logits, a tensor of any shape.
        target: a tensor of that shape and any floating dtype; labels of 0 or 1, or soft ones between them.
        weight: a factor of the loss that broadcasts to the shape of ``input``.
        size_average: deprecated.
        reduce: deprecated.
        reduction: "none", "mean" or "sum".
        pos_weight: a factor of the positive part, the y above, that broadcasts to the shape of ``input``.

    Returns:
        a tensor of the dtype of ``target``, as PyTorch has it (under autocast float32 in place of 16 bits): a scalar,
        or for the reduction "none" of the shape of ``input``.

    Saved for backward, where a kernel runs: the tensors given.

    Raises:
        whatever ``F.binary_cross_entropy_with_logits`` raises for the same arguments.

    Source: :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
    """
    if torch.jit.is_scripting():
        return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)
    if (
        dispatch.AVAILABLE
        and size_average is None
        and reduce is None
        and reduction in shared.REDUCTIONS
        and shared.takes_loss("bce", input, target, weight, pos_weight)
    ):
        call = BCEWithLogitsFunction.apply if dispatch.records(input) else _forward
        out: Tensor = call(input, target, weight, pos_weight, reduction)
        return out
    return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    r"""Compare logits with targets: a drop-in for :class:`torch.nn.BCEWithLogitsLoss`.

    .. math:: \ell = -w \left( p \, y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    Arguments and buffers are those of ``nn.BCEWithLogitsLoss``.
    See :func:`sigmoid_op.binary_cross_entropy_with_logits`.

    Shape:
        - Input: any
        - Target: that of the input
        - Output: scalar, or for the reduction "none" that of the input
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
