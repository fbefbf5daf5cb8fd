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
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import Sigmoid

BATCH, ROWS, WIDTH, GATE_BIAS, EVERY = 128, 8, 32, 8.0, 10
# By name: σ, whether activations are bfloat16, and how it is drawn; lines that coincide differ in width.
VARIANTS: dict[str, tuple[Callable[[], nn.Module], bool, str, float]] = {
    "nn.Sigmoid": (nn.Sigmoid, True, "tab:blue", 7),
    "Sigmoid()": (Sigmoid, True, "tab:orange", 2.5),
    "Sigmoid(exact_grad=True)": (lambda: Sigmoid(exact_grad=True), True, "tab:red", 2.5),
    "nn.Sigmoid, float32": (nn.Sigmoid, False, "tab:grey", 1.2),
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
    make, bfloat16, *_ = VARIANTS[variant]
    device = x_train.device
    torch.manual_seed(seed)
    model = Recurrent(make()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    losses, biases, first = [], [], 0.0
    for step in range(steps):
        batch = torch.randint(len(x_train), (BATCH,), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(x_train[batch].to(dtype))
        loss = F.cross_entropy(logits.float(), y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        if step == 0 and model.gate.bias.grad is not None:
            first = float(model.gate.bias.grad.abs().max())
        optimizer.step()
        losses.append(loss.detach())
        biases.append(model.gate.bias.detach().mean())
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        accuracy = float((model(x_test.to(dtype)).argmax(1) == y_test).double().mean())
    mean_losses = [float(f"{part.mean():.5g}") for part in torch.stack(losses).split(EVERY)]
    last_biases = [float(f"{part[-1]:.5g}") for part in torch.stack(biases).split(EVERY)]
    return {
        "variant": variant, "seed": seed, "losses": mean_losses, "gate_biases": last_biases,
        "first_gate_gradient": first, "accuracy": accuracy,
    }  # fmt: skip


def draw(histories: list[dict[str, Any]], path: Path) -> None:
    """Loss and gate bias against the step: the mean over the seeds, in a band from the lowest to the highest."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(f"Recurrent network on digits, gates starting at x = {GATE_BIAS:g}")
    panels = figure.subplots(1, 2)
    for key, label, axes in zip(("losses", "gate_biases"), ("training loss", "mean gate bias c"), panels, strict=True):
        for variant, (_, _, colour, width) in VARIANTS.items():
            if lines := [history[key] for history in histories if history["variant"] == variant]:
                columns = list(zip(*lines, strict=True))
                steps = range(EVERY, EVERY * (len(columns) + 1), EVERY)
                axes.plot(steps, [*map(statistics.fmean, columns)], label=variant, color=colour, linewidth=width)
                axes.fill_between(steps, [*map(min, columns)], [*map(max, columns)], color=colour, alpha=0.12)
        axes.set(xlabel="step", ylabel=label, yscale="log" if key == "losses" else "linear")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for saturated_gates.json and .png")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    split = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    data = [torch.tensor(part, dtype=torch.float32 if i < 2 else torch.int64) for i, part in enumerate(split)]
    data = [part.to(args.device) for part in data]
    histories: list[dict[str, Any]] = []
    status = "complete"
    try:
        for seed in range(args.seeds):
            for variant in VARIANTS:
                histories.append(train(variant, seed, data, args.steps))
                print(f"seed {seed}, {variant}: test accuracy {histories[-1]['accuracy']:.3f}", flush=True)
    except KeyboardInterrupt:
        status = "interrupted"
    print("Mean (lowest to highest) over the seeds:")
    for variant in VARIANTS:
        group = [history for history in histories if history["variant"] == variant]
        if group:
            biases, accuracies = [h["gate_biases"][-1] for h in group], [h["accuracy"] for h in group]
            print(
                f"{variant:26} first gradient {max(h['first_gate_gradient'] for h in group):.3g}, last gate bias "
                f"{statistics.fmean(biases):.3f}, test accuracy {statistics.fmean(accuracies):.3f} "
                f"({min(accuracies):.3f} to {max(accuracies):.3f})"
            )
    if args.out and histories:
        where = {"torch": torch.__version__, "device": args.device}
        record = {"schema": 1, "kind": "saturated_gates", "environment": where}
        path = args.out / "saturated_gates.json"
        path.write_text(json.dumps({**record, "status": status, "steps": args.steps, "histories": histories}))
        draw(histories, path.with_suffix(".png"))
        print(f"Results in {path} ({status}) and {path.with_suffix('.png').name}")
    return 0 if status == "complete" else 130


if __name__ == "__main__":
    sys.exit(main())
