"""``sigmoid_focal_loss``: cross entropy that leaves easy examples aside, for dense object detection."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op.ops import shared


class SigmoidFocalLossFunction(Function):
    """The loss with the gradient of its inputs. Saved for backward: inputs and targets, and no result of them."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
        from sigmoid_op.kernels.losses import launch_focal

        shared.save(ctx, inputs, targets)
        ctx.options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
        dtype = shared.result_dtype(torch.promote_types(inputs.dtype, targets.dtype), inputs.device)
        kernel, op = partial(launch_focal, **ctx.options, dtype=dtype), partial(torchvision_focal_loss, **ctx.options)
        return shared.forward(kernel, op, inputs, targets)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        from sigmoid_op.kernels.losses import launch_focal_backward

        kernel, operators = partial(launch_focal_backward, **ctx.options), partial(_gradient, **ctx.options)
        return shared.backward(kernel, operators, grad_out, *ctx.saved_tensors), None, None, None, None


def _gradient(grad_out: Tensor, x: Tensor, y: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    s, s_minus = shared.both_sides(x)
    cross_entropy = -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x))
    missed = y * s_minus + (1 - y) * s  # 1 - p_t
    slope = missed**gamma * ((1 - y) * s - y * s_minus)
    if gamma != 0:
        slope = slope + gamma * missed ** (gamma - 1) * ((1 - 2 * y) * s * s_minus) * cross_entropy
    if alpha >= 0:
        slope = slope * (alpha * y + (1 - alpha) * (1 - y))
    return shared.of_each(grad_out, x, reduction) * slope


def torchvision_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss`` without its checks, in its own operations; TorchScript can compile it."""
    p = torch.sigmoid(inputs)
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    out = cross_entropy * ((1 - p_t) ** gamma)
    if alpha >= 0:
        out = (alpha * targets + (1 - alpha) * (1 - targets)) * out
    if reduction == "mean":
        out = out.mean()
    elif reduction == "sum":
        out = out.sum()
    return out


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    r"""Focus a detector on hard examples: a drop-in for ``torchvision.ops.sigmoid_focal_loss``.

    .. math:: \ell = -\alpha_t \, (1 - p_t)^\gamma \left( y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    with the input x, the target y, :math:`p_t = y \, \sigma(x) + (1 - y) \, \sigma(-x)` and
    :math:`\alpha_t = \alpha \, y + (1 - \alpha) (1 - y)`. Large CUDA tensors take a fused Triton kernel, compiled for
    each pair of ``alpha`` and ``gamma``, that reads inputs and targets once, and again for the gradient. It keeps the
    digits of :math:`1 - p_t` where :math:`p_t` is nearly 1. Sums have the same bits on every run. Everything else goes
    to PyTorch, in the operations of torchvision, which need not be installed: float64 beside other dtypes, and targets
    that require a gradient.

    Args:
        inputs: logits, a tensor of any shape.
        targets: a tensor of that shape and a floating dtype; labels of 0 or 1, or soft ones between them.
        alpha: the weight of positive examples, in [0, 1], beside 1 - alpha of negative ones; -1 for no weights.
        gamma: the exponent of 1 - p_t, which makes easy examples count less. Halves from 0 to 4.5 are computed by
            products and a root; for others float32 results are within 2.4e-5 (200 ulp).
        reduction: "none", "mean" or "sum".

    Returns:
        a tensor of the dtype that both promote to (under autocast float32 in place of 16 bits): of the shape of
        ``inputs``, or a scalar.

    Saved for backward, where a kernel runs: ``inputs`` and ``targets``.

    Raises:
        ValueError: for an ``alpha`` or ``reduction`` other than these, or targets of another shape.
        Otherwise whatever PyTorch raises for the operations.

    Source: T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, 2017; torchvision.ops.sigmoid_focal_loss.
    """
    if torch.jit.is_scripting():
        return torchvision_focal_loss(inputs, targets, alpha, gamma, reduction)
    if not (0 <= alpha <= 1) and alpha != -1:
        raise ValueError(f"Invalid alpha value: {alpha}. alpha must be in the range [0,1] or -1 for ignore.")
    if reduction not in shared.REDUCTIONS:
        raise ValueError(  # torchvision's words, its missing quote included
            f"Invalid Value for arg 'reduction': '{reduction} \n Supported reduction modes: 'none', 'mean', 'sum'"
        )
    if (
        dispatch.AVAILABLE
        and isinstance(alpha, (int, float))
        and isinstance(gamma, (int, float))
        and shared.loss_fuses(inputs, targets)
    ):
        out: Tensor = SigmoidFocalLossFunction.apply(inputs, targets, alpha, gamma, reduction)
        return out
    return torchvision_focal_loss(inputs, targets, alpha, gamma, reduction)


class SigmoidFocalLoss(nn.Module):
    r"""Focus a detector on hard examples: :func:`sigmoid_op.sigmoid_focal_loss` as a module.

    .. math:: \ell = -\alpha_t \, (1 - p_t)^\gamma \left( y \log \sigma(x) + (1 - y) \log \sigma(-x) \right)

    Args:
        alpha: the weight of positive examples, in [0, 1]; -1 for no weights.
        gamma: the exponent of 1 - p_t.
        reduction: "none", "mean" or "sum".

    Shape:
        - Inputs: any
        - Targets: that of the inputs
        - Output: that of the inputs, or for the reductions "mean" and "sum" scalar
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2, reduction: str = "none") -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_focal_loss(inputs, targets, float(self.alpha), float(self.gamma), self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, reduction={self.reduction!r}"
