"""Train a multi-label classifier with imbalanced labels by PyTorch's losses and by sigmoid_op's, and compare.

    python examples/multilabel.py [--steps 300] [--device cuda] [--out FOLDER]

A sample is a canvas of four of scikit-learn's digits, its ten labels say which digits are on it. Digit d is drawn with
a probability proportional to 1/(d + 1)²: a 0 is on 98 % of the canvases, a 9 on 2 %. Canvases of the test hold images
that no training canvas has. Two trainings: binary cross entropy, the positives of each label weighted by the negatives
per positive, and focal loss. Gradient norms are compared, too: Adam takes no notice of a constant factor. A minute.
"""

import argparse
import copy
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":

    def end_at_once(*_: object) -> None:  # by Ctrl-C during the imports
        os.write(2, b"Interrupted: nothing is kept\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end_at_once)

os.environ.setdefault("SIGMOID_OP_MIN_ELEMENTS", "1")  # so that these small tensors take the kernels, too

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import binary_cross_entropy_with_logits, sigmoid_focal_loss

TILES, N_LABELS, HIDDEN, BATCH = 4, 10, 64, 512
stopped: list[bool] = []  # by Ctrl-C: the step that runs is the last
Loss = Callable[[Tensor, Tensor], Tensor]


def canvases(images: Tensor, classes: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``n`` canvases [n, TILES, 64] and their labels [n, N_LABELS], drawn from a fixed seed."""
    weights = torch.arange(1, N_LABELS + 1, dtype=torch.float64) ** -2 / classes.bincount()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(weights[classes], n * TILES, replacement=True, generator=generator).view(n, TILES)
    return images[chosen], F.one_hot(classes, N_LABELS).float()[chosen].amax(1)


class Classifier(nn.Module):
    """Reads every digit of a canvas with the same layers; a label's logit is its highest among them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N_LABELS))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.read(x).amax(1)
        return logits


def pytorch_focal_loss(logits: Tensor, y: Tensor) -> Tensor:
    """That of T.-Y. Lin and others, 2017, with α = 0.25 and γ = 2, as torchvision writes it."""
    p = torch.sigmoid(logits)
    loss = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    loss = loss * (1 - (p * y + (1 - p) * (1 - y))) ** 2
    return ((0.25 * y + 0.75 * (1 - y)) * loss).mean()


def losses(frequency: Tensor) -> dict[str, dict[str, Loss]]:
    """Both implementations of each loss; a positive of a label weighs as much as there are negatives per positive."""
    weight = (1 - frequency) / frequency
    return {
        "BCE": {
            "torch": partial(F.binary_cross_entropy_with_logits, pos_weight=weight),
            "sigmoid_op": partial(binary_cross_entropy_with_logits, pos_weight=weight),
        },
        "focal": {"torch": pytorch_focal_loss, "sigmoid_op": partial(sigmoid_focal_loss, reduction="mean")},
    }


def train(of: dict[str, Loss], x: Tensor, y: Tensor, steps: int) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Of every step loss and gradient norm, by implementation; both take turns, from the same weights."""
    torch.manual_seed(0)
    first = Classifier().to(x.device)
    models: dict[str, nn.Module] = {name: copy.deepcopy(first) for name in of}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-2) for name, model in models.items()}
    history: dict[str, Any] = {name: {"losses": [], "gradient_norms": []} for name in of}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=generator).to(x.device)
        for name, model in models.items():
            loss = of[name](model(x[batch]), y[batch])
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            history[name]["losses"].append(loss.item())
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            history[name]["gradient_norms"].append(float(nn.utils.get_total_norm(gradients)))
        if stopped:
            break
    return history, models


def difference(history: dict[str, Any], key: str) -> float:
    """The largest of all steps, relative to PyTorch's; NaN, if there is one, compares with nothing."""
    pairs = zip(history["sigmoid_op"][key], history["torch"][key], strict=True)
    return float(torch.tensor([abs(a - b) / b if a != b else 0.0 for a, b in pairs]).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for multilabel.json")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    images, classes = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, classes, test_size=0.2, random_state=0, stratify=classes)
    x_train, x_test, y_train, y_test = (torch.tensor(part) for part in parts)
    x, y = (part.to(args.device) for part in canvases(x_train.float(), y_train, 8192))
    test_x, test_y = canvases(x_test.float(), y_test, 4096)
    on_kernels = args.device != "cpu" or bool(os.environ.get("TRITON_INTERPRET"))
    tolerance = 1e-3 if on_kernels else 0.0
    histories: list[dict[str, Any]] = []
    agree = True
    for loss, of in losses(y.mean(0)).items():
        history, models = train(of, x, y, args.steps)
        for name, model in models.items():
            with torch.no_grad():
                logits = model(test_x.to(args.device)).nan_to_num().cpu().numpy()
            precision = history[name]["average_precision"] = float(average_precision_score(test_y, logits))
            print(f"{loss} by {name:10} last loss {history[name]['losses'][-1]:.6f}, average precision {precision:.4f}")
        differences = [difference(history, key) for key in ("losses", "gradient_norms")]
        agrees = all(found <= tolerance for found in differences)
        agree &= agrees
        told = "agree" if agrees else "DIFFER"
        print(
            f"losses and gradient norms {told}: by at most {differences[0]:.3g} and {differences[1]:.3g} of PyTorch's"
        )
        histories.append({"loss": loss, **history})
        if stopped:
            break
    status = "interrupted" if stopped else "complete"
    if args.out:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "multilabel", "environment": where, "status": status, "histories": histories}
        path = args.out / "multilabel.json"
        path.write_text(json.dumps(record))
        print(f"Results in {path} ({status})")
    return 130 if stopped else int(not agree)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    sys.exit(main())
