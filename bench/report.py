"""Make the tables and pictures of a results file again.

Of any file that a command of the benchmark or an example wrote, such as those in bench/results.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import results
from bench.options import UsageError, output_folder
from bench.tables import left_table, output_console, present


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="FILE.json", help="a results file")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: beside the file)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 2 for a file that holds no results."""
    from bench.__main__ import modules

    try:
        kind = results.load(args.results)["kind"]
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    module = modules().get("grid" if kind == "measurements" else kind)
    present(args.results, module.show if module else show_numbers, output_folder(args.out or args.results.parent))
    return 0


def show_numbers(record: dict[str, Any], folder: Path) -> list[Path]:
    """What is in a file that no command reads: its numbers, and of lists of them the median, and the last."""
    table = left_table(record["kind"], [""], ["values", "median", "last"])
    for name, values in _leaves(record, ()):
        table.add_row(name, str(len(values)), f"{statistics.median(values):.4g}", f"{values[-1]:.4g}")
    output_console().print(table)
    return []


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
