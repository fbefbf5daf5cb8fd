"""A multi-label classifier with imbalanced labels: PyTorch's losses and sigmoid_op's, as a table and a plot."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from bench.cells import ratio_cell
from bench.environment import environment
from bench.imbalanced import (
    LOSSES,
    N_LABELS,
    NAMES,
    TOLERANCES,
    Canvases,
    History,
    canvases,
    train,
)
from bench.providers import OURS, TORCH, kernels_for_all_sizes
from bench.report import output_console
from bench.results import Spread, write
from bench.side_by_side import one_thread
from sigmoid_op import dispatch

N_TRAIN, N_TEST, BATCH = 4096, 2048, 128
LARGE_BATCH, LARGE_STEPS = 2**20, 30  # 10 · 2^20 labels are above the library's size threshold of 2^23 elements
RARE = 0.1  # a label is rare below this share of the training canvases

COLOURS = {"BCE": "tab:blue", "focal": "tab:orange"}


def run(steps: int, device: torch.device, folder: Path) -> bool:
    """Train with each loss, write multilabel.json and .png, print the tables; whether ours and PyTorch's agree."""
    train_set, test_set = canvases("train", N_TRAIN, device), canvases("test", N_TEST, device)
    with one_thread():
        where = environment(device)
        with kernels_for_all_sizes():
            histories = [train(loss, train_set, test_set, BATCH, steps) for loss in LOSSES]
        large = list(_large(steps, device)) if device.type == "cuda" else []
    write(
        folder / "multilabel.json",
        "multilabel",
        where,
        frequency=train_set.frequency.tolist(),
        histories=[asdict(history) for history in histories],
        large=[asdict(history) for history in large],
    )
    _plot(histories, train_set, where["device"], folder / "multilabel.png")
    _print(histories, large, train_set, test_set, device)
    print(f"Results in {folder}: multilabel.json, multilabel.png")
    return all(history.agrees for history in (*histories, *large))


def _large(steps: int, device: torch.device) -> Iterator[History]:
    """Steps on a batch that is large enough for the kernels as they are chosen for every user."""
    train_set = canvases("train", LARGE_BATCH, device)
    for loss in LOSSES:
        yield train(loss, train_set, None, LARGE_BATCH, min(steps, LARGE_STEPS))


def _print(
    histories: list[History], large: list[History], train_set: Canvases, test_set: Canvases, device: torch.device
) -> None:
    console = output_console()
    rare = [label for label, share in enumerate(train_set.frequency.tolist()) if share < RARE]
    console.print(_labels(histories, train_set, test_set))
    console.print(_steps(histories, f"canvases of digits, batches of {BATCH}, on {device}", rare))
    if large:
        console.print(_steps(large, f"batches of 2^{LARGE_BATCH.bit_length() - 1} canvases, on {device}", rare))
    console.print(
        f"F1 of rare: mean over the labels {rare}, each on less than {RARE:.0%} of the training canvases. Peak memory: "
        "what a step adds to what is allocated before it. Ratio: PyTorch's step time over ours, step by step; above "
        "1, ours is faster.",
    )
    for history in (*histories, *large):
        console.print(_verdict(history))


def _labels(histories: list[History], train_set: Canvases, test_set: Canvases) -> Table:
    table = Table(title=f"held-out canvases, by label: {TORCH} / {OURS}", title_justify="left")
    for heading in ("digit", "share in training", "positives of test"):
        table.add_column(heading, justify="right")
    for history in histories:
        table.add_column(f"{history.loss}, average precision", justify="right")
        table.add_column(f"{history.loss}, F1", justify="right")
    shares, positives = train_set.frequency.tolist(), test_set.y.sum(0).int().tolist()
    for label in range(N_LABELS):
        scores = [values for history in histories for values in (history.average_precision, history.f1)]
        cells = [" / ".join(f"{values[name][label]:.3f}" for name in NAMES) for values in scores]
        table.add_row(str(label), f"{shares[label]:.1%}", f"{positives[label]} of {len(test_set.y)}", *cells)
    return table


def _steps(histories: list[History], title: str, rare: list[int]) -> Table:
    table = Table(title=f"{title}, {len(histories[0].losses[OURS])} steps", title_justify="left")
    table.add_column("loss")
    table.add_column("by")
    scored = bool(histories[0].f1)
    scores = ("mean average precision", "F1 of rare") if scored else ()
    for heading in ("last loss", *scores, "step µs (p20–p80)", "ratio (p20–p80)", "peak MiB"):
        table.add_column(heading, justify="right")
    for history in histories:
        for name in NAMES:
            step, ratio = _spreads(history, name)
            peak = history.peak_bytes.get(name)
            cells = [f"{fmean(history.average_precision[name]):.4f}"] if scored else []
            cells += [f"{fmean(history.f1[name][label] for label in rare):.4f}"] if scored else []
            table.add_row(
                history.loss,
                f"{name} ({history.route})" if name == OURS else name,
                f"{history.losses[name][-1]:.6f}",
                *cells,
                f"{step.median:.0f} ({step.p20:.0f}–{step.p80:.0f})",
                ratio_cell(ratio if name == OURS else None),
                "not measured" if peak is None else f"{peak / 2**20:.1f}",
            )
    return table


def _spreads(history: History, name: str) -> tuple[Spread, Spread]:
    """Microseconds of a step, and PyTorch's time over that."""
    pairs = zip(history.step_ns[TORCH], history.step_ns[name], strict=True)
    return Spread.of([ns / 1e3 for ns in history.step_ns[name]]), Spread.of([a / b for a, b in pairs])


def _verdict(history: History) -> str:
    n_labels = history.batch * N_LABELS
    allowed = "{:g}, {:g} and {:g} allowed".format(*TOLERANCES)
    if history.route == "torch":
        ran, allowed = "the fallback, PyTorch's own kernels", "equal bit for bit demanded"
    elif dispatch.INTERPRETED:
        ran = "its Triton kernels, in Triton's interpreter"
    elif n_labels < dispatch.MIN_ELEMENTS["bce"]:
        ran = "its Triton kernels, with the library's size threshold set to 0"
    else:
        ran = "its Triton kernels"
    return (
        f"{history.loss}, {n_labels} labels a step: {OURS} ran {ran}. "
        f"{'Agree' if history.agrees else '[bold red]DIFFER[/]'}: losses by at most {history.loss_difference:.3g} of "
        f"{TORCH}'s, norms of their gradients by {history.gradient_difference:.3g}, mean average precision by "
        f"{history.precision_difference:.3g} ({allowed})."
    )


def _plot(histories: list[History], train_set: Canvases, device: str, path: Path) -> None:
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    figure.suptitle(f"Multi-label classifier on canvases of four digits, {device}")
    loss_axes, score_axes, time_axes = figure.subplots(1, 3)
    for history in histories:
        for name, style in ((TORCH, {"linewidth": 4, "alpha": 0.35}), (OURS, {"linewidth": 1, "alpha": 1})):
            label = f"{history.loss} by {name}"
            loss_axes.plot(history.losses[name], label=label, color=COLOURS[history.loss], **style)
    loss_axes.set(xlabel="step", ylabel="training loss", yscale="log")
    loss_axes.grid(alpha=0.3)
    figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    _plot_scores(score_axes, histories, train_set)
    boxes = {f"{history.loss}\n{name}": history.step_ns[name] for history in histories for name in NAMES}
    time_axes.boxplot(
        [[ns / 1e3 for ns in samples] for samples in boxes.values()], tick_labels=list(boxes), showfliers=False
    )
    time_axes.set(ylabel="time of a step, µs", ylim=(0, None))
    time_axes.set_title("box: quartiles; whiskers: 1.5 times the box", fontsize="medium")
    figure.savefig(path, dpi=120)


def _plot_scores(axes: Axes, histories: list[History], train_set: Canvases) -> None:
    """A bar for PyTorch's average precision and a black dot for ours, of each label and loss."""
    width = 0.8 / len(histories)
    for i, history in enumerate(histories):
        positions = [label + (i - (len(histories) - 1) / 2) * width for label in range(N_LABELS)]
        axes.bar(positions, history.average_precision[TORCH], width, color=COLOURS[history.loss], alpha=0.5)
        axes.plot(positions, history.average_precision[OURS], ".", color="black", markersize=4)
    shares = train_set.frequency.tolist()
    axes.set_xticks(range(N_LABELS), [f"{label}\n{share:.0%}" for label, share in enumerate(shares)])
    axes.set(
        xlabel="digit, and the share of canvases that have it",
        ylabel="average precision",
        ylim=(0, 1.05),
    )
    axes.set_title(f"held-out canvases; bars: {TORCH}, dots: {OURS}", fontsize="medium")
