"""Train networks whose gates start saturated in bfloat16: can a gate that is shut ever open again?

    python examples/saturated_gates.py [--steps 800] [--seeds 10] [--device cuda] [--out FOLDER]

A gated recurrent network reads the 8 rows of a scikit-learn digit: h = z·h + (1 - z)·tanh(W·(row, h)), with the update
gate z = σ(V·(row, h) + c), V = 0 and c = 8 at first. In bfloat16 σ(8) is 1, so h stays what it was, and nothing that
is read has an effect. To learn, the network must lower z, and needs σ' for it: 3.4e-4 there, and 0 as PyTorch computes
it. Everything but σ is the same in every variant: activations in bfloat16 (autocast), weights, their gradients and Adam
in float32. Each training takes some 5 seconds on a CPU, all 40 a few minutes.
"""

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":

    def end_at_once(*_: object) -> None:  # by Ctrl-C during the imports
        os.write(2, b"Interrupted: nothing is kept\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end_at_once)

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import Sigmoid

BATCH, ROWS, WIDTH, GATE_BIAS = 128, 8, 32, 8.0
stopped: list[bool] = []  # by Ctrl-C: the trainings that ended by then are kept
# By name: σ, and the dtype of the activations.
VARIANTS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "nn.Sigmoid": (nn.Sigmoid, torch.bfloat16),
    "Sigmoid()": (Sigmoid, torch.bfloat16),
    "Sigmoid(exact_grad=True)": (partial(Sigmoid, exact_grad=True), torch.bfloat16),
    "nn.Sigmoid, float32": (nn.Sigmoid, torch.float32),
}


class Recurrent(nn.Module):
    """Reads the rows one by one, then classifies by the last h. The update is that of Cho and others' unit of 2014."""

    def __init__(self, sigmoid: nn.Module) -> None:
        super().__init__()
        self.candidate = nn.Linear(ROWS + WIDTH, WIDTH)
        self.gate = nn.Linear(ROWS + WIDTH, WIDTH)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE_BIAS)
        self.sigmoid = sigmoid
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), WIDTH)
        for row in x.unflatten(1, (ROWS, -1)).unbind(1):
            read = torch.cat([row, h], 1)
            z = self.sigmoid(self.gate(read))
            h = z * h + (1 - z) * torch.tanh(self.candidate(read))
        logits: Tensor = self.classifier(h)
        return logits


def train(variant: str, seed: int, data: list[Tensor], steps: int) -> dict[str, Any]:
    """One training; the same seed gives every variant the same weights and batches."""
    x_train, x_test, y_train, y_test = data
    make, dtype = VARIANTS[variant]
    device = x_train.device
    torch.manual_seed(seed)
    model = Recurrent(make()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    losses, biases, first = [], [], 0.0
    for step in range(steps):
        batch = torch.randint(len(x_train), (BATCH,), generator=generator).to(device)
        with autocast():
            logits = model(x_train[batch].to(dtype))
        loss = F.cross_entropy(logits.float(), y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        if step == 0 and model.gate.bias.grad is not None:
            first = float(model.gate.bias.grad.abs().max())
        optimizer.step()
        losses.append(round(loss.item(), 5))
        biases.append(round(model.gate.bias.mean().item(), 5))
        if stopped:
            break
    with torch.no_grad(), autocast():
        accuracy = float((model(x_test.to(dtype)).argmax(1) == y_test).double().mean())
    return {
        "variant": variant, "seed": seed, "losses": losses, "gate_biases": biases,
        "first_gate_gradient": first, "accuracy": accuracy,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for saturated_gates.json")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    split = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    x_train, x_test, *classes = (torch.tensor(part, device=args.device) for part in split)
    data = [x_train.float(), x_test.float(), *classes]
    histories: list[dict[str, Any]] = []
    for seed, variant in product(range(args.seeds), VARIANTS):
        history = train(variant, seed, data, args.steps)
        if stopped:
            break
        histories.append(history)
        print(f"seed {seed}, {variant}: test accuracy {history['accuracy']:.3f}", flush=True)
    print("Mean (lowest to highest) over the seeds:")
    for variant in VARIANTS:
        if group := [history for history in histories if history["variant"] == variant]:
            biases, accuracies = [h["gate_biases"][-1] for h in group], [h["accuracy"] for h in group]
            print(
                f"{variant:26} first gradient {max(h['first_gate_gradient'] for h in group):.3g}, last gate bias "
                f"{statistics.fmean(biases):.3f}, test accuracy {statistics.fmean(accuracies):.3f} "
                f"({min(accuracies):.3f} to {max(accuracies):.3f})"
            )
    status = "interrupted" if stopped else "complete"
    if args.out and histories:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "saturated_gates", "environment": where}
        path = args.out / "saturated_gates.json"
        path.write_text(json.dumps({**record, "status": status, "steps": args.steps, "histories": histories}))
        print(f"Results in {path} ({status})")
    return 130 if stopped else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    sys.exit(main())
