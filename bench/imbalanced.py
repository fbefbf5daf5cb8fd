"""A multi-label classifier with imbalanced labels, trained with PyTorch's losses and with sigmoid_op's.

A sample is a canvas of four digits in a row, and its ten labels say which digits are on it. Real: the images, each as
it is among the 1,797 that scikit-learn ships, and so the labels; the canvases on which a network is tested are made of
images that no training canvas has. Made: which images share a canvas, and how often each digit is drawn: digit d with
a probability proportional to 1/(d + 1)², a law of Zipf's kind, from a fixed seed. So a 0 is on 98 % of the canvases,
and a 9 on 2 %.

Two trainings: with binary cross entropy, the positives of each label weighted by the negatives per positive, and with
focal loss. On CUDA a step is measured once more on a batch whose labels are above the library's size threshold.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn import functional as F

from bench import side_by_side
from bench.digits import digits
from bench.providers import OURS, TORCH
from bench.reference import torchvision_focal_loss
from bench.side_by_side import SEED, Learner, Loss, largest_difference
from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss

TILES, N_LABELS, ZIPF_EXPONENT = 4, 10, 2
HIDDEN, LEARNING_RATE = 64, 1e-2

# Kernels that round otherwise than PyTorch's start to differ in the last bit, and training carries that on: by 3.1e-6
# of the loss within 300 steps in the interpreter (TRITON_INTERPRET=1 python -m bench train --task multilabel).
TOLERANCES = (1e-3, 1e-3, 0.01)  # of loss and gradient relative to PyTorch's, and of the mean average precision

NAMES = (TORCH, OURS)


@dataclass(frozen=True)
class Canvases:
    """``x`` [canvases, TILES, 64], float32; ``y`` [canvases, N_LABELS], 1.0 for a digit that is there and 0.0."""

    x: Tensor
    y: Tensor

    @property
    def frequency(self) -> Tensor:
        return self.y.mean(0)


class Classifier(nn.Module):
    """Reads every digit of a canvas with the same layers; a label's logit is its highest among them."""

    def __init__(self, n_pixels: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(n_pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N_LABELS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.read(x).amax(1)
        return logits


@dataclass
class History:
    """One training with a loss, by implementation; ``route``: what ran for ours, its "kernel" or "torch".

    ``average_precision`` and ``f1``: of each label on the held-out canvases; empty where they were not asked for.
    """

    loss: str
    route: str
    batch: int
    losses: dict[str, list[float]]
    gradient_norms: dict[str, list[float]]
    step_ns: dict[str, list[float]]
    peak_bytes: dict[str, int]
    average_precision: dict[str, list[float]]
    f1: dict[str, list[float]]

    @property
    def loss_difference(self) -> float:
        """Relative to PyTorch's."""
        return largest_difference(self.losses[OURS], self.losses[TORCH], relative=True)

    @property
    def gradient_difference(self) -> float:
        """Of the gradients' norms, relative to PyTorch's."""
        return largest_difference(self.gradient_norms[OURS], self.gradient_norms[TORCH], relative=True)

    @property
    def precision_difference(self) -> float:
        """Of the means over the labels; 0 where there are none."""
        ours, torchs = (sum(self.average_precision.get(name, ())) / N_LABELS for name in (OURS, TORCH))
        return abs(ours - torchs)

    @property
    def agrees(self) -> bool:
        """Bit for bit where both run PyTorch's kernels; within the tolerances where ours run. NaN never agrees."""
        differences = (self.loss_difference, self.gradient_difference, self.precision_difference)
        allowed = (0.0, 0.0, 0.0) if self.route == "torch" else TOLERANCES
        return all(difference <= limit for difference, limit in zip(differences, allowed, strict=True))


def canvases(part: str, n: int, device: torch.device) -> Canvases:
    """``n`` canvases of images of one part, "train" or "test", of the digits; drawn on the CPU from a fixed seed."""
    task = digits(torch.device("cpu"))
    images, classes = (task.x_train, task.y_train) if part == "train" else (task.x_test, task.y_test)
    of_class = torch.arange(1, N_LABELS + 1, dtype=torch.float64) ** -ZIPF_EXPONENT
    of_image = (of_class / classes.bincount())[classes]
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.multinomial(of_image, n * TILES, replacement=True, generator=generator).view(n, TILES)
    labels = F.one_hot(classes, N_LABELS).float()[chosen].amax(1)
    return Canvases(images.to(device)[chosen.to(device)], labels.to(device))


def train(loss: str, train_set: Canvases, test_set: Canvases | None, batch: int, steps: int) -> History:
    """Two networks of the same weights, one with PyTorch's loss and one with ours."""
    torch.manual_seed(SEED)
    model = Classifier(train_set.x.shape[-1])
    losses = LOSSES[loss](train_set)
    learners = {name: Learner(copy.deepcopy(model).to(train_set.x.device), losses[name]) for name in NAMES}
    route = "kernel" if _runs_our_function(losses[OURS], train_set.y[:batch]) else "torch"
    training = side_by_side.train(
        learners, train_set.x, train_set.y, batch=batch, steps=steps, learning_rate=LEARNING_RATE, title=loss
    )
    scores = {name: _score(learner.model, test_set) for name, learner in learners.items()} if test_set else {}
    return History(
        loss, route, batch, training.losses, training.gradient_norms, training.step_ns, training.peak_bytes,
        {name: precision for name, (precision, _) in scores.items()}, {name: f1 for name, (_, f1) in scores.items()},
    )  # fmt: skip


def _score(model: nn.Module, canvases: Canvases) -> tuple[list[float], list[float]]:
    """Average precision and F1, a label being predicted where its logit is above 0, of each label."""
    from sklearn.metrics import average_precision_score, f1_score

    with torch.no_grad():
        logits = model(canvases.x).nan_to_num().cpu().numpy()  # a network that diverged has a score, if a poor one
    targets = canvases.y.cpu().numpy()
    precision = average_precision_score(targets, logits, average=None)
    f1 = f1_score(targets, logits > 0, average=None, zero_division=0)
    return precision.tolist(), f1.tolist()


def _runs_our_function(loss: Loss, y: Tensor) -> bool:
    """Whether autograd has a Function of the library for ``loss``, and not PyTorch's own operators."""
    return isinstance(loss(torch.zeros_like(y, requires_grad=True), y).grad_fn, BackwardCFunction)


def _cross_entropy(train_set: Canvases) -> dict[str, Loss]:
    """A positive of a label weighs as much as there are negatives per positive."""
    weight = (1 - train_set.frequency) / train_set.frequency
    return {
        TORCH: lambda logits, y: F.binary_cross_entropy_with_logits(logits, y, pos_weight=weight),
        OURS: lambda logits, y: binary_cross_entropy_with_logits(logits, y, pos_weight=weight),
    }


def _focal(train_set: Canvases) -> dict[str, Loss]:
    """With the defaults of torchvision, α = 0.25 and γ = 2, which are those of its source."""
    return {
        TORCH: lambda logits, y: torchvision_focal_loss(logits, y, reduction="mean"),
        OURS: lambda logits, y: sigmoid_focal_loss(logits, y, reduction="mean"),
    }


# By name, how to make both implementations for a data set.
LOSSES = {"BCE": _cross_entropy, "focal": _focal}
