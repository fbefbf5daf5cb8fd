"""Make tables and plots from a results file of an earlier run."""

import argparse
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import family_plot, family_report, plot
from bench.cases import DTYPES, PASSES
from bench.cells import number, peak_cell, ratio_cell, time_cell
from bench.providers import COMPILED, COPY, OURS, TORCH, TUTORIAL
from bench.results import CLOCKS, FAMILY, Measurement, Results

# A README's table has room for a few sizes: one element, launch-bound, about L2, beyond L2, and the largest.
MARKDOWN_SIZES = ("2^0", "2^10", "2^16", "2^20", "2^24", "2^26", "2^30")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="FILE.json", help="a results.json")
    parser.add_argument("--out", type=Path, help="folder for the plots (default: beside the file)")
    parser.add_argument(
        "--markdown", action="store_true", help="print a short table for a README instead, and no plots"
    )


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 2 for a file that holds no results."""
    try:
        results = Results.load(args.results)
    except (OSError, ValueError) as error:
        print(f"python -m bench report: error: {error}", file=sys.stderr)
        return 2
    if args.markdown:
        print(family_report.markdown(results) if results.kind == FAMILY else markdown(results))
    else:
        folder: Path = args.out or args.results.parent
        folder.mkdir(parents=True, exist_ok=True)
        present(results, folder)
    return 0


def present(results: Results, folder: Path) -> None:
    """Print the tables and what went wrong, draw the plots into ``folder``, and name the files."""
    console = output_console()
    of_a_family = results.kind == FAMILY
    for table in family_report.tables(results) if of_a_family else tables(results):
        console.print(table)
    if {m.route for m in results.measurements} == {"torch"}:
        console.print(
            "Both sides ran PyTorch's own kernel, the fallback: the ratios are the wrapper's cost, and noise."
        )
    for failure in results.failures:
        console.print(f"[bold red]FAILED[/] {failure}", highlight=False)
    if results.status == "interrupted":
        console.print("Interrupted: this is what was measured until then.")
    if results.status == "out of time":
        console.print(f"Out of time: {results.environment['cases_left_out']} cases were not measured.")
    files = [results.path, *(family_plot.draw if of_a_family else plot.draw)(results, folder)]
    console.print(f"Results in {folder}: {', '.join(path.name for path in files)}", soft_wrap=True, highlight=False)


def output_console() -> Console:
    """Standard output; 190 columns where there is no terminal, since rich would assume 80 and break the rows."""
    return Console() if sys.stdout.isatty() else Console(width=190)


def tables(results: Results) -> Iterator[Table]:
    """Every measurement, a table for each clock and pass; then how the library compares over all."""
    for clock, pass_ in product(CLOCKS, PASSES):
        group = [m for m in results.measurements if (m.clock, m.pass_) == (clock, pass_)]
        if group:
            yield _table(f"{pass_}: {clock} time", group)
    if results.measurements:
        yield summary(results)


def summary(results: Results) -> Table:
    """Per clock, pass and dtype: how the library compares with torch over all cases."""
    table = Table(title=f"{OURS} against {TORCH} on {results.environment['device']} (above 1: faster)")
    for name in ("clock", "pass", "dtype"):
        table.add_column(name)
    for name in ("cases", "geometric mean", "lowest ratio", "clearly slower"):
        table.add_column(name, justify="right")
    for clock, pass_, dtype in product(CLOCKS, PASSES, DTYPES):
        group = [m for m in results.measurements if (m.clock, m.pass_, m.case["dtype"]) == (clock, pass_, dtype)]
        ratios = [(ratio, m.case["label"]) for m in group if (ratio := m.ratio(TORCH, OURS))]
        if not ratios:
            continue
        mean = statistics.geometric_mean(ratio.median for ratio, _ in ratios)
        lowest, label = min(ratios, key=lambda pair: pair[0].median)
        slower = sum(ratio.p80 < 1 for ratio, _ in ratios)
        table.add_row(
            clock, pass_, dtype, str(len(ratios)), f"{mean:.3f}", f"{lowest.median:.3f} at {label}", str(slower)
        )  # fmt: skip
    table.caption = "clearly slower: at least 80 % of the rounds were"
    return table


def markdown(results: Results) -> str:
    """Ratio to torch and percent of the copy at a few sizes, and how many of all cases are slower."""
    env = results.environment
    dtypes = list(dict.fromkeys(m.case["dtype"] for m in results.measurements))
    lines = [
        f"{env['device']}, torch {env['torch']}, Triton {env['triton']}, Python {env['python']}, "
        f"commit {(env['commit'] or 'unknown')[:12]}{' with changes' if env['dirty'] else ''}, {env['date'][:10]}. "
        "The time of torch.sigmoid over ours (above 1: ours is faster); in brackets our speed in percent of a copy of "
        "the same bytes.",
        "",
        f"| clock | pass | elements | {' | '.join(dtypes)} |",
        f"|---|---|--:|{'--:|' * len(dtypes)}",
    ]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for m in results.measurements:
        if m.case["label"] in MARKDOWN_SIZES:
            row = cells.setdefault((m.clock, m.pass_, m.case["label"]), {})
            row[m.case["dtype"]] = _markdown_cell(m)
    # Sorting is stable: the sizes keep their order.
    for (clock, pass_, label), row in sorted(cells.items(), key=lambda item: (CLOCKS.index(item[0][0]), item[0][1])):
        values = " | ".join(row.get(dtype, "not measured") for dtype in dtypes)
        lines.append(f"| {clock} | {pass_} | {label} | {values} |")
    lines.append("")
    ratios = [(ratio, m) for m in results.measurements if (ratio := m.ratio(TORCH, OURS))]
    for clock in dict.fromkeys(m.clock for _, m in ratios):
        of_clock = [(ratio, m) for ratio, m in ratios if m.clock == clock]
        below = sum(ratio.median < 1 for ratio, _ in of_clock)
        lowest, m = min(of_clock, key=lambda pair: pair[0].median)
        lines.append(
            f"- {clock}: below 1 in {below} of {len(of_clock)} cases, lowest {lowest.median:.2f} "
            f"({m.pass_}, {m.case['dtype']}, {m.case['label']})."
        )
    return "\n".join(lines)


def _table(title: str, measurements: list[Measurement]) -> Table:
    others = [name for name in (COMPILED, TUTORIAL) if any(name in m.samples_ns for m in measurements)]
    with_memory = any(m.peak_bytes for m in measurements)
    table = Table(title=title, caption="median (p20–p80); ratio above 1: sigmoid_op is faster")
    for name in ("dtype", "elements"):
        table.add_column(name)
    headers = [f"{OURS} µs", f"{TORCH} µs", *(f"{name} µs" for name in others), "ratio to torch", "GB/s", "% of copy"]
    for name in [*headers, *(["peak MiB, torch's"] if with_memory else []), "route"]:
        table.add_column(name, justify="right")
    previous = None
    for m in measurements:
        if previous not in (None, m.case["dtype"]):
            table.add_section()
        previous = m.case["dtype"]
        copy = m.ratio(COPY, OURS)
        bandwidth = m.gigabytes_per_second(OURS)
        cells = [
            time_cell(m, OURS),
            time_cell(m, TORCH),
            *(time_cell(m, name) for name in others),
            ratio_cell(m.ratio(TORCH, OURS)),
            number(bandwidth) if bandwidth else "",
            f"{100 * copy.median:.0f}" if copy else "",
            *([peak_cell(m, OURS, TORCH)] if with_memory else []),
            m.route,
        ]
        count = f" ({m.case['count']} calls)" if m.case["kind"] == "recorded" else ""
        table.add_row(m.case["dtype"], m.case["label"] + count, *cells)
    return table


def _markdown_cell(m: Measurement) -> str:
    ratio, copy = m.ratio(TORCH, OURS), m.ratio(COPY, OURS)
    if ratio is None or copy is None:
        return "failed" if m.failures else "not measured"
    return f"{ratio.median:.2f} ({100 * copy.median:.0f} %)"
