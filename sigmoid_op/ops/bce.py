"""``binary_cross_entropy_with_logits``: the loss of a binary or multi-label classifier."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import kept, shared
from sigmoid_op.ops.shared import EagerFunction, kernels


def _op(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    divisor: float | Tensor | None,
    reduction: str,
) -> Tensor:
    if mask is None and divisor is None:
        return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    counts = kept.counts(mask)
    losses = F.binary_cross_entropy_with_logits(
        kept.only(counts, input), target, weight, reduction="none", pos_weight=pos_weight
    )
    return kept.reduced(losses, counts, reduction, divisor)


def _gradient(
    grad_out: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    divisor: Tensor | None,
    number: float | None,
    reduction: str,
) -> Tensor:
    counts = kept.counts(mask)
    x, y = kept.only(counts, x), kept.only(counts, y)
    s, s_minus = shared.both_sides(x)
    positive = y if pos_weight is None else kept.only(counts, pos_weight) * y
    slope = (1 - y) * s - positive * s_minus
    slope = slope if weight is None else kept.only(counts, weight) * slope
    return kept.only(counts, kept.grad_per_element(grad_out, x, reduction, divisor, number) * slope)


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    divisor: float | Tensor | None,
    reduction: str,
) -> Tensor:
    out: Tensor | None = None
    if not dispatch.is_watched():
        dtype = shared.result_dtype(target.dtype, input.device.type)
        out = kernels.kept.launch_bce(input, target, weight, pos_weight, mask, divisor, reduction, dtype)
    return _op(input, target, weight, pos_weight, mask, divisor, reduction) if out is None else out


class BCEWithLogitsFunction(EagerFunction):
    """The loss with the gradient of its input. Saved for backward: all its tensors, and no result of them."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        mask: Tensor | None,
        divisor: float | Tensor | None,
        reduction: str,
    ) -> Tensor:
        tensor, ctx.number = kept.parts(divisor)
        shared.save(ctx, input, target, weight, pos_weight, mask, tensor)
        ctx.reduction = reduction
        return _forward(input, target, weight, pos_weight, mask, divisor, reduction)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_in: Tensor | None = None
        if grad_out is not None:
            *operands, mask, tensor = ctx.saved_tensors
            if dispatch.reads(grad_out, *operands):
                divisor = ctx.number if tensor is None else tensor
                grad_in = kernels.kept.launch_bce_backward(grad_out, *operands, mask, divisor, ctx.reduction)
            if grad_in is None:
                gradient = partial(_gradient, number=ctx.number, reduction=ctx.reduction)
                grad_in = shared.by_operators(gradient, grad_out, *operands, mask, tensor)
        return grad_in, None, None, None, None, None, None


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
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
        mask: which elements count, a tensor of bool or of numbers that broadcasts to the shape of ``input``. What
            stands beside False or 0 adds nothing to loss and gradient, not even NaN; a mean is that of the others.
        normalizer: a number above 0, or a tensor without dimensions, that the sum is divided by, in place of the
            number of elements for "mean". With "none" it is an error.

    Returns:
        a tensor of the dtype of ``target``, as PyTorch has it (under autocast float32 in place of 16 bits): a scalar,
        or for the reduction "none" of the shape of ``input``.

    Saved for backward, where a kernel runs: the tensors given, and the divisor of a mean with ``mask``.

    Raises:
        TypeError, ValueError: for a ``mask`` or ``normalizer`` other than these, or beside ``size_average`` or
            ``reduce``. Otherwise whatever ``F.binary_cross_entropy_with_logits`` raises for the same arguments.

    Source: :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
    """
    if (mask is not None or normalizer is not None) and (size_average is not None or reduce is not None):
        raise ValueError(f"mask and normalizer go with reduction, got size_average={size_average}, reduce={reduce}")
    if torch.jit.is_scripting():
        if mask is not None or normalizer is not None:
            return _op(input, target, weight, pos_weight, mask, normalizer, reduction)
        return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)
    plain = mask is None and normalizer is None
    if not plain:
        kept.check(input, reduction, mask, normalizer)
    if (
        dispatch.AVAILABLE
        and size_average is None
        and reduce is None
        and reduction in shared.REDUCTIONS
        and shared.takes_loss("bce", input, target, weight, pos_weight)
        and (plain or kept.readable(input, mask, normalizer))
    ):
        divisor = None if plain else kept.divisor(input, reduction, mask, normalizer)
        call = BCEWithLogitsFunction.apply if dispatch.records(input) else _forward
        out: Tensor = call(input, target, weight, pos_weight, mask, divisor, reduction)
        return out
    if not plain:
        return _op(input, target, weight, pos_weight, mask, normalizer, reduction)
    return F.binary_cross_entropy_with_logits(input, target, weight, size_average, reduce, reduction, pos_weight)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    r"""Compare logits with targets: a drop-in for :class:`torch.nn.BCEWithLogitsLoss`.

    .. math:: \ell = -w \left( p \, y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    Arguments and buffers are those of ``nn.BCEWithLogitsLoss``.
    Its call takes ``mask`` and ``normalizer``, too. See :func:`sigmoid_op.binary_cross_entropy_with_logits`.

    Shape:
        - Input: any
        - Target: that of the input
        - Output: scalar, or for the reduction "none" that of the input
    """

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            mask=mask,
            normalizer=normalizer,
        )


fx.wrap("binary_cross_entropy_with_logits")  # symbolic tracing calls it as it is, with what is not given
