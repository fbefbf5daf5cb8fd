"""``sigmoid_focal_loss``: cross entropy that leaves easy examples aside, for dense object detection."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import kept, shared
from sigmoid_op.ops.shared import EagerFunction, kernels


def _are_classes(inputs: Tensor, targets: Tensor) -> bool:
    return (
        isinstance(targets, Tensor)
        and not targets.is_floating_point()
        and targets.dim() < inputs.dim()
        and targets.shape == inputs.shape[:-1]
        and not targets.is_complex()
        and targets.dtype != torch.bool
    )


def _in_class(inputs: Tensor, targets: Tensor) -> Tensor:
    return targets.unsqueeze(-1) == torch.arange(inputs.shape[-1], device=inputs.device)


def _class_focal_loss(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    positive = _in_class(inputs, targets)
    toward = torch.where(positive, inputs, -inputs)
    missed = torch.sigmoid(-toward.clamp(-1024.0, 1024.0))  # beyond, it has no slope: not even one times infinity
    loss = -F.logsigmoid(toward) * missed**gamma
    if alpha < 0:
        return loss
    # Where labels count for nothing, so does an infinite loss.
    of_positive = alpha * loss if alpha > 0 else 0 * missed
    of_negative = (1 - alpha) * loss if alpha < 1 else 0 * missed
    return torch.where(positive, of_positive, of_negative)


def _counting(inputs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which elements count; None for all."""
    counts = kept.counts(mask)
    if not _are_classes(inputs, targets):
        return counts
    known = (targets >= 0).unsqueeze(-1)
    return known if counts is None else known & counts


def _gradient(
    grad_out: Tensor,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    divisor: Tensor | None,
    number: float | None,
    alpha: float,
    gamma: float,
    reduction: str,
) -> Tensor:
    counts = _counting(x, y, mask)
    labels = _in_class(x, y).to(x.dtype) if _are_classes(x, y) else y
    x, y = kept.only(counts, x), kept.only(counts, labels)
    s, s_minus = shared.both_sides(x)
    near = x.clamp(-1024, 1024)  # beyond, the product of both sides is 0, as it is with a cross entropy that is finite
    cross_entropy = -(y * F.logsigmoid(near) + (1 - y) * F.logsigmoid(-near))
    missed = y * s_minus + (1 - y) * s  # 1 - p_t
    slope = missed**gamma * ((1 - y) * s - y * s_minus)
    if gamma != 0:
        if gamma < 1:  # a power below 0 of 0, where the other factor is 0
            missed = torch.where(missed == 0, torch.finfo(x.dtype).tiny, missed)
        slope = slope + gamma * missed ** (gamma - 1) * ((1 - 2 * y) * s * s_minus) * cross_entropy
    if alpha >= 0:
        slope = slope * (alpha * y + (1 - alpha) * (1 - y))
    return kept.only(counts, kept.grad_per_element(grad_out, x, reduction, divisor, number) * slope)


def _may_be_infinite(x: Tensor) -> bool:
    """False where it is cheap to see that nothing is: in the CPU's memory, not in a graph."""
    if type(x) not in dispatch.TENSOR_TYPES or not x.is_cpu or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    try:
        return not math.isfinite(x.detach().sum().item())  # no sum with an infinity in it is finite
    except RuntimeError:  # of a batched or a fake tensor
        return True


def torchvision_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss`` without its checks, in its own operations; TorchScript can compile it.

    An infinite logit, where those find infinity less infinity, has the loss and the gradient that it has in the kernel.
    """
    infinite = True
    if not torch.jit.is_scripting():
        infinite = _may_be_infinite(inputs)
    # Beyond 1024, where σ is 0 or 1 and has no slope, the cross entropy is a straight line.
    near = inputs.clamp(-1024.0, 1024.0) if infinite else inputs
    p = torch.sigmoid(near)
    cross_entropy = F.binary_cross_entropy_with_logits(near, targets, reduction="none")
    negatives = 1 - targets
    p_t = p * targets + (1 - p) * negatives
    if infinite:
        beyond = inputs - near
        slope = torch.where(beyond > 0, negatives, -targets)
        counts = slope if alpha < 0 else slope * (alpha * targets + (1 - alpha) * negatives)
        cross_entropy = cross_entropy + slope * beyond.masked_fill(counts == 0, 0.0)
    out = cross_entropy * ((1 - p_t) ** gamma)
    if alpha >= 0:
        out = (alpha * targets + (1 - alpha) * negatives) * out
    if reduction == "mean":
        out = out.mean()
    elif reduction == "sum":
        out = out.sum()
    return out


def _op(
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    divisor: float | Tensor | None,
    alpha: float,
    gamma: float,
    reduction: str,
) -> Tensor:
    of_classes = _are_classes(inputs, targets)
    if mask is None and divisor is None and not of_classes:
        return torchvision_focal_loss(inputs, targets, alpha, gamma, reduction)
    counts = _counting(inputs, targets, mask)
    if of_classes:
        losses = _class_focal_loss(kept.only(counts, inputs), targets, alpha, gamma)
    else:
        losses = torchvision_focal_loss(kept.only(counts, inputs), targets, alpha, gamma)
    return kept.reduced(losses, counts, reduction, divisor)


def _forward(
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    divisor: float | Tensor | None,
    alpha: float,
    gamma: float,
    reduction: str,
) -> Tensor:
    out: Tensor | None = None
    if not dispatch.is_watched():
        dtype = inputs.dtype if inputs.dtype == targets.dtype else torch.promote_types(inputs.dtype, targets.dtype)
        dtype = shared.result_dtype(dtype, inputs.device.type)
        out = kernels.kept.launch_focal(inputs, targets, mask, divisor, alpha, gamma, reduction, dtype)
    return _op(inputs, targets, mask, divisor, alpha, gamma, reduction) if out is None else out


class SigmoidFocalLossFunction(EagerFunction):
    """The loss with the gradient of its inputs. Saved for backward: all its tensors, and no result of them."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        divisor: float | Tensor | None,
        alpha: float,
        gamma: float,
        reduction: str,
    ) -> Tensor:
        tensor, ctx.number = kept.parts(divisor)
        shared.save(ctx, inputs, targets, mask, tensor)
        ctx.options = (alpha, gamma, reduction)
        return _forward(inputs, targets, mask, divisor, alpha, gamma, reduction)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_in: Tensor | None = None
        if grad_out is not None:
            inputs, targets, mask, tensor = ctx.saved_tensors
            if dispatch.reads(grad_out, inputs, targets if targets.is_floating_point() else None):
                divisor = ctx.number if tensor is None else tensor
                launch = kernels.kept.launch_focal_backward
                grad_in = launch(grad_out, inputs, targets, mask, divisor, *ctx.options)
            if grad_in is None:
                alpha, gamma, reduction = ctx.options
                gradient = partial(_gradient, number=ctx.number, alpha=alpha, gamma=gamma, reduction=reduction)
                grad_in = shared.by_operators(gradient, grad_out, inputs, targets, mask, tensor)
        return grad_in, None, None, None, None, None, None


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Focus a detector on hard examples: a drop-in for ``torchvision.ops.sigmoid_focal_loss``.

    .. math:: \ell = -\alpha_t \, (1 - p_t)^\gamma \left( y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    with the input x, the target y, :math:`p_t = y \, \sigma(x) + (1 - y) \, \sigma(-x)` and
    :math:`\alpha_t = \alpha \, y + (1 - \alpha) (1 - y)`. Large CUDA tensors take a fused Triton kernel, compiled for
    each pair of ``alpha`` and ``gamma``, that reads inputs and targets once, and again for the gradient. It keeps the
    digits of :math:`1 - p_t` where :math:`p_t` is nearly 1. Sums have the same bits on every run. Everything else goes
    to PyTorch, in the operations of torchvision, which need not be installed: float64 beside other dtypes, and targets
    that require a gradient.

    An infinite logit has the loss 0 where it is right, else inf, and the gradient of the limit; torchvision finds NaN.

    Args:
        inputs: logits, a tensor of any shape.
        targets: a tensor of that shape and a floating dtype; labels of 0 or 1, or soft ones between them. Or a tensor
            of integers without the last dimension of ``inputs``, C: of each row of logits the class, from 0 to C - 1,
            C for the background, which is in no class, or -1 for a row to ignore, as ``mask`` does. The kernel makes
            no one-hot tensor of them. Classes are not looked at: others above C are background, below 0 ignored.
        alpha: the weight of positive examples, in [0, 1], beside 1 - alpha of negative ones; -1 for no weights.
        gamma: the exponent of 1 - p_t, which makes easy examples count less. Halves from 0 to 4.5 are computed by
            products and a root; for others float32 results are within 2.4e-5 (200 ulp). For labels outside [0, 1],
            where 1 - p_t may be negative, results are NaN unless ``gamma`` is a whole number, as in torchvision.
        reduction: "none", "mean" or "sum".
        mask: which elements count, a tensor of bool or of numbers that broadcasts to the shape of ``inputs``. What
            stands beside False or 0 adds nothing to loss and gradient, not even NaN; a mean is that of the others.
        normalizer: a number above 0, or a tensor without dimensions, such as the number of positives, that the sum is
            divided by, in place of the number of elements for "mean". With "none" it is an error.

    Returns:
        a tensor of the dtype that both promote to (under autocast float32 in place of 16 bits): of the shape of
        ``inputs``, or a scalar.

    Saved for backward, where a kernel runs: the tensors given, and the divisor of a mean of those that count.

    Raises:
        ValueError: for an ``alpha``, ``reduction``, ``mask`` or ``normalizer`` other than these, or targets of another
            shape; TypeError for a ``mask`` or ``normalizer`` of another type.
        Otherwise whatever PyTorch raises for the operations.

    Source: T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, 2017; torchvision.ops.sigmoid_focal_loss.
    """
    if torch.jit.is_scripting():
        return _op(inputs, targets, mask, normalizer, alpha, gamma, reduction)
    if not (0 <= alpha <= 1) and alpha != -1:
        raise ValueError(f"Invalid alpha value: {alpha}. alpha must be in the range [0,1] or -1 for ignore.")
    if reduction not in shared.REDUCTIONS:
        raise ValueError(  # torchvision's words, its missing quote included
            f"Invalid Value for arg 'reduction': '{reduction} \n Supported reduction modes: 'none', 'mean', 'sum'"
        )
    classes = targets if _are_classes(inputs, targets) else None
    plain = mask is None and normalizer is None and classes is None
    if not plain:
        kept.check(inputs, reduction, mask, normalizer)
    if (
        dispatch.AVAILABLE
        and isinstance(alpha, (int, float))
        and isinstance(gamma, (int, float))
        and shared.takes_loss("focal", inputs, targets if classes is None else inputs.detach())
        and (plain or kept.readable(inputs, mask, normalizer, classes))
    ):
        counts = mask if classes is None else _counting(inputs, targets, mask)
        divisor = None if plain else kept.divisor(inputs, reduction, counts, normalizer)
        call = SigmoidFocalLossFunction.apply if dispatch.records(inputs) else _forward
        out: Tensor = call(inputs, targets, mask, divisor, alpha, gamma, reduction)
        return out
    return _op(inputs, targets, mask, normalizer, alpha, gamma, reduction)


class SigmoidFocalLoss(nn.Module):
    r"""Focus a detector on hard examples: :func:`sigmoid_op.sigmoid_focal_loss` as a module.

    .. math:: \ell = -\alpha_t \, (1 - p_t)^\gamma \left( y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    Args:
        alpha: the weight of positive examples, in [0, 1]; -1 for no weights.
        gamma: the exponent of 1 - p_t. A tensor, such as a parameter to be learned, takes PyTorch's operations and gets
            its gradient; TorchScript refuses one that needs a gradient.
        reduction: "none", "mean" or "sum".

    Shape:
        - Inputs: any
        - Targets: that of the inputs, or for classes that without its last dimension
        - Output: that of the inputs, or for the reductions "mean" and "sum" scalar
    """

    def __init__(self, alpha: float = 0.25, gamma: float | Tensor = 2, reduction: str = "none") -> None:
        super().__init__()
        self.alpha = float(alpha)
        self.gamma: Any = gamma if isinstance(gamma, Tensor) else float(gamma)  # TorchScript does not convert an int
        self.reduction = reduction

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, self.alpha, self.gamma, self.reduction, mask, normalizer)

    def extra_repr(self) -> str:
        gamma = "" if isinstance(self.gamma, Tensor) else f"gamma={self.gamma:g}, "
        return f"alpha={self.alpha:g}, {gamma}reduction={self.reduction!r}"


fx.wrap("sigmoid_focal_loss")  # symbolic tracing calls it as it is, with what is not given
