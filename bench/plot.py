"""Plots of a results file: the ratio to torch, and the bandwidth beside a copy's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, StrMethodFormatter

from bench.cases import DTYPES, PASSES
from bench.providers import COMPILED, COPY, OURS, TORCH, TUTORIAL
from bench.results import Measurement, Results

DTYPE_COLOURS = dict(zip(DTYPES, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
PROVIDER_STYLES: dict[str, dict[str, Any]] = {
    COPY: {"color": "black", "linestyle": "--"},
    TUTORIAL: {"color": "tab:brown", "marker": "v"},
    COMPILED: {"color": "tab:purple", "marker": "^"},
    TORCH: {"color": "tab:blue", "marker": "s"},
    OURS: {"color": "tab:red", "marker": "o"},
}
# The sizes of the grid are joined by a line; every other case is a point of its own.
POINT_MARKERS = {"odd": "x", "misaligned": "+", "recorded": "."}


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Write the plots of every clock that was measured, and yield their paths."""
    for clock in dict.fromkeys(m.clock for m in results.measurements):
        measurements = [m for m in results.measurements if m.clock == clock and OURS in m.samples_ns]
        if not measurements:
            continue
        for name, figure in (("ratio", _ratios(measurements)), ("bandwidth", _bandwidths(measurements))):
            yield save(figure, name, clock, results, folder)


def save(figure: Figure, name: str, clock: str, results: Results, folder: Path) -> Path:
    """Write the figure, with a title that says where and by which clock was measured."""
    figure.suptitle(f"{results.environment['device']}: {clock} time")
    path = folder / f"{name}-{clock.replace(',', '').replace(' ', '-').lower()}.png"
    figure.savefig(path, dpi=120)
    return path


def _ratios(measurements: list[Measurement]) -> Figure:
    """A panel for each pass: torch's time over ours, a line with its p20 to p80 for each dtype."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    figure = Figure(figsize=(2 + 4 * len(passes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    legend = {}
    for axes, pass_ in zip(panels, passes, strict=True):
        axes.axhline(1, color="black", linewidth=0.8)
        for m in measurements:
            ratio = m.ratio(TORCH, OURS)
            marker = POINT_MARKERS.get(m.case["kind"])
            if m.pass_ == pass_ and marker and ratio:
                axes.plot(m.case["n_elements"], ratio.median, marker, color=DTYPE_COLOURS[m.case["dtype"]])
                legend[m.case["kind"]] = Line2D([], [], color="grey", marker=marker, linestyle="")
        for dtype, colour in DTYPE_COLOURS.items():
            line = [
                (m.case["n_elements"], ratio.median, ratio.p20, ratio.p80)
                for m in _of_kind("size", measurements, pass_, dtype)
                if (ratio := m.ratio(TORCH, OURS))
            ]
            if line:
                n_elements, median, p20, p80 = zip(*line, strict=True)
                axes.plot(n_elements, median, color=colour, marker=".")
                axes.fill_between(n_elements, p20, p80, color=colour, alpha=0.15, linewidth=0)
            if any(m.case["dtype"] == dtype for m in measurements):
                legend[dtype] = Line2D([], [], color=colour, marker=".")
        _label_elements(axes, pass_)
    # Limits by the medians: on a busy machine one p80 of 90 would press every line flat.
    medians = [1.0, *(ratio.median for m in measurements if (ratio := m.ratio(TORCH, OURS)))]
    low, high = min(medians) / 1.5, max(medians) * 1.5
    panels[0].set_yscale("log", base=2)
    panels[0].set_ylim(low, high)
    panels[0].yaxis.set_major_locator(LogLocator(2, (1, 1.25, 1.5, 1.75) if high < 5 * low else (1, 1.5)))
    panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0].set_ylabel(f"time of {TORCH} / time of {OURS}\n(above 1: {OURS} is faster)")
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return figure


def _bandwidths(measurements: list[Measurement]) -> Figure:
    """A row of panels for each dtype, one for each pass: GB/s of every provider."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    dtypes = [dtype for dtype in DTYPES if any(m.case["dtype"] == dtype for m in measurements)]
    figure = Figure(figsize=(2 + 4 * len(passes), 1.4 + 2.8 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(passes), sharex=True, sharey=True, squeeze=False)
    present = [name for name in PROVIDER_STYLES if any(name in m.samples_ns for m in measurements)]
    for row, dtype in zip(panels, dtypes, strict=True):
        for axes, pass_ in zip(row, passes, strict=True):
            for name in present:
                style = {"markersize": 4, **PROVIDER_STYLES[name]}
                line = _points(_of_kind("size", measurements, pass_, dtype), name)
                axes.plot(*line, **style)
                others = _of_kind("recorded", measurements, pass_, dtype)
                axes.plot(*_points(others, name), **{"marker": "_", **style, "linestyle": ""})
            axes.set_yscale("log")
            _label_elements(axes, f"{dtype}, {pass_}")
        row[0].set_ylabel("GB/s, read and written")
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
    handles = [Line2D([], [], **PROVIDER_STYLES[name]) for name in present]
    figure.legend(handles, present, loc="outside lower center", ncols=len(present))
    return figure


def _of_kind(kind: str, measurements: list[Measurement], pass_: str, dtype: str) -> list[Measurement]:
    return [m for m in measurements if (m.case["kind"], m.pass_, m.case["dtype"]) == (kind, pass_, dtype)]


def _points(measurements: list[Measurement], provider: str) -> tuple[list[int], list[float]]:
    pairs = [(m.case["n_elements"], rate) for m in measurements if (rate := m.gigabytes_per_second(provider))]
    return [n for n, _ in pairs], [rate for _, rate in pairs]


def _label_elements(axes: Axes, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("elements")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
