"""What a user without us runs: torchvision's focal loss, which PyTorch itself does not have."""

import torch
from torch import Tensor
from torch.nn import functional as F


def reference_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    r"""Focal loss in PyTorch's operators, one by one as torchvision has them: what a user without us runs.

    .. math:: -\alpha_t \, (1 - p_t)^\gamma \log p_t

    where p_t is σ(inputs) and α_t is ``alpha`` for a target of 1, and 1 minus that for a target of 0.

    Raises:
        ValueError: for a reduction other than "none", "mean" and "sum".

    Source: torchvision.ops.sigmoid_focal_loss, BSD-3-Clause; T.-Y. Lin et al., *Focal Loss for Dense Object Detection*,
    2017.
    """
    p = torch.sigmoid(inputs)
    ce_loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce_loss * ((1 - p_t) ** gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; one of none, mean and sum was expected")
    return loss.mean() if reduction == "mean" else loss.sum()
