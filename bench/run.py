"""Time sigmoid against torch.sigmoid, or with --ops the ops built on it (the default command).

Wall time is a user's call by the host clock, below the size thresholds PyTorch's operators. Device time, on CUDA, is
the same calls replayed in CUDA graphs, our kernels at every size, with a cold L2 cache and where it fits a warm one:
forward without gradients, backward of a graph that is kept, and both. Beside them run a copy of the same bytes,
torch.compile, proved compiled, and other libraries where they are installed. Every result and gradient is compared with
float64 before anything is timed. On a CPU both sides run PyTorch's operators, and ratios are noise around the wrapper's
cost; python -m bench host measures that better.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import Progress

from bench import cases
from bench.cases import DTYPES, UNEVEN_SIZES, Case, dtype_name
from bench.environment import environment, free_bytes, gpu
from bench.measure import measure
from bench.ops import NAMES, OPS
from bench.options import UsageError, add_device_and_out, choose_device, minutes, output_folder, positive
from bench.results import Measurement, Results, failures
from bench.tables import present, show
from bench.timing import Effort
from sigmoid_op import dispatch

EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
QUICK_EFFORT = Effort(seconds=0.05, min_rounds=5, max_rounds=15)
# In priority order: --minutes drops the tail, sizes before dtypes. First those that say most: one element,
# launch-bound, about L2, beyond L2, and the largest.
SIGMOID_SIZES = [2**e for e in (26, 30, 24, 20, 16, 10, 0, 28, 22, 18, 14, 12, 2, 4, 6, 8)]
SIZES = {"cuda": [2**26, 2**28, 2**24], "cpu": [2**18, 2**20]}
LARGEST_ON_CPU = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cases", choices=["grid", "recorded"], default="grid", help="sizes, or calls of real models")
    what.add_argument(
        "--ops", nargs="+", choices=["all", *NAMES], metavar="OP", default=["sigmoid"],
        help=f"all, or some of {', '.join(NAMES)} (default: sigmoid)",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes", nargs="+", choices=list(DTYPES), metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: all; with --ops all but float64)",
    )  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=positive, help="element counts, such as 1000 or 2^20")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, fewer samples")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction,
        help="time torch.compile in every case (default: on CUDA at 2^12 and 2^26 elements in bfloat16, for sigmoid in "
        "all dtypes; a CPU needs a C++ compiler)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="end by then, sampling less in each case")


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 when a result was wrong or a form failed, 2 for a wrong option, 130 when interrupted."""
    device = choose_device(args.device)
    if dispatch.INTERPRETED:
        raise UsageError("TRITON_INTERPRET is set: unset it, nothing timed in Triton's interpreter means anything")
    results = Results(output_folder(args.out, device) / "results.json")
    chosen, left_out = select(args, device)
    if left_out:
        print(f"Left out for want of memory: {', '.join(left_out)}", file=sys.stderr)
    if not chosen:
        raise UsageError("no case is left to measure")
    effort = QUICK_EFFORT if args.quick else EFFORT
    where = results.path.parent
    print(f"Measuring {len(chosen)} cases into {where}, about {estimate(chosen, device, effort)}.", file=sys.stderr)
    results.environment = environment(device)
    measure_all(chosen, device, results, effort, compiles=args.compile, seconds=60 * args.minutes)
    present(results.path, show)
    return 130 if results.status == "interrupted" else int(bool(failures(results.measurements)))


def select(args: argparse.Namespace, device: torch.device) -> tuple[list[Case], list[str]]:
    """The cases asked for, in priority order, and the labels of those that do not fit in memory."""
    if args.cases == "recorded":
        found = [case for case in cases.recorded() if dtype_name(case.dtype) in (args.dtypes or DTYPES)]
    else:
        grid = args.ops == ["sigmoid"]
        largest = math.inf if device.type == "cuda" else LARGEST_ON_CPU
        defaults = SIGMOID_SIZES[:: 3 if args.quick else 1] if grid else SIZES[device.type][: 1 if args.quick else None]
        sizes = args.sizes or [size for size in defaults if size <= largest]
        dtypes = args.dtypes or (list(DTYPES) if grid else ["bfloat16", "float32", "float16"])
        rows = [row for row in OPS if "all" in args.ops or row.op in args.ops]
        places = [(size, DTYPES[name]) for size in sizes for name in dtypes]
        found = [Case.of_size(row, dtype, n) for n, dtype in places for row in rows if n % row.multiple == 0]
        if odd := [n for n in sizes if all(n % row.multiple for row in rows)]:
            raise UsageError(f"of these ops a size is a multiple of {rows[0].multiple}, not {odd[0]}")
        if grid:
            found += [case for n, dtype in places if n in UNEVEN_SIZES for case in cases.uneven(rows[0], dtype, n)]
    available = free_bytes(device) - 2**30 * (8 if device.type == "cuda" else 1)
    left_out = [f"{dtype_name(case.dtype)} {case.label}" for case in found if needed_bytes(case) > available]
    return [case for case in found if needed_bytes(case) <= available], list(dict.fromkeys(left_out))


def needed_bytes(case: Case) -> int:
    """At most: operands and results of both sides, what PyTorch's operators leave for backward, and the reference."""
    of_dtype = 8 + sum(case.row.pytorch_moved) / 4
    return int(case.n_elements * (of_dtype * case.dtype.itemsize + 8 * (1 + case.row.n_gradients)))


def measure_all(
    chosen: Sequence[Case],
    device: torch.device,
    results: Results,
    effort: Effort,
    *,
    compiles: bool | None = None,
    seconds: float = math.inf,
) -> None:
    """Measure case after case into ``results``; time or Ctrl-C may end it early."""
    deadline = time.monotonic() + seconds

    def each() -> Iterator[Measurement]:
        with Progress(console=Console(stderr=True)) as progress:
            for done, case in enumerate(progress.track(chosen, description="Measuring")):
                left = deadline - time.monotonic()
                if left <= 0:
                    results.status = "out of time"
                    results.environment["cases_left_out"] = len(chosen) - done
                    break
                yield from measure(case, device, share(effort, left / (len(chosen) - done)), compiles)

    results.collect(each())
    if device.type == "cuda":
        results.environment["gpu_at_end"] = gpu(device)
    rows, dtypes = [row.name for row in OPS], list(DTYPES)
    results.measurements.sort(key=lambda m: (rows.index(m.case["op"]), dtypes.index(m.case["dtype"])))
    results.save()


def estimate(chosen: Sequence[Case], device: torch.device, effort: Effort) -> str:
    """How long it takes: each clock and pass its seconds, and as much again for verification and capture."""
    clocks = 8 if device.type == "cuda" else 2
    seconds = len(chosen) * clocks * (effort.seconds + (0.2 if device.type == "cuda" else 0.02))
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def share(effort: Effort, seconds: float) -> Effort:
    """The effort of one measurement of a case that has ``seconds``; half of them go to verification and capture."""
    return replace(effort, seconds=min(effort.seconds, seconds / 2 / 8))
