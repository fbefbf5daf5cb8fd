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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import interpreter
from bench.cases import DTYPES, Case, Operands, size_label
from bench.environment import environment
from bench.measure import Race, pair
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, kernels_from
from bench.options import add_device_and_out, choose_device, minutes, output_folder
from bench.results import COLD, COPY, OURS, TORCH, Measurement, Results, failures, load_measurements, run_each
from bench.tables import left_table, output_console, present
from bench.timing import Call, Effort
from bench.verify import WrongResultError

SIZES = tuple(2**exponent for exponent in range(4, 27, 2))
RACE_SIZES = (2**24, 2**28)
EFFORT, RACE_EFFORT, DRY_EFFORT = Effort(0.03, 11, 31), Effort(0.2, 9, 21), Effort(0, 2, 2)
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
    results = Results(path, environment(device), "tune", {"dry_run": dry})
    deadline = time.monotonic() + 60 * args.minutes

    def each() -> Iterator[Measurement]:
        for part in (crossover, races):
            for measurement in part(device, dry=dry):
                yield measurement
                if time.monotonic() > deadline:
                    results.status = "out of time"
                    return

    results.collect(each())
    present(path, show)
    return 130 if results.status == "interrupted" else int(bool(failures(results.measurements)))


def crossover(device: torch.device, *, dry: bool) -> Iterator[Measurement]:
    """Every op on kernels and by PyTorch, size after size, each after a comparison with float64."""
    for n_elements in (2**10,) if dry else SIZES:
        for dtype in (torch.bfloat16, torch.float32):
            for case in (Case.of_size(row, dtype, n_elements) for row in OPS):
                with kernels_from(1):
                    race = Race.of(case, device, DRY_EFFORT if dry else EFFORT, pair(case))
                    race.makers.pop(COPY, None)
                    done = [race.wall_time(pass_) for pass_ in (FORWARD, BOTH)]
                yield from done


def races(device: torch.device, *, dry: bool) -> Iterator[Measurement]:
    """σ's kernels in every variant, beside the library's own launch, PyTorch's and a copy."""
    (row,) = (row for row in OPS if row.name == "sigmoid")
    for pass_ in (FORWARD, BACKWARD):
        for dtype in DTYPES.values():
            for n_elements in (2**12,) if dry else RACE_SIZES:
                case = Case.of_size(row, dtype, n_elements)
                candidates = {v.name: v for v in (variants(dtype)[:2] if dry else variants(dtype))}
                with kernels_from(1):
                    race = Race.of(case, device, DRY_EFFORT if dry else RACE_EFFORT, pair(case))
                    right = run_each(partial(verified, dtype=dtype, device=device), candidates, race.failures)
                    race.makers.update({name: variant.call for name, variant in right.items()})
                    on_cuda = device.type == "cuda"
                    yield race.device_time(pass_, COLD) if on_cuda else race.wall_time(pass_)


def verified(variant: Variant, dtype: torch.dtype, device: torch.device) -> Variant:
    """The variant itself, if it gives the bits of the library's launch, with an incomplete last block."""
    from sigmoid_op.kernels import sigmoid as formulas

    x = torch.randn(3 * variant.block_size + 5, dtype=dtype, device=device)
    out, want = torch.full_like(x, torch.nan), formulas.launch_sigmoid(x)
    if not torch.equal(variant.launch(formulas.sigmoid, (x,), out), want):
        raise WrongResultError(f"{variant.name}: not the library's results")
    return variant


def threshold(measurements: Sequence[Measurement]) -> float:
    """The smallest size from which nothing is slower than the tolerance allows; infinity if the largest is."""
    found = math.inf
    for n_elements in sorted({m.case["n_elements"] for m in measurements}, reverse=True):
        ratios = [m.ratio(TORCH) for m in measurements if m.case["n_elements"] == n_elements]
        if not all(ratio and ratio.median * TOLERANCE >= 1 for ratio in ratios):
            break
        found = n_elements
    return found


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of thresholds, the fastest variants, and what failed, of a tune.json. It has no picture."""
    console = output_console()
    measured = load_measurements(record)
    lines = []
    for key in dict.fromkeys(row.key for row in OPS):
        names = [row.name for row in OPS if row.key == key]
        groups = [[m for m in measured if m.case["op"] == name and COPY not in m.samples_ns] for name in names]
        if any(groups):
            size = max(threshold(group) for group in groups if group)
            lines.append(f'    "{key}": {"NEVER" if size == math.inf else f"2**{math.log2(size):.0f}"},')
    console.print("\n".join(["MIN_ELEMENTS: dict[str, int] = {", *lines, "}"]), markup=False, highlight=False)
    if record["dry_run"]:
        console.print("A dry run: these times say nothing about a GPU.")
    table = left_table(
        "Fastest variant, device time, cold L2",
        ["pass", "dtype", "elements", "variant"],
        ["speed of a copy", "the library's launch", "PyTorch"],
    )
    for m in measured:
        times = {name: spread.median for name in m.samples_ns if (spread := m.time_us(name))}
        raced = [name for name in times if name not in (OURS, TORCH, COPY)]
        if raced:
            fastest = min(raced, key=lambda name: times[name])
            shares = [f"{times[COPY] / times[name]:.1%}" if name in times else "" for name in (fastest, OURS, TORCH)]
            table.add_row(m.pass_, m.case["dtype"], size_label(m.case["n_elements"]), fastest, *shares)
    console.print(table)
    for failure in failures(measured):
        console.print(f"FAILED {failure}", markup=False, highlight=False)
    return []
