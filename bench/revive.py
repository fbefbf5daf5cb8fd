"""Train networks whose gates start saturated at x = +8 in bfloat16: does a gate that starts shut off ever move?

A highway network on scikit-learn's digits: y = g·x + (1 - g)·relu(Wx + b) with g = σ(Vx + c) and c = 8. In bfloat16
σ(8) is 1, so 1 - g is 0 and the layer passes x on. To learn anything else it must lower c, and for that it needs the
gradient of σ, which is 3.4e-4 there and 0 as PyTorch computes it. Everything but σ is the same in every variant:
activations in bfloat16 (autocast), weights, their gradients and Adam in float32, so that no small step is lost in a
bfloat16 weight. The same network with float32 activations shows what the rounding of activations alone costs.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.report import output_console
from bench.train import Task, digits
from sigmoid_op import Sigmoid

BATCH, WIDTH, DEPTH, LEARNING_RATE, GATE_BIAS = 128, 16, 2, 1e-2, 8.0


@dataclass(frozen=True)
class Variant:
    """``bfloat16``: whether autocast makes the activations bfloat16."""

    name: str
    make: Callable[[], nn.Module]
    bfloat16: bool
    colour: str


VARIANTS = (
    Variant("nn.Sigmoid", nn.Sigmoid, True, "tab:blue"),
    Variant("Sigmoid()", Sigmoid, True, "tab:orange"),
    Variant("Sigmoid(exact_grad=True)", lambda: Sigmoid(exact_grad=True), True, "tab:red"),
    Variant("nn.Sigmoid, float32", nn.Sigmoid, False, "tab:grey"),
)


@dataclass
class History:
    """One training: the loss and the mean bias c of all gates after each step, and the accuracy on the test set."""

    variant: str
    seed: int
    losses: list[float]
    gate_biases: list[float]
    first_gate_gradient: float
    accuracy: float


class Highway(nn.Module):
    """R. K. Srivastava, K. Greff, J. Schmidhuber, *Highway Networks*, 2015, with the gate on what is carried."""

    def __init__(self, sigmoid: nn.Module) -> None:
        super().__init__()
        self.transform = nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, GATE_BIAS)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        g: Tensor = self.sigmoid(self.gate(x))
        return g * x + (1 - g) * torch.relu(self.transform(x))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--steps", type=positive, default=400, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=10, help="trainings of each variant (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, whatever comes out."""
    device = choose_device(args.device)
    task = digits(device)
    jobs = [(variant, seed) for seed in range(args.seeds) for variant in VARIANTS]
    progress = track(jobs, "train", console=Console(stderr=True), transient=True)
    histories = [train(variant, seed, task, args.steps) for variant, seed in progress]
    folder = output_folder(args.out, device)
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "revive",
        "environment": environment(device),
        "steps": args.steps,
        "histories": [asdict(history) for history in histories],
    }
    (folder / "revive.json").write_text(json.dumps(_rounded(record)) + "\n")
    title = f"Highway network on digits, gates starting at x = {GATE_BIAS:g}, {args.seeds} seeds, {device}"
    draw(histories, title, folder / "revive.png")
    console = output_console()
    console.print(_table(histories, title))
    console.print(
        "Activations in bfloat16, weights and Adam in float32; mean (lowest to highest) over the seeds. first gradient: "
        "the largest of the loss with respect to any gate's bias, at the first step."
    )
    print(f"Results in {folder}: revive.json, revive.png")
    return 0


def train(variant: Variant, seed: int, task: Task, steps: int) -> History:
    """One training. The same seed gives every variant the same weights and batches."""
    device = task.x_train.device
    torch.manual_seed(seed)
    layers = [Highway(variant.make()) for _ in range(DEPTH)]
    first, last = nn.Linear(task.x_train.shape[1], WIDTH), nn.Linear(WIDTH, task.n_outputs)
    model = nn.Sequential(first, *layers, last).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    gate_biases = [layer.gate.bias for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    losses, means, first_gate_gradient = [], [], 0.0
    for step in range(steps):
        batch = torch.randint(len(task.x_train), (BATCH,), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
            logits = model(task.x_train[batch])
        loss = task.loss(logits.float(), task.y_train[batch])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first_gate_gradient = max(float(b.grad.abs().max()) for b in gate_biases if b.grad is not None)
        optimizer.step()
        losses.append(loss.detach())
        means.append(torch.stack([b.detach().mean() for b in gate_biases]).mean())
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
        accuracy = task.score(model(task.x_test), task.y_test)
    return History(
        variant.name, seed, torch.stack(losses).tolist(), torch.stack(means).tolist(), first_gate_gradient, accuracy
    )


def draw(histories: list[History], title: str, path: Path) -> None:
    """Loss and gate bias against the step: the mean over the seeds, in a band from the lowest to the highest."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title)
    loss_axes, bias_axes = figure.subplots(1, 2)
    for position, variant in enumerate(VARIANTS):
        of_variant = [history for history in histories if history.variant == variant.name]
        losses = [_smooth(history.losses) for history in of_variant]
        _band(loss_axes, losses, variant, position)
        _band(bias_axes, [history.gate_biases for history in of_variant], variant, position)
    loss_axes.set(xlabel="step", ylabel="training loss, mean of 20 steps", yscale="log")
    bias_axes.set(xlabel="step", ylabel="mean gate bias c")
    for axes in (loss_axes, bias_axes):
        axes.grid(alpha=0.3)
    figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _band(axes: Axes, lines: list[list[float]], variant: Variant, position: int) -> None:
    columns = list(zip(*lines, strict=True))
    steps = range(1, len(columns) + 1)
    # Lines that coincide stay visible: each is thinner than those below it.
    axes.plot(
        steps, [statistics.fmean(c) for c in columns], label=variant.name, color=variant.colour,
        linewidth=5 - 1.3 * position,
    )  # fmt: skip
    axes.fill_between(
        steps, [min(c) for c in columns], [max(c) for c in columns], color=variant.colour, alpha=0.12, linewidth=0
    )


def _smooth(values: list[float], window: int = 20) -> list[float]:
    return [statistics.fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def _table(histories: list[History], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("gates with")
    for heading in ("first gradient", "last gate bias", "last loss", "test accuracy"):
        table.add_column(heading, justify="right")
    for variant in VARIANTS:
        of_variant = [history for history in histories if history.variant == variant.name]
        table.add_row(
            variant.name,
            f"{max(history.first_gate_gradient for history in of_variant):.3g}",
            _spread([history.gate_biases[-1] for history in of_variant], ".3f"),
            _spread([statistics.fmean(history.losses[-20:]) for history in of_variant], ".4f"),
            _spread([history.accuracy for history in of_variant], ".3f"),
        )
    return table


def _spread(values: list[float], digits: str) -> str:
    return f"{statistics.fmean(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def _rounded(value: Any) -> Any:
    """Five significant digits, which keep the file of all steps and seeds small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
