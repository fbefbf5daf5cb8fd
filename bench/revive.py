"""Train networks whose gates start saturated at x = +8 in bfloat16: can a gate that is shut ever open again?

A gated recurrent network reads the 8 rows of a scikit-learn digit: h = z·h + (1 - z)·tanh(W·(row, h)), with the update
gate z = σ(V·(row, h) + c), V = 0 and c = 8 at first. In bfloat16 σ(8) is 1, so h stays what it was, and nothing that
is read has an effect. To learn, the network must lower z, and for that it needs the derivative of σ: 3.4e-4 there, and
0 as PyTorch computes it. Everything but σ is the same in every variant: activations in bfloat16 (autocast), weights,
their gradients and Adam in float32, so that no small step is lost in a bfloat16 weight. nn.Sigmoid with float32
activations shows what the rounding of activations costs.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from bench.digits import Task, digits
from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.report import output_console
from bench.results import write
from bench.side_by_side import one_thread
from sigmoid_op import Sigmoid

BATCH, ROWS, WIDTH, LEARNING_RATE, GATE_BIAS = 128, 8, 32, 1e-2, 8.0
EVERY = 10


@dataclass(frozen=True)
class Variant:
    """``bfloat16``: whether autocast makes the activations bfloat16. Lines that coincide differ in width."""

    name: str
    make: Callable[[], nn.Module]
    bfloat16: bool
    colour: str
    linewidth: float


VARIANTS = (
    Variant("nn.Sigmoid", nn.Sigmoid, True, "tab:blue", 7),
    Variant("Sigmoid()", Sigmoid, True, "tab:orange", 2.5),
    Variant("Sigmoid(exact_grad=True)", lambda: Sigmoid(exact_grad=True), True, "tab:red", 2.5),
    Variant("nn.Sigmoid, float32", nn.Sigmoid, False, "tab:grey", 1.2),
)


@dataclass
class History:
    """One training: the mean loss of each EVERY steps, the gates' mean bias c after them, and the test accuracy."""

    variant: str
    seed: int
    losses: list[float]
    gate_biases: list[float]
    first_gate_gradient: float
    accuracy: float


class Recurrent(nn.Module):
    """Reads ROWS rows, then classifies by the last h. The update is that of K. Cho and others' gated unit of 2014."""

    def __init__(self, n_columns: int, n_outputs: int, sigmoid: nn.Module) -> None:
        super().__init__()
        self.candidate = nn.Linear(n_columns + WIDTH, WIDTH)
        self.gate = nn.Linear(n_columns + WIDTH, WIDTH)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE_BIAS)
        self.sigmoid = sigmoid
        self.classifier = nn.Linear(WIDTH, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x
        h = rows.new_zeros(len(x), WIDTH)
        for row in rows.unflatten(1, (ROWS, -1)).unbind(1):
            read = torch.cat([row, h], 1)
            z = self.sigmoid(self.gate(read))
            h = z * h + (1 - z) * torch.tanh(self.candidate(read))
        logits: Tensor = self.classifier(h)
        return logits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--steps", type=positive, default=800, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=10, help="trainings of each variant (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, whatever comes out; 130 when interrupted."""
    device = choose_device(args.device)
    task = digits(device)
    jobs = [(variant, seed) for seed in range(args.seeds) for variant in VARIANTS]
    histories: list[History] = []
    status = "interrupted"
    with one_thread():
        where = environment(device)
        with Progress(console=Console(stderr=True), transient=True) as progress, suppress(KeyboardInterrupt):
            bar = progress.add_task("train", total=len(jobs))
            for variant, seed in jobs:
                histories.append(train(variant, seed, task, args.steps))
                progress.advance(bar)
            status = "complete"
    folder = output_folder(args.out, device)
    rounded = [_rounded(asdict(history)) for history in histories]
    write(folder / "revive.json", "revive", where, status=status, steps=args.steps, histories=rounded)
    if not histories:
        return 130
    seeds = len({history.seed for history in histories})
    title = f"Recurrent network on digits, gates starting at x = {GATE_BIAS:g}, {seeds} seeds, {device}"
    draw(histories, title, folder / "revive.png")
    console = output_console()
    console.print(_table(histories, title))
    console.print(
        "Activations in bfloat16 but in the last row, weights and Adam in float32; mean (lowest to highest) over the "
        "seeds. first gradient: the largest of the loss with respect to a gate's bias, at the first step."
    )
    print(f"Results in {folder} ({status}): revive.json, revive.png")
    return 0 if status == "complete" else 130


def train(variant: Variant, seed: int, task: Task, steps: int) -> History:
    """One training. The same seed gives every variant the same weights and batches."""
    device = task.x_train.device
    torch.manual_seed(seed)
    model = Recurrent(task.x_train.shape[1] // ROWS, task.n_outputs, variant.make()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    bias = model.gate.bias
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
            assert bias.grad is not None
            first_gate_gradient = float(bias.grad.abs().max())
        optimizer.step()
        losses.append(loss.detach())
        means.append(bias.detach().mean())
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
        accuracy = task.score(model(task.x_test), task.y_test)
    mean_losses = [float(part.mean()) for part in torch.stack(losses).split(EVERY)]
    last_means = [float(part[-1]) for part in torch.stack(means).split(EVERY)]
    return History(variant.name, seed, mean_losses, last_means, first_gate_gradient, accuracy)


def draw(histories: list[History], title: str, path: Path) -> None:
    """Loss and gate bias against the step: the mean over the seeds, in a band from the lowest to the highest."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title)
    loss_axes, bias_axes = figure.subplots(1, 2)
    for variant, of_variant in _by_variant(histories):
        _band(loss_axes, [history.losses for history in of_variant], variant)
        _band(bias_axes, [history.gate_biases for history in of_variant], variant)
    loss_axes.set(xlabel="step", ylabel=f"training loss, mean of {EVERY} steps", yscale="log")
    bias_axes.set(xlabel="step", ylabel="mean gate bias c")
    for axes in (loss_axes, bias_axes):
        axes.grid(alpha=0.3)
    figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _band(axes: Axes, lines: list[list[float]], variant: Variant) -> None:
    columns = list(zip(*lines, strict=True))
    steps = range(EVERY, EVERY * (len(columns) + 1), EVERY)
    mean = [statistics.fmean(column) for column in columns]
    axes.plot(steps, mean, label=variant.name, color=variant.colour, linewidth=variant.linewidth)
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    axes.fill_between(steps, low, high, color=variant.colour, alpha=0.12, linewidth=0)


def _table(histories: list[History], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("gates with")
    for heading in ("first gradient", "last gate bias", "last loss", "test accuracy"):
        table.add_column(heading, justify="right")
    for variant, of_variant in _by_variant(histories):
        table.add_row(
            variant.name,
            f"{max(history.first_gate_gradient for history in of_variant):.3g}",
            _spread([history.gate_biases[-1] for history in of_variant], ".3f"),
            _spread([history.losses[-1] for history in of_variant], ".4f"),
            _spread([history.accuracy for history in of_variant], ".3f"),
        )
    return table


def _by_variant(histories: list[History]) -> list[tuple[Variant, list[History]]]:
    """In the order of VARIANTS, without those that an interrupted run did not come to."""
    groups = [(variant, [history for history in histories if history.variant == variant.name]) for variant in VARIANTS]
    return [(variant, of_variant) for variant, of_variant in groups if of_variant]


def _spread(values: list[float], digits: str) -> str:
    return f"{statistics.fmean(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def _rounded(value: Any) -> Any:
    """Five significant digits, which keep the file of all steps and seeds small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
