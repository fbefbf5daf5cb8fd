"""The tables of a run of the default command."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import plot
from bench.cases import DTYPES, size_label
from bench.environment import one_line
from bench.ops import BOTH, PASSES
from bench.results import CLOCKS, COLD, COPY, OURS, TORCH, WALL, Measurement, Results, Spread

# The sizes of the short table: one element, launch-bound, about L2, beyond L2, and the largest.
MARKDOWN_SIZES = (2**0, 2**10, 2**16, 2**20, 2**24, 2**26, 2**30)
GOAL_ELEMENTS = 2**24  # the goals hold from this size up, in device time


def present(results: Results, folder: Path) -> None:
    """Print the tables and what went wrong, draw the pictures into ``folder``, and name the files."""
    console = output_console()
    console.print(one_line(results.environment), highlight=False)
    for table in all_measurements(results):
        console.print(table)
    console.print(summary(results))
    if not by_kernel(results):
        console.print(
            "No kernel of ours ran: PyTorch's operators are on both sides. Ratios are the wrapper's cost, and noise; "
            "no picture is drawn of them."
        )
    for failure in results.failures:
        console.print(f"[bold red]FAILED[/] {failure}", highlight=False)
    if results.status == "out of time":
        console.print(f"Out of time: {results.environment['cases_left_out']} cases were not measured.")
    pictures = plot.draw(by_kernel(results), results.environment, folder)
    print_files(folder, results.status, [results.path, *pictures])


def print_files(folder: Path, status: str | None, paths: Sequence[Path]) -> None:
    names = ", ".join(path.name for path in paths)
    output_console().print(f"Results in {folder} ({status or 'complete'}): {names}", soft_wrap=True, highlight=False)


def output_console() -> Console:
    """Standard output; 190 columns where there is no terminal, since rich would assume 80 and break the rows."""
    return Console() if sys.stdout.isatty() else Console(width=190)


def by_kernel(results: Results) -> list[Measurement]:
    """Where kernels ran at all: there, a ratio at a size below the threshold says something, too."""
    return results.measurements if any(m.route == "kernel" for m in results.measurements) else []


def all_measurements(results: Results) -> Iterator[Table]:
    """Every measurement, a table for each clock and pass."""
    for clock, pass_ in product(CLOCKS, PASSES):
        group = [m for m in results.measurements if (m.clock, m.pass_) == (clock, pass_)]
        if group:
            yield _table(f"{pass_}: {clock} time", group)


def _table(title: str, group: list[Measurement]) -> Table:
    present = list(dict.fromkeys(name for m in group for name in (*m.samples_ns, *m.failures)))
    others = [name for name in present if name not in (OURS, TORCH, COPY)]
    table = Table(title=title, caption="median (p20–p80); ratios above 1: sigmoid_op is faster", title_justify="left")
    table.add_column("op, elements", no_wrap=True)
    table.add_column("dtype")
    headings = [f"{name}\nµs" for name in (OURS, TORCH, *others)]
    headings += [f"ratio to\n{name}" for name in (TORCH, *others)]
    headings += ["bytes/element,\ntorch's", "GB/s,\ntorch's", "% of\ncopy"]
    with_memory = any(m.peak_bytes for m in group)
    for heading in [*headings, *(["peak MiB,\ntorch's"] if with_memory else []), "route"]:
        table.add_column(heading, justify="right")
    key = "dtype" if len({m.case["op"] for m in group}) == 1 else "op"
    for previous, m in zip([None, *group], group, strict=False):
        if previous and previous.case[key] != m.case[key]:
            table.add_section()
        copy = m.ratio(COPY)
        moved = [n_bytes / m.case["n_elements"] for n_bytes in (m.bytes_moved, m.case["pytorch_bytes"][m.pass_])]
        cells = [
            *(_time(m, name) for name in (OURS, TORCH, *others)),
            *(_ratio(m.ratio(name)) for name in (TORCH, *others)),
            ", ".join(f"{n:.3g}" for n in moved),
            ", ".join(_number(m.gigabytes_per_second(name)) for name in (OURS, TORCH)),
            f"{100 * copy.median:.0f}" if copy else "",
            *([", ".join(_mebibytes(m, name) for name in (OURS, TORCH))] if with_memory else []),
            m.route,
        ]
        count = f" ({m.case['count']} calls)" if m.case["kind"] == "recorded" else ""
        table.add_row(m.case["label"] + count, m.case["dtype"], *cells)
    return table


def summary(results: Results) -> Table:
    """Per op, clock and pass: how the library compares with PyTorch over all cases, and whether the goal is met."""
    table = Table(title=f"{OURS} against {TORCH} (above 1: faster)", title_justify="left")
    for heading in ("op", "clock", "pass"):
        table.add_column(heading)
    for heading in (
        "cases",
        "geometric mean",
        "lowest ratio",
        "clearly slower",
        f"goal from {size_label(GOAL_ELEMENTS)}",
    ):
        table.add_column(heading, justify="right")
    ops = dict.fromkeys(m.case["op"] for m in results.measurements)
    for op, clock, pass_ in product(ops, CLOCKS, PASSES):
        group = [m for m in results.measurements if (m.case["op"], m.clock, m.pass_) == (op, clock, pass_)]
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
    table.caption = "clearly slower: at least 80 % of the rounds were; a goal is judged by the lowest ratio"
    return table


def markdown(results: Results) -> str:
    """By op, of one op by size: the lowest ratio to PyTorch, and of the copy's speed; where it was measured.

    Device time where there is some, else wall time. An op's lowest is that of the sizes from which the goals hold.
    """
    lines = [f"{one_line(results.environment)}."]
    measured = by_kernel(results)
    if not measured:
        return "\n".join([*lines, "", "No kernel of ours ran, so there is nothing to compare."])
    clock = COLD if any(m.clock == COLD for m in measured) else WALL
    single = len({m.case["op"] for m in measured}) == 1
    dtypes = [dtype for dtype in DTYPES if any(m.case["dtype"] == dtype for m in measured)]
    lines += [
        f"The {clock} time of PyTorch over ours (above 1: ours is faster), the lowest of "
        + ("each size" if single else f"all sizes from {size_label(GOAL_ELEMENTS)} elements")
        + "; in brackets our speed in percent of a copy's.",
        "",
        f"| {'elements' if single else 'op'} | pass | {' | '.join(dtypes)} |",
        f"|---|---|{'--:|' * len(dtypes)}",
    ]
    rows: dict[tuple[str, str], dict[str, list[Measurement]]] = {}
    for m in measured:
        n = m.case["n_elements"]
        if m.clock == clock and m.ratio(TORCH) and (n in MARKDOWN_SIZES if single else n >= GOAL_ELEMENTS):
            name = size_label(n) if single else m.case["op"]
            rows.setdefault((name, m.pass_), {}).setdefault(m.case["dtype"], []).append(m)
    for (name, pass_), by_dtype in rows.items():
        cells = (_markdown_cell(by_dtype.get(dtype, [])) for dtype in dtypes)
        lines.append(f"| {name} | {pass_} | {' | '.join(cells)} |")
    ratios = [ratio.median for m in measured if m.clock == clock and (ratio := m.ratio(TORCH))]
    return "\n".join([*lines, "", f"Below 1 in {sum(r < 1 for r in ratios)} of {len(ratios)} cases."])


def _markdown_cell(group: list[Measurement]) -> str:
    ratios = [(ratio.median, m) for m in group if (ratio := m.ratio(TORCH))]
    if not ratios:
        return "not measured"
    lowest, m = min(ratios, key=lambda pair: pair[0])
    copy = m.ratio(COPY)
    return f"{lowest:.2f}" + (f" ({100 * copy.median:.0f} %)" if copy else "")


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
