"""A digit classifier with nn.Sigmoid and with sigmoid_op.Sigmoid.

Real input: the 1,797 handwritten digits that scikit-learn ships. On a CPU the losses of both networks must agree bit
for bit; where Triton kernels run, within a stated tolerance.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor, nn

from bench import side_by_side
from bench.cells import ratio_cell
from bench.environment import environment
from bench.providers import kernels_for_all_sizes, route
from bench.report import output_console
from bench.results import Spread, write
from bench.side_by_side import SEED, Learner, Loss, largest_difference, one_thread
from sigmoid_op import Sigmoid, dispatch

BATCH, HIDDEN, LEARNING_RATE = 128, 256, 3e-3

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
    loss: Loss
    score: Callable[[Tensor, Tensor], float]


@dataclass
class History:
    """Losses and times of every step and the score on the test data, per network; ``route`` is "kernel" or "torch"."""

    route: str
    losses: dict[str, list[float]]
    step_ns: dict[str, list[float]]
    score: dict[str, float]

    @property
    def loss_difference(self) -> float:
        a, b = (self.losses[name] for name in NAMES)
        return largest_difference(a, b)

    @property
    def score_difference(self) -> float:
        a, b = (self.score[name] for name in NAMES)
        return abs(a - b)

    @property
    def agrees(self) -> bool:
        """Bit for bit where both run PyTorch's kernels; within the tolerances where ours run. NaN never agrees."""
        if self.route == "torch":
            return self.loss_difference == 0 and self.score_difference == 0
        return self.loss_difference <= LOSS_TOLERANCE and self.score_difference <= ACCURACY_TOLERANCE


def run(steps: int, device: torch.device, folder: Path) -> bool:
    """Train both, write train.json and train.png, print the table; whether they agree."""
    with one_thread(), kernels_for_all_sizes():
        where = environment(device)
        history = train(digits(device), steps)
    write(folder / "train.json", "train", where, history=asdict(history))
    _plot(history, folder / "train.png", where["device"])
    _print(history, device, folder)
    return history.agrees


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


def train(task: Task, steps: int) -> History:
    """Both networks, from the same weights."""
    torch.manual_seed(SEED)
    first = nn.Sequential(
        nn.Linear(task.x_train.shape[1], HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, HIDDEN), nn.Sigmoid(),
        nn.Linear(HIDDEN, task.n_outputs),
    )  # fmt: skip
    second = copy.deepcopy(first)
    second[1], second[3] = Sigmoid(), Sigmoid()
    device = task.x_train.device
    learners = {name: Learner(model.to(device), task.loss) for name, model in zip(NAMES, (first, second), strict=True)}
    training = side_by_side.train(
        learners, task.x_train, task.y_train, batch=BATCH, steps=steps, learning_rate=LEARNING_RATE, title=task.name
    )
    with torch.no_grad():
        score = {name: task.score(learner.model(task.x_test), task.y_test) for name, learner in learners.items()}
    hidden = torch.empty(BATCH, HIDDEN, device=device)
    return History(route(hidden, by_user=True), training.losses, training.step_ns, score)


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
    console.print(f"Step time of {NAMES[0]} over {NAMES[1]}: {ratio_cell(ratio)}; above 1, ours is faster.")
    if history.route == "kernel":
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
