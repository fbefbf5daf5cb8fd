"""``LogSigmoid``, ``BCEWithLogitsLoss`` and ``SigmoidFocalLoss``: the losses as modules."""

from torch import Tensor, nn

from sigmoid_op.family.bce import binary_cross_entropy_with_logits
from sigmoid_op.family.focal import sigmoid_focal_loss
from sigmoid_op.family.logsigmoid import logsigmoid


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
