"""Measure from which size each op's kernel pays, and which block, warps and registers are fastest.

Prints the table of thresholds to paste into sigmoid_op/dispatch.py: for each op the smallest size from which a call is
nowhere slower than PyTorch's by more than 3 %, by the wall clock, in bfloat16 and float32, without gradients and with.
Then σ's kernels are raced by device time with a cold L2 cache, in blocks of 512 to 4096 elements, with 2 to 8 warps and
with 56 registers a thread or as many as the compiler likes. About six minutes on an H100. Without CUDA, or with
--dry-run, everything runs once at a small size, which says nothing about speed.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bench import interpreter, results
from bench import run as measuring
from bench.cases import DTYPES, Case, Operands, size_label
from bench.environment import environment
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, kernels_from
from bench.options import add_device_and_out, choose_device, minutes, output_folder
from bench.results import COLD, COPY, OURS, TORCH, WALL, Measurement, run_each
from bench.tables import output_console, print_files
from bench.timing import Call, Effort
from bench.verify import WrongResultError

SIZES = tuple(2**exponent for exponent in range(4, 27, 2))
RACE_SIZES = (2**24, 2**28)
EFFORT, RACE_EFFORT = Effort(0.03, 11, 31), Effort(0.2, 9, 21)
TOLERANCE = 1.03


@dataclass(frozen=True)
class Variant:
    """How the pointwise template is launched; ``max_registers`` None: as many as the compiler likes."""

    block_size: int
    num_warps: int
    max_registers: int | None

    @property
    def name(self) -> str:
        registers = f", {self.max_registers} registers" if self.max_registers else ""
        return f"{self.block_size} elements, {self.num_warps} warps{registers}"

    def launch(self, formula: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """By Triton's own binding, whose host time a replay does not see."""
        from sigmoid_op.kernels.launch import FP_FUSION
        from sigmoid_op.kernels.pointwise import pointwise_kernel

        n_elements = out.numel()
        args = ((), inputs, (out,), None, n_elements, None, None, formula, (), self.block_size)
        grid = (math.ceil(n_elements / self.block_size), 1, 1)
        options = {"num_warps": self.num_warps, "maxnreg": self.max_registers, "enable_fp_fusion": FP_FUSION}
        pointwise_kernel[grid](*args, **options)
        return out

    def call(self, operands: Operands, pass_: str) -> Call:
        """Forward, or backward of the result."""
        from sigmoid_op.kernels import sigmoid as formulas

        (x,) = operands.inputs
        if pass_ == FORWARD:
            return lambda: self.launch(formulas.sigmoid, (x,), torch.empty_like(x))
        out = torch.sigmoid(x)
        return lambda: self.launch(formulas.sigmoid_backward, (operands.grad_out, out), torch.empty_like(x))


def variants(dtype: torch.dtype) -> list[Variant]:
    """Those whose threads make 1 to 8 accesses of 16 bytes to each operand."""
    return [
        Variant(block_size, num_warps, registers)
        for block_size in (512, 1024, 2048, 4096)
        for num_warps in (2, 4, 8)
        for registers in (None, 56)
        if 1 <= block_size * dtype.itemsize / (16 * 32 * num_warps) <= 8
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="end by then, with what is measured")
    parser.add_argument("--dry-run", action="store_true", help="smallest sizes (default without CUDA)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 if something failed, 2 where the kernels cannot run, 130 when interrupted. Needs Triton."""
    device = choose_device(args.device)
    path = output_folder(args.out, device) / "tune.json"
    if (code := interpreter.exit_code(args, device, path.parent)) is not None:
        return code
    dry = args.dry_run or device.type == "cpu"
    where, deadline = environment(device), time.monotonic() + 60 * args.minutes
    measured: list[Measurement] = []
    status = "interrupted"

    def save() -> None:
        results.write(path, "tune", where, status=status, dry_run=dry, measurements=[asdict(m) for m in measured])

    with suppress(KeyboardInterrupt):
        for measurement in (m for part in (crossover, races) for m in part(device, dry=dry)):
            measured.append(measurement)
            save()
            if time.monotonic() > deadline:
                status = "out of time"
                break
        else:
            status = "complete"
    save()
    print_files(path.parent, status, [path, *show(results.load(path), path.parent)])
    failures = {f"{m.case['label']}, {name}: {why}" for m in measured for name, why in m.failures.items()}
    for failure in sorted(failures):
        output_console().print(f"FAILED {failure}", markup=False, highlight=False)
    return 130 if status == "interrupted" else int(bool(failures))


def crossover(device: torch.device, *, dry: bool) -> Iterator[Measurement]:
    """Every op on kernels and by PyTorch, size after size, each after a comparison with float64."""
    for n_elements in (2**10,) if dry else SIZES:
        for dtype in (torch.bfloat16, torch.float32):
            for case in (Case.of_size(row, dtype, n_elements) for row in OPS):
                failures: dict[str, str] = {}
                with kernels_from(1):
                    makers = measuring.forms(case, device, compiles=False)
                    chosen = {name: makers[name] for name in (OURS, TORCH)}
                    right = run_each(lambda make: make(), chosen, failures)
                    effort = Effort(0, 2, 2) if dry else EFFORT
                    done = [
                        measuring.wall_time(case, pass_, device, right, failures, effort) for pass_ in (FORWARD, BOTH)
                    ]
                yield from done


def races(device: torch.device, *, dry: bool) -> Iterator[Measurement]:
    """σ's kernels in every variant, beside the library's own launch, PyTorch's and a copy."""
    (row,) = (row for row in OPS if row.name == "sigmoid")
    for pass_ in (FORWARD, BACKWARD):
        for dtype in DTYPES.values():
            for n_elements in (2**12,) if dry else RACE_SIZES:
                case = Case.of_size(row, dtype, n_elements)
                failures: dict[str, str] = {}
                candidates = {v.name: v for v in (variants(dtype)[:2] if dry else variants(dtype))}
                with kernels_from(1):
                    right = run_each(lambda v: verified(v, dtype, device), candidates, failures)  # noqa: B023
                    known = measuring.forms(case, device, compiles=False)
                    makers = {name: known[name]() for name in (OURS, TORCH, COPY)}
                    makers |= {name: variant.call for name, variant in right.items()}
                    if device.type == "cuda":
                        effort = Effort(0, 2, 2) if dry else RACE_EFFORT
                        yield measuring.device_time(case, pass_, COLD, device, makers, failures, effort)
                    else:
                        yield measuring.wall_time(case, pass_, device, makers, failures, Effort(0, 2, 2))


def verified(variant: Variant, dtype: torch.dtype, device: torch.device) -> Variant:
    """The variant itself, if it gives the bits of the library's launch, with an incomplete last block."""
    from sigmoid_op.kernels import sigmoid as formulas

    x = torch.randn(3 * variant.block_size + 5, dtype=dtype, device=device)
    out, want = torch.full_like(x, torch.nan), formulas.launch_sigmoid(x)
    if not torch.equal(variant.launch(formulas.sigmoid, (x,), out), want):
        raise WrongResultError(f"{variant.name}: not the library's results")
    return variant


def threshold(measurements: Sequence[Measurement]) -> int | None:
    """The smallest size from which nothing is slower than the tolerance allows; None if the largest is."""
    found = None
    for n_elements in sorted({m.case["n_elements"] for m in measurements}, reverse=True):
        ratios = [m.ratio(TORCH) for m in measurements if m.case["n_elements"] == n_elements]
        if not all(ratio and ratio.median * TOLERANCE >= 1 for ratio in ratios):
            break
        found = int(n_elements)
    return found


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of thresholds, and the fastest variants, of a tune.json. It has no picture."""
    console = output_console()
    measured = [Measurement(**m) for m in record["measurements"]]
    walls = [m for m in measured if m.clock == WALL and m.pass_ != BACKWARD and TORCH in m.samples_ns]
    walls = [m for m in walls if COPY not in m.samples_ns]
    keys = {row.name: row.key for row in OPS}
    lines = []
    for key in dict.fromkeys(keys[m.case["op"]] for m in walls):
        by_op = {op: [m for m in walls if m.case["op"] == op] for op, of in keys.items() if of == key}
        sizes = [threshold(group) for group in by_op.values() if group]
        largest = max(m.case["n_elements"] for group in by_op.values() for m in group)
        if any(size is None for size in sizes):
            lines.append(f'    "{key}": NEVER,  # still slower at {size_label(largest)}')
        else:
            size = max(size for size in sizes if size)
            lines.append(f'    "{key}": 2**{size.bit_length() - 1},')
    if lines:
        console.print("MIN_ELEMENTS: dict[str, int] = {\n" + "\n".join(lines) + "\n}", markup=False, highlight=False)
    if record["dry_run"]:
        console.print("A dry run: these times say nothing about a GPU.")
    table = Table(title="Fastest variant, device time, cold L2", title_justify="left")
    for heading in ("pass", "dtype", "elements", "variant"):
        table.add_column(heading)
    for heading in ("speed of a copy", "the library's launch", "PyTorch"):
        table.add_column(heading, justify="right")
    for m in (m for m in measured if len(m.samples_ns) > 3):
        fastest = min((n for n in m.samples_ns if n not in (OURS, TORCH, COPY)), key=lambda n: _median(m, n))
        shares = [f"{_median(m, COPY) / _median(m, name):.1%}" for name in (fastest, OURS, TORCH)]
        table.add_row(m.pass_, m.case["dtype"], size_label(m.case["n_elements"]), fastest, *shares)
    console.print(table)
    return []


def _median(m: Measurement, name: str) -> float:
    time_us = m.time_us(name)
    return time_us.median if time_us else math.inf
