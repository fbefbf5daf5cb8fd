"""Make the tables and pictures of a results file again.

Of any file that a command of the benchmark or an example wrote, such as those in bench/results. --markdown prints a
short table for a README instead, of a file of the default command.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import results, tables
from bench.environment import one_line
from bench.options import UsageError, output_folder
from bench.results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="FILE.json", help="a results file")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: beside the file)")
    parser.add_argument("--markdown", action="store_true", help="print a short table for a README, and no pictures")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 2 for a file that holds no results."""
    from bench.__main__ import modules

    try:
        record = results.load(args.results)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    kind = record["kind"]
    if args.markdown and kind != "measurements":
        raise UsageError(f"--markdown is for files of the default command, not for one of {kind}")
    if args.markdown:
        print(tables.markdown(Results.of(args.results, record)))
        return 0
    folder = output_folder(args.out or args.results.parent)
    if kind == "measurements":
        tables.present(Results.of(args.results, record), folder)
        return 0
    module = modules().get(kind)
    console = tables.output_console()
    if "commit" in record["environment"]:  # an example does not tell
        console.print(one_line(record["environment"]), highlight=False)
    if module:
        tables.print_files(folder, record.get("status"), [args.results, *module.show(record, folder)])
    else:
        console.print(summary(record))
    return 0


def summary(record: dict[str, Any]) -> Table:
    """What is in a file that no command reads: its numbers, and of lists of them the median, and the last."""
    table = Table("", title=record["kind"], title_justify="left")
    for heading in ("values", "median", "last"):
        table.add_column(heading, justify="right")
    for name, values in _leaves(record, ()):
        table.add_row(name, str(len(values)), f"{statistics.median(values):.4g}", f"{values[-1]:.4g}")
    return table


def _leaves(part: Any, name: tuple[str, ...]) -> Iterator[tuple[str, list[float]]]:
    if isinstance(part, int | float):
        yield ", ".join(name), [part]
    elif isinstance(part, list) and part and all(isinstance(value, int | float) for value in part):
        yield ", ".join(name), part
    elif isinstance(part, list | dict):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        for key, value in items:
            if key not in ("environment", "schema"):
                named = value.get("variant") or value.get("loss") if isinstance(value, dict) else None
                yield from _leaves(value, (*name, str(named or key)))
