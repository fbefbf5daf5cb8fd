"""Try variants of the launch template, and find the size from which the kernels pay.

Variants: elements per block, warps, cache hints on loads and stores, one block a tile or a persistent grid; for forward
and backward in each dtype, beside torch.sigmoid, a copy of the same bytes and the library's own launch. First all
shapes, then all hints on the fastest shape. Device time with a cold L2 cache, samples interleaved, each variant
compared with float64 before. Without CUDA, or with --rehearse, everything runs once at a small size, which says nothing
about speed.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from bench import crossover, interpreter
from bench.cases import DTYPES, Case, Layout, Pass, size_label
from bench.clocks import Effort
from bench.environment import environment
from bench.options import add_device_and_out, choose_device, minutes, output_folder
from bench.providers import COPY, OURS, TORCH
from bench.race import Race, race
from bench.report import output_console
from bench.results import Measurement, Spread, write

if TYPE_CHECKING:  # it imports Triton
    from bench.tune_kernels import Variant

SIZES = (2**22, 2**26, 2**28)
PASSES: tuple[Pass, ...] = ("forward", "backward")
EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=21)
REHEARSAL_SIZES = (2**12,)
REHEARSAL_EFFORT = Effort(seconds=0.0, min_rounds=2, max_rounds=2)

# Loads and stores. What is read once need not stay in a cache; what is written is read by somebody else, later.
HINTS = (
    ("evict_first", ""), ("evict_last", ""), (".cg", ""),
    ("", "evict_first"), ("", "evict_last"), ("", ".cg"), ("", ".cs"), ("", ".wt"),
    ("evict_first", "evict_first"), ("evict_first", ".cs"), (".cg", ".cs"),
)  # fmt: skip
BLOCKS_PER_SM = (4, 8, 16)


@dataclass
class Record:
    """The file: saved after each measurement. ``status`` is "running", "out of time", "interrupted" or "complete"."""

    path: Path
    environment: dict[str, Any]
    status: str = "running"
    crossover: list[Measurement] = field(default_factory=list)
    races: list[Race] = field(default_factory=list)

    def save(self) -> None:
        crossover, races = ([asdict(item) for item in items] for items in (self.crossover, self.races))
        write(self.path, "tune", self.environment, status=self.status, crossover=crossover, races=races)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="end by then (default: no limit)")
    parser.add_argument("--rehearse", action="store_true", help="one small size (default without CUDA)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 if a variant failed, 2 where the kernels cannot run, 130 when interrupted. Needs Triton."""
    device = choose_device(args.device)
    if (code := interpreter.exit_code(args, device)) is not None:
        return code
    rehearse = args.rehearse or device.type == "cpu"
    record = Record(output_folder(args.out, device) / "tune.json", environment(device))
    end = time.monotonic() + 60 * args.minutes
    record.status = "out of time"
    try:
        for _ in _measure(record, device, rehearse=rehearse):
            record.save()
            if time.monotonic() > end:
                break
        else:
            record.status = "complete"
    except KeyboardInterrupt:
        record.status = "interrupted"
    finally:
        record.save()
    console = output_console()
    console.print(_table(record.races))
    console.print(crossover.table(record.crossover))
    if rehearse:
        console.print("A rehearsal: these times say nothing about a GPU.")
    measured: list[Measurement | Race] = [*record.crossover, *record.races]
    failures = {f"{name}: {reason}" for one in measured for name, reason in one.failures.items()}
    for failure in sorted(failures):
        console.print(f"FAILED {failure}", markup=False, highlight=False)
    console.print(f"{record.status}; results in {record.path}", soft_wrap=True, highlight=False)
    return 130 if record.status == "interrupted" else int(bool(failures))


def _measure(record: Record, device: torch.device, *, rehearse: bool) -> Iterator[None]:
    """Add to ``record`` the crossover, then race after race, and yield after each."""
    sizes, effort = (REHEARSAL_SIZES, REHEARSAL_EFFORT) if rehearse else (SIZES, EFFORT)
    pays = crossover.measure(device, sizes, effort) if rehearse else crossover.measure(device)
    for measurement in pays:
        record.crossover.append(measurement)
        yield
    for pass_ in PASSES:
        for dtype in DTYPES.values():
            candidates = shapes(dtype)[:3] if rehearse else shapes(dtype)
            shape_races = []
            for case in _cases(dtype, sizes):
                shape_races.append(race(case, pass_, candidates, device, effort))
                record.races.append(shape_races[-1])
                yield
            for case in _cases(dtype, sizes):
                record.races.append(race(case, pass_, hinted(best(candidates, shape_races)), device, effort))
                yield


def shapes(dtype: torch.dtype) -> list["Variant"]:
    """Blocks of 512 to 8192 elements whose threads make 1, 2, 4 or 8 accesses of 16 bytes to each operand."""
    from bench.tune_kernels import Variant

    blocks = (512, 1024, 2048, 4096, 8192)
    return [
        Variant(block_size, num_warps)
        for block_size in blocks
        for num_warps in (2, 4, 8, 16)
        if 1 <= block_size * dtype.itemsize / (16 * 32 * num_warps) <= 8
    ]


def hinted(shape: "Variant") -> list["Variant"]:
    """The shape itself, with every hint, persistent, and both."""
    from bench.tune_kernels import Variant

    block_size, num_warps = shape.block_size, shape.num_warps
    persistent = [
        Variant(block_size, num_warps, blocks, load, store)
        for blocks in BLOCKS_PER_SM
        for load, store in (("", ""), ("evict_first", ".cs"))
    ]
    return [shape, *(Variant(block_size, num_warps, 0, load, store) for load, store in HINTS), *persistent]


def best(candidates: Sequence["Variant"], races: Sequence[Race]) -> "Variant":
    """The candidate with the lowest geometric mean of its times at all sizes."""
    timed = [variant for variant in candidates if all(variant.name in race.variants for race in races)]
    return min(timed, key=lambda variant: sum(math.log(race.median(variant.name)) for race in races))


def _cases(dtype: torch.dtype, sizes: Sequence[int]) -> Iterator[Case]:
    for n_elements in sizes:
        layout = Layout.contiguous([n_elements])
        yield Case(size_label(n_elements), "size", dtype, layout, layout)


def _table(races: Sequence[Race]) -> Table:
    """The fastest variant of each race beside the library's launch; every other sample is in the file."""
    table = Table(title="Fastest variant: device time, cold L2, µs (p20–p80)", title_justify="left")
    for name in ("pass", "dtype", "elements", "variants"):
        table.add_column(name)
    for name in (TORCH, f"{OURS} now", "fastest"):
        table.add_column(name, justify="right")
    table.add_column("variant")
    for name in ("of the copy", "now"):
        table.add_column(name, justify="right")
    for r in races:
        times = [Spread.of([ns / 1e3 for ns in r.samples_ns[name]]) for name in (TORCH, OURS, r.fastest)]
        cells = [f"{time.median:.2f} ({time.p20:.2f}–{time.p80:.2f})" for time in times]
        copy = [f"{r.median(COPY) / r.median(name):.1%}" for name in (r.fastest, OURS)]
        table.add_row(
            r.pass_, r.dtype, size_label(r.n_elements), str(len(r.variants)), *cells, r.fastest, *copy
        )  # fmt: skip
    return table
