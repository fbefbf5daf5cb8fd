"""Pictures of a run: the ratio to PyTorch, of one op by size, of several op by op; and of one op the bandwidth."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

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
POINT_MARKERS = {"odd": "x", "misaligned": "+", "recorded": "."}  # sizes are joined by a line
SIZE_MARKERS = ("o", "s", "^", "D", "v")
STEPS = (1, 1.1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)


def draw(measurements: Sequence[Measurement], where: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Write the pictures, of device time where it was measured and else of wall time, and yield their paths."""
    timed = [m for m in measurements if m.ratio(TORCH)]
    for clock in dict.fromkeys(m.clock for m in timed):
        group = [m for m in timed if m.clock == clock]
        figures = {"ratio": ratios_by_op(group)}
        if len({m.case["op"] for m in group}) == 1 and len({m.case["n_elements"] for m in group}) > 1:
            figures = {"ratio": ratios_by_size(group), "bandwidth": bandwidths(group)}
        for name, figure in figures.items():
            figure.suptitle(f"{where['device']}: {clock} time")
            path = folder / f"{name}-{clock.replace(',', '').replace(' ', '-').lower()}.png"
            figure.savefig(path, dpi=120)
            yield path


def nice_ticks(axis: Axis, low: float, high: float) -> None:
    """At 0.5, 0.8, 1, 1.1 and the like: as fine as leaves at most eight in view."""
    for steps in (STEPS, (1, 1.2, 1.5, 2, 3, 5, 8), (1, 2, 5), (1,)):
        ticks = [number * 10.0**e for e in range(-4, 6) for number in steps]
        ticks = [float(f"{tick:.2g}") for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def limits(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """By the medians: on a busy machine one p80 of 90 would press every line flat."""
    medians = [1.0, *(ratio.median for m in measurements if (ratio := m.ratio(TORCH)))]
    return min(medians) / 1.3, max(medians) * 1.3


def ratios_by_size(measurements: list[Measurement]) -> Figure:
    """A panel for each pass: PyTorch's time over ours, a line with its p20 to p80 for each dtype."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    figure = Figure(figsize=(2 + 4 * len(passes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    legend = {}
    for axes, pass_ in zip(panels, passes, strict=True):
        axes.axhline(1, color="black", linewidth=0.8)
        for m in measurements:
            ratio, marker = m.ratio(TORCH), POINT_MARKERS.get(m.case["kind"])
            if m.pass_ == pass_ and marker and ratio:
                axes.plot(m.case["n_elements"], ratio.median, marker, color=DTYPE_COLOURS[m.case["dtype"]])
                legend[m.case["kind"]] = Line2D([], [], color="grey", marker=marker, linestyle="")
        for dtype, colour in DTYPE_COLOURS.items():
            group = _of_sizes(measurements, pass_, dtype)
            line = [(m.case["n_elements"], ratio) for m in group if (ratio := m.ratio(TORCH))]
            n_elements = [n for n, _ in line]
            axes.plot(n_elements, [ratio.median for _, ratio in line], color=colour, marker=".")
            low, high = [ratio.p20 for _, ratio in line], [ratio.p80 for _, ratio in line]
            axes.fill_between(n_elements, low, high, color=colour, alpha=0.15, linewidth=0)
            if line:
                legend[dtype] = Line2D([], [], color=colour, marker=".")
        _label_elements(axes, pass_, measurements)
    panels[0].set_yscale("log")
    panels[0].set_ylim(*limits(measurements))
    nice_ticks(panels[0].yaxis, *limits(measurements))
    panels[0].set_ylabel(f"time of {TORCH} / time of {OURS}\n(above 1: {OURS} is faster)")
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return figure


def bandwidths(measurements: list[Measurement]) -> Figure:
    """A row of panels for each dtype, one for each pass: GB/s of every form."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    dtypes = [dtype for dtype in DTYPES if any(m.case["dtype"] == dtype for m in measurements)]
    figure = Figure(figsize=(2 + 4 * len(passes), 1.4 + 2.8 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(passes), sharex=True, sharey=True, squeeze=False)
    present = [name for name in FORM_STYLES if any(name in m.samples_ns for m in measurements)]
    for row, dtype in zip(panels, dtypes, strict=True):
        for axes, pass_ in zip(row, passes, strict=True):
            for name in present:
                style = {"markersize": 4, **FORM_STYLES[name]}
                axes.plot(*_rates(_of_sizes(measurements, pass_, dtype), name), **style)
                others = [m for m in measurements if (m.case["kind"], m.pass_) == ("recorded", pass_)]
                others = [m for m in others if m.case["dtype"] == dtype]
                axes.plot(*_rates(others, name), **{"marker": "_", **style, "linestyle": ""})
            axes.set_ylim(0, None)
            _label_elements(axes, f"{dtype}, {pass_}", measurements)
        row[0].set_ylabel("GB/s, read and written")
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
    handles = [Line2D([], [], **FORM_STYLES[name]) for name in present]
    figure.legend(handles, present, loc="outside lower center", ncols=len(present))
    return figure


def ratios_by_op(measurements: list[Measurement]) -> Figure:
    """A panel for each pass, a row for each op, a point with its p20 to p80 for each dtype and size."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    ops = list(dict.fromkeys(m.case["op"] for m in measurements))
    dtypes = [dtype for dtype in DTYPES if any(m.case["dtype"] == dtype for m in measurements)]
    sizes = sorted({m.case["n_elements"] for m in measurements})
    markers = {size: SIZE_MARKERS[i % len(SIZE_MARKERS)] for i, size in enumerate(sizes)}
    figure = Figure(figsize=(4 + 3.6 * len(passes), 2.2 + 0.5 * len(ops)), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axes, pass_ in zip(panels, passes, strict=True):
        axes.axvline(1, color="black", linewidth=0.8)
        for m in measurements:
            ratio = m.ratio(TORCH)
            if m.pass_ == pass_ and ratio:
                row = ops.index(m.case["op"]) + 0.2 * (dtypes.index(m.case["dtype"]) - (len(dtypes) - 1) / 2)
                colour = DTYPE_COLOURS[m.case["dtype"]]
                axes.plot([ratio.p20, ratio.p80], [row, row], color=colour, linewidth=1)
                axes.plot(ratio.median, row, markers[m.case["n_elements"]], color=colour, markersize=4)
        goals = {m.case["op"]: m.case["goal"] for m in measurements if m.clock == COLD and pass_ == BOTH}
        for row, op in enumerate(ops):
            if goal := goals.get(op):
                axes.plot([goal, goal], [row - 0.45, row + 0.45], color="black", linestyle=":")
        axes.set_xscale("log")
        low, high = limits([m for m in measurements if m.pass_ == pass_])
        high = max([high, *(1.3 * goal for goal in goals.values() if goal)])
        axes.set_xlim(low, high)
        nice_ticks(axes.xaxis, low, high)
        axes.set_title(pass_, fontsize="medium")
        axes.set_xlabel(f"time of {TORCH} / time of {OURS}")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(ops)), ops)
    panels[0].invert_yaxis()
    legend = {dtype: Line2D([], [], color=DTYPE_COLOURS[dtype]) for dtype in dtypes}
    legend |= {
        f"{size_label(n)} elements": Line2D([], [], color="grey", marker=markers[n], linestyle="") for n in sizes
    }
    if any(m.clock == COLD and m.case["goal"] for m in measurements):
        legend["goal"] = Line2D([], [], color="black", linestyle=":")
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return figure


def _of_sizes(measurements: list[Measurement], pass_: str, dtype: str) -> list[Measurement]:
    group = [m for m in measurements if (m.case["kind"], m.pass_, m.case["dtype"]) == ("size", pass_, dtype)]
    return sorted(group, key=lambda m: int(m.case["n_elements"]))


def _rates(measurements: list[Measurement], form: str) -> tuple[list[int], list[float]]:
    pairs = [(m.case["n_elements"], rate) for m in measurements if (rate := m.gigabytes_per_second(form))]
    return [n for n, _ in pairs], [rate for _, rate in pairs]


def _label_elements(axes: Axes, title: str, measurements: list[Measurement]) -> None:
    exponents = [math.log2(m.case["n_elements"]) for m in measurements]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2.0**e for e in range(low, high + 1, max(1, (high - low) // 6))]))
    axes.set_xlabel("elements")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
