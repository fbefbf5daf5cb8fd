"""Pictures of a run: the ratio to PyTorch, of one op by size, of several op by op; and of one op the bandwidth."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator, StrMethodFormatter

from bench.cases import DTYPES, size_label
from bench.ops import BOTH, PASSES
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, Measurement

DTYPE_COLOURS = dict(zip(DTYPES, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
FORM_STYLES: dict[str, dict[str, Any]] = {
    COPY: {"color": "black", "linestyle": "--"},
    COMPILED: {"color": "tab:purple", "marker": "^"},
    TORCH: {"color": "tab:blue", "marker": "s"},
    OURS: {"color": "tab:red", "marker": "o"},
}
POINT_MARKERS = {"odd": "x", "misaligned": "+", "recorded": "_"}  # sizes are joined by a line
SIZE_MARKERS = ("o", "s", "^", "D", "v")


def draw(measurements: Sequence[Measurement], device: str, folder: Path) -> Iterator[Path]:
    """Write the pictures of each clock and yield their paths."""
    timed = [m for m in measurements if m.ratio(TORCH)]
    for clock in dict.fromkeys(m.clock for m in timed):
        group = [m for m in timed if m.clock == clock]
        figures = {"ratio": ratios_by_op(group)}
        if len({m.case["op"] for m in group}) == 1 and len({m.case["n_elements"] for m in group}) > 1:
            figures = {"ratio": ratios_by_size(group), "bandwidth": bandwidths(group)}
        for name, figure in figures.items():
            figure.suptitle(f"{device}: {clock} time")
            path = folder / f"{name}-{clock.replace(',', '').replace(' ', '-').lower()}.png"
            figure.savefig(path, dpi=120)
            yield path


def ratios_by_size(measurements: list[Measurement]) -> Figure:
    """A panel for each pass: PyTorch's time over ours, a line with its p20 to p80 for each dtype."""
    passes, dtypes = _present(measurements)
    figure = Figure(figsize=(2 + 4 * len(passes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axes, pass_ in zip(panels, passes, strict=True):
        axes.axhline(1, color="black", linewidth=0.8)
        for dtype in dtypes:
            group = [m for m in measurements if (m.pass_, m.case["dtype"]) == (pass_, dtype)]
            colour = DTYPE_COLOURS[dtype]
            _by_size(axes, group, _ratio, color=colour, marker=".")
            spreads = [(m.case["n_elements"], ratio) for m in _of_sizes(group) if (ratio := m.ratio(TORCH))]
            low, high = [ratio.p20 for _, ratio in spreads], [ratio.p80 for _, ratio in spreads]
            axes.fill_between([n for n, _ in spreads], low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(pass_, fontsize="medium")
    panels[0].set_yscale("log")
    _ticks(panels[0].yaxis, panels[0].set_ylim(_limits(measurements)))
    panels[0].set_ylabel(f"time of {TORCH} / time of {OURS}\n(above 1: {OURS} is faster)")
    kinds = {
        kind: marker for kind, marker in POINT_MARKERS.items() if any(m.case["kind"] == kind for m in measurements)
    }
    points = {kind: {"color": "grey", "marker": marker, "linestyle": ""} for kind, marker in kinds.items()}
    _legend(figure, {dtype: {"color": DTYPE_COLOURS[dtype], "marker": "."} for dtype in dtypes} | points)
    return figure


def bandwidths(measurements: list[Measurement]) -> Figure:
    """A row of panels for each dtype, one for each pass: GB/s of every form."""
    passes, dtypes = _present(measurements)
    figure = Figure(figsize=(2 + 4 * len(passes), 1.4 + 2.8 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(passes), sharex=True, sharey=True, squeeze=False)
    styles = {name: style for name, style in FORM_STYLES.items() if any(name in m.samples_ns for m in measurements)}
    for row, dtype in zip(panels, dtypes, strict=True):
        for axes, pass_ in zip(row, passes, strict=True):
            group = [m for m in measurements if (m.pass_, m.case["dtype"]) == (pass_, dtype)]
            group = [m for m in group if m.case["kind"] in ("size", "recorded")]
            for name, style in styles.items():
                _by_size(axes, group, partial(Measurement.gigabytes_per_second, form=name), markersize=4, **style)
            axes.set_ylim(0, None)
            axes.set_title(f"{dtype}, {pass_}", fontsize="medium")
            axes.label_outer()
        row[0].set_ylabel("GB/s, read and written")
    _legend(figure, styles)
    return figure


def ratios_by_op(measurements: list[Measurement]) -> Figure:
    """A panel for each pass, a row for each op, a point with its p20 to p80 for each dtype and size."""
    passes, dtypes = _present(measurements)
    ops = list(dict.fromkeys(m.case["op"] for m in measurements))
    sizes = sorted({m.case["n_elements"] for m in measurements})
    markers = {size: SIZE_MARKERS[i % len(SIZE_MARKERS)] for i, size in enumerate(sizes)}
    goals = {m.case["op"]: m.case["goal"] for m in measurements if m.clock == COLD and m.case["goal"]}
    figure = Figure(figsize=(4 + 3.6 * len(passes), 2.2 + 0.5 * len(ops)), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axes, pass_ in zip(panels, passes, strict=True):
        group = [m for m in measurements if m.pass_ == pass_]
        axes.axvline(1, color="black", linewidth=0.8)
        for m in group:
            colour = DTYPE_COLOURS[m.case["dtype"]]
            row = ops.index(m.case["op"]) + 0.2 * (dtypes.index(m.case["dtype"]) - (len(dtypes) - 1) / 2)
            if ratio := m.ratio(TORCH):
                axes.plot([ratio.p20, ratio.p80], [row, row], color=colour, linewidth=1)
            axes.plot(_ratio(m), row, markers[m.case["n_elements"]], color=colour, markersize=4)
        of_pass = goals if pass_ == BOTH else {}
        for op, goal in of_pass.items():
            axes.plot([goal, goal], [ops.index(op) - 0.45, ops.index(op) + 0.45], color="black", linestyle=":")
        axes.set_xscale("log")
        _ticks(axes.xaxis, axes.set_xlim(_limits(group, *of_pass.values())))
        axes.set_title(pass_, fontsize="medium")
        axes.set_xlabel(f"time of {TORCH} / time of {OURS}")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(ops)), ops)
    panels[0].invert_yaxis()
    styles: dict[str, dict[str, Any]] = {dtype: {"color": DTYPE_COLOURS[dtype]} for dtype in dtypes}
    for n in sizes:
        styles[f"{size_label(n)} elements"] = {"color": "grey", "marker": markers[n], "linestyle": ""}
    _legend(figure, styles | ({"goal": {"color": "black", "linestyle": ":"}} if goals else {}))
    return figure


def _present(measurements: list[Measurement]) -> tuple[list[str], list[str]]:
    """Of the passes and dtypes those that were measured."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    return passes, [dtype for dtype in DTYPES if any(m.case["dtype"] == dtype for m in measurements)]


def _ratio(m: Measurement) -> float:
    ratio = m.ratio(TORCH)
    return ratio.median if ratio else math.nan


def _of_sizes(measurements: list[Measurement]) -> list[Measurement]:
    return sorted((m for m in measurements if m.case["kind"] == "size"), key=lambda m: int(m.case["n_elements"]))


def _by_size(
    axes: Axes, measurements: list[Measurement], value: Callable[[Measurement], float | None], **style: Any
) -> None:
    """A line through the sizes, and a point for each of the other cases."""
    line = [(m.case["n_elements"], y) for m in _of_sizes(measurements) if (y := value(m))]
    axes.plot([n for n, _ in line], [y for _, y in line], **style)
    for m in measurements:
        if (marker := POINT_MARKERS.get(m.case["kind"])) and (y := value(m)):
            axes.plot(m.case["n_elements"], y, **style | {"marker": marker, "linestyle": ""})
    axes.set_xscale("log", base=2)
    axes.set_xlabel("elements")
    axes.grid(alpha=0.3)


def _limits(measurements: list[Measurement], *others: float) -> tuple[float, float]:
    """By the medians: on a busy machine one p80 of 90 would press every line flat."""
    medians = [1.0, *others, *map(_ratio, measurements)]
    return min(medians) / 1.3, max(medians) * 1.3


def _ticks(axis: Axis, limits: tuple[float, float]) -> None:
    """At 0.5, 1, 2 and the like; over a small range evenly spaced."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if limits[1] / limits[0] > 4 else AutoLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    handles = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(handles, list(styles), loc="outside lower center", ncols=len(styles))
