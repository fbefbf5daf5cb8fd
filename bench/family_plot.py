"""The plot of a run of ``python -m bench --ops``: how many times as fast as eager PyTorch each op is."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter

from bench.cases import PASSES, size_label
from bench.plot import DTYPE_COLOURS, save
from bench.providers import OURS, TORCH
from bench.results import COLD, WALL, Measurement, Results

SIZE_MARKERS = ("o", "s", "^", "D", "v")


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Write the plot, of device time where it was measured and else of wall time, and yield its path."""
    timed = [m for m in results.measurements if m.ratio(TORCH, OURS)]
    clock = COLD if any(m.clock == COLD for m in timed) else WALL
    measurements = [m for m in timed if m.clock == clock]
    if measurements:
        yield save(_ratios(measurements), "ratio", clock, results, folder)


def _ratios(measurements: list[Measurement]) -> Figure:
    """A panel for each pass, a row for each op, a point with its p20 to p80 for each dtype and size."""
    passes = [pass_ for pass_ in PASSES if any(m.pass_ == pass_ for m in measurements)]
    members = list(dict.fromkeys(m.case["member"] for m in measurements))
    dtypes = [dtype for dtype in DTYPE_COLOURS if any(m.case["dtype"] == dtype for m in measurements)]
    sizes = sorted({m.case["n_elements"] for m in measurements})
    markers = {size: SIZE_MARKERS[i % len(SIZE_MARKERS)] for i, size in enumerate(sizes)}
    figure = Figure(figsize=(4 + 3.6 * len(passes), 2.2 + 0.5 * len(members)), layout="constrained")
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axes, pass_ in zip(panels, passes, strict=True):
        axes.axvline(1, color="black", linewidth=0.8)
        for m in measurements:
            ratio = m.ratio(TORCH, OURS)
            if m.pass_ == pass_ and ratio:
                row = members.index(m.case["member"]) + 0.2 * (dtypes.index(m.case["dtype"]) - (len(dtypes) - 1) / 2)
                colour = DTYPE_COLOURS[m.case["dtype"]]
                axes.plot([ratio.p20, ratio.p80], [row, row], color=colour, linewidth=1)
                axes.plot(ratio.median, row, markers[m.case["n_elements"]], color=colour, markersize=4)
        for row, member in enumerate(members):
            goal = next(m.case["goal"] for m in measurements if m.case["member"] == member)
            if goal and pass_ == "forward+backward":
                axes.plot([goal, goal], [row - 0.45, row + 0.45], color="black", linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(pass_, fontsize="medium")
        axes.set_xlabel(f"time of {TORCH} / time of {OURS}")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(members)), members)
    panels[0].invert_yaxis()
    legend = {dtype: Line2D([], [], color=DTYPE_COLOURS[dtype]) for dtype in dtypes}
    legend |= {
        f"{size_label(n)} elements": Line2D([], [], color="grey", marker=markers[n], linestyle="") for n in sizes
    }
    legend["goal"] = Line2D([], [], color="black", linestyle=":")
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=len(legend))
    return figure
