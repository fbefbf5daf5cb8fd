"""What the commands print, and the tables of the default one."""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import plot
from bench.cases import size_label
from bench.environment import one_line
from bench.ops import BOTH, PASSES
from bench.results import CLOCKS, COLD, COPY, OURS, TORCH, Measurement, Spread, failures, load, load_measurements

GOAL_ELEMENTS = 2**24  # the goals hold from this size up, in device time


def present(path: Path, show: Callable[[dict[str, Any], Path], list[Path]], folder: Path | None = None) -> None:
    """Print what is in a results file, draw its pictures into ``folder``, by default its own, and name the files."""
    record, folder = load(path), folder or path.parent
    if "commit" in record["environment"]:  # an example does not tell
        output_console().print(one_line(record["environment"]), highlight=False)
    print_files(folder, record.get("status"), [path, *show(record, folder)])


def print_files(folder: Path, status: str | None, paths: Sequence[Path]) -> None:
    names = ", ".join(path.name for path in paths)
    output_console().print(f"Results in {folder} ({status or 'complete'}): {names}", soft_wrap=True, highlight=False)


def output_console() -> Console:
    """Standard output; 190 columns where there is no terminal, since rich would assume 80 and break the rows."""
    return Console() if sys.stdout.isatty() else Console(width=190)


def left_table(title: str, names: Sequence[str], numbers: Sequence[str], **options: Any) -> Table:
    """An empty table: columns of ``names`` on the left, of ``numbers`` aligned on the right."""
    table = Table(*names, title=title, title_justify="left", **options)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the tables of a results.json and what went wrong, and draw its pictures."""
    measurements = load_measurements(record)
    console = output_console()
    for table in (*all_measurements(measurements), summary(measurements)):
        console.print(table)
    for failure in failures(measurements):
        console.print(f"[bold red]FAILED[/] {escape(failure)}", highlight=False)
    if record["status"] == "out of time":
        console.print(f"Out of time: {record['environment']['cases_left_out']} cases were not measured.")
    if all(m.route == "torch" for m in measurements):
        console.print(
            "No kernel of ours ran: PyTorch's operators are on both sides. Ratios are the wrapper's cost, and noise; "
            "no picture is drawn of them."
        )
        return []
    return list(plot.draw(measurements, record["environment"]["device"], folder))


def all_measurements(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """Every measurement, a table for each clock and pass."""
    for clock, pass_ in product(CLOCKS, PASSES):
        group = [m for m in measurements if (m.clock, m.pass_) == (clock, pass_)]
        if group:
            yield _table(f"{pass_}: {clock} time", group)


def _table(title: str, group: list[Measurement]) -> Table:
    present = dict.fromkeys(name for m in group for name in (*m.samples_ns, *m.failures))
    forms = [OURS, TORCH, *(name for name in present if name not in (OURS, TORCH, COPY))]
    with_memory = any(m.peak_bytes for m in group)
    headings = [f"{name}\nµs" for name in forms] + [f"ratio to\n{name}" for name in forms[1:]]
    headings += ["bytes/element,\ntorch's", "GB/s,\ntorch's", "% of\ncopy"]
    headings += ["peak MiB,\ntorch's", "route"] if with_memory else ["route"]
    caption = "median (p20–p80); ratios above 1: sigmoid_op is faster"
    table = left_table(title, ["op, elements", "dtype"], headings, caption=caption)
    table.columns[0].no_wrap = True
    key = "dtype" if len({m.case["op"] for m in group}) == 1 else "op"
    for previous, m in zip([None, *group], group, strict=False):
        if previous and previous.case[key] != m.case[key]:
            table.add_section()
        copy = m.ratio(COPY)
        moved = [n_bytes / m.case["n_elements"] for n_bytes in (m.bytes_moved, m.case["pytorch_bytes"][m.pass_])]
        cells = [
            *(_time(m, name) for name in forms),
            *(_ratio(m.ratio(name)) for name in forms[1:]),
            ", ".join(f"{n:.3g}" for n in moved),
            ", ".join(_number(m.gigabytes_per_second(name)) for name in (OURS, TORCH)),
            f"{100 * copy.median:.0f}" if copy else "",
        ]
        if with_memory:
            cells.append(", ".join(_mebibytes(m, name) for name in (OURS, TORCH)))
        count = f" ({m.case['count']} calls)" if m.case["kind"] == "recorded" else ""
        table.add_row(m.case["label"] + count, m.case["dtype"], *cells, m.route)
    return table


def summary(measurements: Sequence[Measurement]) -> Table:
    """Per op, clock and pass: how the library compares with PyTorch over all cases, and whether the goal is met."""
    table = left_table(
        f"{OURS} against {TORCH} (above 1: faster)",
        ["op", "clock", "pass"],
        ["cases", "geometric mean", "lowest ratio", "clearly slower", f"goal from {size_label(GOAL_ELEMENTS)}"],
        caption="clearly slower: at least 80 % of the rounds were; a goal is judged by the lowest ratio",
    )
    for op, clock, pass_ in product(dict.fromkeys(m.case["op"] for m in measurements), CLOCKS, PASSES):
        group = [m for m in measurements if (m.case["op"], m.clock, m.pass_) == (op, clock, pass_)]
        ratios = [(ratio, m) for m in group if (ratio := m.ratio(TORCH))]
        if ratios:
            mean = statistics.geometric_mean(ratio.median for ratio, _ in ratios)
            lowest, m = min(ratios, key=lambda pair: pair[0].median)
            at = f"{m.case['dtype']} {size_label(m.case['n_elements'])}"
            slower = sum(ratio.p80 < 1 for ratio, _ in ratios)
            large = [ratio.median for ratio, m in ratios if m.case["n_elements"] >= GOAL_ELEMENTS]
            goal = m.case["goal"] if (clock, pass_) == (COLD, BOTH) and large else None
            met = "" if goal is None else f"{goal:g}: {'met' if min(large) >= goal else '[bold red]missed[/]'}"
            cells = [f"{mean:.3f}", f"{lowest.median:.3f} at {at}", str(slower), met]
            table.add_row(op, clock, pass_, str(len(ratios)), *cells)
    return table


def _time(m: Measurement, form: str) -> str:
    if form in m.failures:
        return "failed"
    time_us = m.time_us(form)
    return f"{_number(time_us.median)} ({_number(time_us.p20)}–{_number(time_us.p80)})" if time_us else ""


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.3f} ({ratio.p20:.2f}–{ratio.p80:.2f})" if ratio else ""


def _number(value: float | None) -> str:
    """Three digits, without an exponent where there are more."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _mebibytes(m: Measurement, form: str) -> str:
    return f"{m.peak_bytes[form] / 2**20:.4g}" if form in m.peak_bytes else "-"
