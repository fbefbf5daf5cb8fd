"""The losses' table of tests: a row for each way to call one, with PyTorch's form and the definition in mpmath."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss

Op = Callable[..., Tensor]
REDUCTIONS = ["none", "mean", "sum"]


def torch_focal(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """The focal loss by its definition, in PyTorch's operators."""
    cross_entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p = torch.sigmoid(inputs)
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets) if alpha >= 0 else 1.0
    loss = alpha_t * (1 - p_t) ** gamma * cross_entropy
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss with its options, and how many ulps a float32 (float64) result and gradient may be off."""

    name: str
    ours: Op
    theirs: Op
    definition: Callable[[Any, Any], Any]  # of a logit and its target, mpmath's numbers
    kernel: str
    ulps: float
    gradient_ulps: float
    options: dict[str, Any]

    def truth(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient of each logit, both in float64; the gradient by mpmath's own differentiation."""
        with mpmath.workdps(40):
            pairs = [(mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(x.tolist(), target.tolist(), strict=True)]
            losses = [float(self.definition(a, b)) for a, b in pairs]
            gradients = [float(mpmath.diff(lambda a, b=b: self.definition(a, b), a)) for a, b in pairs]
        return torch.tensor(losses, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)

    def given(self, x: Tensor) -> dict[str, Any]:
        """The options, weights in the dtype and on the device of ``x``."""
        return {k: v.to(x.device, x.dtype) if isinstance(v, Tensor) else v for k, v in self.options.items()}


def log_sigmoid(x: Any) -> Any:
    return -mpmath.log1p(mpmath.exp(-x))


def _cross_entropy(x: Any, y: Any, weight: float = 1, pos_weight: float = 1) -> Any:
    return -weight * (pos_weight * y * log_sigmoid(x) + (1 - y) * log_sigmoid(-x))


def _bce(name: str, **weights: float) -> Loss:
    ours, theirs = binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    options, n = {key: torch.tensor(value) for key, value in weights.items()}, len(weights)
    return Loss(name, ours, theirs, lambda x, y: _cross_entropy(x, y, **weights), "bce", 2.0 + n, 1.5 + n, options)


def focal(alpha: float, gamma: float, ulps: float = 200.0, gradient_ulps: float = 200.0) -> Loss:
    """The row of a focal loss; by default with what ``gamma`` costs where it is not a half from 0 to 4.5."""

    def definition(x: Any, y: Any) -> Any:
        alpha_t = alpha * y + (1 - mpmath.mpf(alpha)) * (1 - y) if alpha >= 0 else 1
        missed = (y * mpmath.exp(-x) + (1 - y)) / (1 + mpmath.exp(-x))  # 1 - p_t
        return alpha_t * missed**gamma * _cross_entropy(x, y)

    name, options = f"focal alpha={alpha} gamma={gamma}", {"alpha": alpha, "gamma": gamma}
    return Loss(name, sigmoid_focal_loss, torch_focal, definition, "focal", ulps, gradient_ulps, options)


BCE = _bce("bce")
WEIGHTED_BCE = _bce("bce weighted", weight=0.75, pos_weight=3.25)
FOCAL = focal(0.25, 2, 6.0, 9.0)
LOSSES = [
    BCE,
    _bce("bce with weight", weight=0.375),
    _bce("bce with pos_weight", pos_weight=3.25),
    WEIGHTED_BCE,
    FOCAL,
    focal(-1, 0, 2.0, 1.5),
    focal(1, 1, 4.0, 6.0),
    focal(0.1, 3, 8.0, 12.0),
    focal(-1, 4, 10.0, 15.0),
    focal(0.25, 1.5, 6.0, 9.0),
    focal(0.75, 0.5, 6.0, 9.0),
    focal(0.25, 2.2, 200.0, 200.0),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
each_kind = pytest.mark.parametrize("loss", [BCE, WEIGHTED_BCE, FOCAL], ids=lambda loss: loss.name)

N, C = 12, 20  # logits, as rows of classes


def logits(dtype: torch.dtype, device: str) -> Tensor:
    x = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype).requires_grad_()


def hard_labels(x: Tensor) -> Tensor:
    """Those whose gradients keep all their digits."""
    return (torch.arange(N * C).view(N, C) % 5 == 0).to(x.device, x.dtype)


def classes(x: Tensor) -> Tensor:
    """Of each row, the background and rows to ignore among them."""
    return torch.tensor([0, C, -1, 3, C - 1, 5, 5, -1, C, 7, 11, 0], device=x.device)


def rows(x: Tensor) -> Tensor:
    """A mask of some."""
    return (torch.arange(N).view(N, 1) % 4 < 2).to(x.device)
