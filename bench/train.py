"""Train a digit classifier twice from one seed, with nn.Sigmoid and with sigmoid_op.Sigmoid, and compare.

Real input: the 1,797 handwritten digits that scikit-learn ships. The two networks train side by side, step by step on
the same batches, so their step times are fair to compare. On a CPU their losses must agree bit for bit; where Triton
kernels run, within a stated tolerance. Small layers take the kernels here, whatever the library's size threshold is.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.providers import kernels_for_all_sizes, path
from bench.report import output_console
from bench.results import Spread
from sigmoid_op import Sigmoid, dispatch

BATCH, HIDDEN, LEARNING_RATE, SEED = 128, 256, 3e-3, 0

# Kernels that round otherwise than PyTorch's start to differ in the last bit, and training carries that on: by 2.4e-7
# after 100 steps in the interpreter (TRITON_INTERPRET=1 python -m bench train --steps 100).
LOSS_TOLERANCE = 1e-3
ACCURACY_TOLERANCE = 0.01  # 4 of the 360 test images

NAMES = ("nn.Sigmoid", "sigmoid_op.Sigmoid")


@dataclass(frozen=True)
class Task:
    """What to learn: the data, and of (logits, targets) the loss and the score, the higher the better."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    n_outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]


@dataclass
class History:
    """Losses and times of every step and the score on the test data, per network; ``path`` is "kernel" or "torch"."""

    path: str
    losses: dict[str, list[float]]
    step_ns: dict[str, list[float]]
    score: dict[str, float]

    @property
    def loss_difference(self) -> float:
        a, b = (self.losses[name] for name in NAMES)
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    @property
    def score_difference(self) -> float:
        a, b = (self.score[name] for name in NAMES)
        return abs(a - b)

    @property
    def agrees(self) -> bool:
        """Bit for bit where both run PyTorch's kernels; within the tolerances where ours run. NaN never agrees."""
        if self.path == "torch":
            return self.loss_difference == 0 and self.score_difference == 0
        return self.loss_difference <= LOSS_TOLERANCE and self.score_difference <= ACCURACY_TOLERANCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--steps", type=positive, default=300, help="optimizer steps (default: 300)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 1 when the two trainings differ."""
    device = choose_device(args.device)
    with kernels_for_all_sizes():
        history = train(digits(device), args.steps, device)
    folder = output_folder(args.out, device)
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "train",
        "environment": environment(device),
        "history": asdict(history),
    }
    (folder / "train.json").write_text(json.dumps(record) + "\n")
    _plot(history, folder / "train.png", record["environment"]["device"])
    _print(history, device, folder)
    return 0 if history.agrees else 1


def digits(device: torch.device) -> Task:
    """8 × 8 images, 10 classes; a fifth of them is the test set. The score is the accuracy."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    split = train_test_split(x / 16.0, y, test_size=0.2, random_state=SEED, stratify=y)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in split[:2])
    y_train, y_test = (torch.tensor(part, dtype=torch.int64, device=device) for part in split[2:])

    def accuracy(logits: Tensor, targets: Tensor) -> float:
        return float((logits.argmax(1) == targets).double().mean())

    return Task("digits", x_train, y_train, x_test, y_test, 10, nn.functional.cross_entropy, accuracy)


def train(task: Task, steps: int, device: torch.device) -> History:
    """Both networks, from the same weights, on the same batches in the same order; they take turns in going first."""
    torch.manual_seed(SEED)
    first = nn.Sequential(
        nn.Linear(task.x_train.shape[1], HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid(),
        nn.Linear(HIDDEN, task.n_outputs),
    )  # fmt: skip
    second = copy.deepcopy(first)
    second[1], second[3] = Sigmoid(), Sigmoid()
    models = {name: model.to(device) for name, model in zip(NAMES, (first, second), strict=True)}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=LEARNING_RATE) for name, model in models.items()}
    losses: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    step_ns: dict[str, list[float]] = {name: [] for name in NAMES}
    batches = _batches(len(task.x_train), device)
    for step in track(range(steps), description=f"train {task.name}", console=Console(stderr=True)):
        batch = next(batches)
        x, y = task.x_train[batch], task.y_train[batch]
        for name in NAMES if step % 2 == 0 else reversed(NAMES):
            _synchronize(device)
            start = time.perf_counter_ns()
            loss = task.loss(models[name](x), y)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            _synchronize(device)
            step_ns[name].append(time.perf_counter_ns() - start)
            losses[name].append(loss.detach())
    with torch.no_grad():
        score = {name: task.score(model(task.x_test), task.y_test) for name, model in models.items()}
    hidden = torch.empty(BATCH, HIDDEN, device=device)
    return History(
        path(hidden, by_user=True),
        {name: torch.stack(values).tolist() for name, values in losses.items()},
        step_ns,
        score,
    )


def _batches(n_samples: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of full batches, epoch after epoch, shuffled on the CPU so that every device sees the same order."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(n_samples, generator=generator).to(device)
        yield from (order[start : start + BATCH] for start in range(0, n_samples - BATCH + 1, BATCH))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print(history: History, device: torch.device, folder: Path) -> None:
    console = output_console()
    table = Table(title=f"digits, {len(history.losses[NAMES[0]])} steps on {device}")
    for name in ("network with", "last loss", "test accuracy", "step µs (p20–p80)"):
        table.add_column(name, justify="left" if name == "network with" else "right")
    for name in NAMES:
        step = Spread.of([ns / 1e3 for ns in history.step_ns[name]])
        table.add_row(
            name,
            f"{history.losses[name][-1]:.6f}",
            f"{history.score[name]:.4f}",
            f"{step.median:.0f} ({step.p20:.0f}–{step.p80:.0f})",
        )
    console.print(table)
    pairs = zip(*(history.step_ns[name] for name in NAMES), strict=True)
    ratio = Spread.of([torch_ns / ours_ns for torch_ns, ours_ns in pairs])
    console.print(
        f"Step time of {NAMES[0]} over {NAMES[1]}: {ratio.median:.3f} ({ratio.p20:.2f}–{ratio.p80:.2f}); "
        "above 1, ours is faster."
    )
    if history.path == "kernel":
        where = "in Triton's interpreter" if dispatch.INTERPRETED else "with the library's size threshold set to 0"
        console.print(f"{NAMES[1]} ran its Triton kernels, {where}.")
        allowed = f"at most {LOSS_TOLERANCE:g} and {ACCURACY_TOLERANCE:g} allowed"
    else:
        console.print(f"{NAMES[1]} ran the fallback, PyTorch's own kernels, not the Triton kernels.")
        allowed = "equal bit for bit demanded"
    console.print(
        f"{'Agree' if history.agrees else '[bold red]DIFFER[/]'}: losses by {history.loss_difference:.3g}, "
        f"accuracy by {history.score_difference:.3g} ({allowed})."
    )
    console.print(f"Results in {folder}: train.json, train.png", soft_wrap=True, highlight=False)


def _plot(history: History, path: Path, device: str) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"digits on {device}")
    loss_axes, time_axes = figure.subplots(1, 2)
    styles: list[dict[str, Any]] = [{"linewidth": 4, "alpha": 0.4}, {"linewidth": 1}]
    for name, style in zip(NAMES, styles, strict=True):
        loss_axes.plot(history.losses[name], label=f"{name}, test accuracy {history.score[name]:.3f}", **style)
    loss_axes.set(xlabel="step", ylabel="training loss", yscale="log")
    figure.legend(loc="outside lower center", ncols=2)
    boxes: list[Any] = [[ns / 1e3 for ns in history.step_ns[name]] for name in NAMES]
    time_axes.boxplot(boxes, tick_labels=NAMES, showfliers=False)
    time_axes.set(ylabel="time of a step, µs", title="box: quartiles; whiskers: 1.5 times the box", ylim=(0, None))
    figure.savefig(path, dpi=120)
