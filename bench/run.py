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
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.autograd.function import BackwardCFunction

from bench import cases, tables, timing
from bench.cases import DTYPES, UNEVEN_SIZES, Case, Operands, dtype_name
from bench.environment import environment, free_bytes, gpu
from bench.ops import BACKWARD, BOTH, FORWARD, NAMES, OPS, Form, kernels_from
from bench.options import UsageError, add_device_and_out, choose_device, elements, minutes, output_folder
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, WALL, WARM, Measurement, Results, run_each
from bench.timing import Call, Effort, Sampler
from bench.verify import verify
from sigmoid_op import dispatch

Maker = Callable[[Operands, str], Call]  # of a form and a pass the call that is timed

EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
QUICK_EFFORT = Effort(seconds=0.05, min_rounds=5, max_rounds=15)
# In priority order: --minutes drops the tail, sizes before dtypes. Of σ first those of the report's short table.
SIGMOID_SIZES = [2**e for e in (26, 30, 24, 20, 16, 10, 0, 28, 22, 18, 14, 12, 2, 4, 6, 8)]
SIZES = {"cuda": [2**26, 2**28, 2**24], "cpu": [2**18, 2**20]}
LARGEST_ON_CPU = 2**20
# torch.compile takes seconds a case. By default it is timed on CUDA at these sizes only.
COMPILED_SIZES = (2**12, 2**26)


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
    parser.add_argument("--sizes", nargs="+", type=elements, help="element counts, such as 1000 or 2^20")
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
    results = Results(output_folder(args.out, device) / "results.json", {})
    chosen, left_out = select(args, device)
    if left_out:
        print(f"Left out for want of memory: {', '.join(left_out)}", file=sys.stderr)
    if not chosen:
        raise UsageError("no case is left to measure")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sizes at which host time shows are not worth the waking of a second thread
    try:
        results.environment = environment(device)
        effort = QUICK_EFFORT if args.quick else EFFORT
        measure_all(chosen, device, results, effort, compiles=args.compile, seconds=60 * args.minutes)
    finally:
        torch.set_num_threads(threads)
    tables.present(results, results.path.parent)
    return 130 if results.status == "interrupted" else int(bool(results.failures))


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
            uneven = [(dtype, n) for n, dtype in places if n in UNEVEN_SIZES]
            found += [case for dtype, n in uneven for case in cases.uneven(rows[0], dtype, n)]
    available = free_bytes(device) - 2**30 * (8 if device.type == "cuda" else 1)
    fits = [needed_bytes(case) <= available for case in found]
    left_out = (f"{dtype_name(case.dtype)} {case.label}" for case, fit in zip(found, fits, strict=True) if not fit)
    return [case for case, fit in zip(found, fits, strict=True) if fit], list(dict.fromkeys(left_out))


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
    """Measure case after case into ``results``, which are saved whatever happens; time or Ctrl-C may end it early."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    print(f"Measuring {len(chosen)} cases, about {estimate(chosen, device, effort)}.", file=sys.stderr)
    deadline = time.monotonic() + seconds
    try:
        results.save()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(chosen))
            for done, case in enumerate(chosen):
                left = deadline - time.monotonic()
                if left <= 0:
                    results.status = "out of time"
                    results.environment["cases_left_out"] = len(chosen) - done
                    break
                progress.update(task, description=f"{dtype_name(case.dtype)} {case.label}")
                for measurement in measure(case, device, share(effort, left / (len(chosen) - done)), compiles):
                    results.add(measurement)
                progress.advance(task)
            else:
                results.status = "complete"
    except KeyboardInterrupt:
        results.status = "interrupted"
    finally:
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


def measure(case: Case, device: torch.device, effort: Effort, compiles: bool | None = None) -> Iterator[Measurement]:
    """Verify every form, then time those that are right: each pass on each clock."""
    failures: dict[str, str] = {}
    right = run_each(lambda make: make(), forms(case, device, compiles), failures)
    for pass_ in case.passes:
        if pass_ != BACKWARD or len(case.passes) == 1:  # alone it is no call of a user's, but a recorded one
            yield wall_time(case, pass_, device, right, failures, effort)
    if device.type == "cuda":
        for pass_ in case.passes:
            for clock in [COLD, WARM] if timing.fits_in_l2(case.bytes_moved(pass_), device) else [COLD]:
                with kernels_from(1):
                    measurement = device_time(case, pass_, clock, device, right, failures, effort)
                yield measurement
        torch.cuda.empty_cache()


def forms(case: Case, device: torch.device, compiles: bool | None) -> dict[str, Callable[[], Maker]]:
    """By name, how to get each form of the op, verified; getting it may raise."""

    def verified(get: Callable[[], Form]) -> Callable[[], Maker]:
        def make() -> Maker:
            form = get()
            with kernels_from(1):
                verify(form, case, device)
            return lambda operands, pass_: operands.call(form, pass_)

        return make

    row = case.row
    makers = {OURS: verified(lambda: row.ours), TORCH: verified(lambda: row.pytorch)}
    if case.has_copy:
        makers[COPY] = lambda: Operands.copy
    by_default = (
        device.type == "cuda"
        and case.kind == "size"
        and case.n_elements in COMPILED_SIZES
        and (row.op == "sigmoid" or case.dtype == torch.bfloat16)
    )
    if by_default if compiles is None else compiles:
        makers[COMPILED] = verified(lambda: compiled(case, device))
    if device.type == "cuda":
        makers |= {name: verified(get) for name, get in row.others.items() if find_spec(name)}
    return makers


class NotCompiledError(RuntimeError):
    """What was to be compiled ran eagerly."""


def compiled(case: Case, device: torch.device) -> Form:
    """PyTorch's form under torch.compile, for the static shapes of ``case``; every use of it is proved compiled."""
    torch._dynamo.reset()  # a fresh cache per shape: past its recompile limit, torch.compile would give up
    pytorch = case.row.pytorch

    def op(*inputs: torch.Tensor) -> torch.Tensor:
        return pytorch(*inputs)

    form: Form = torch.compile(op, fullgraph=True, dynamic=False)
    operands = case.operands(device)
    assert_compiled(operands.call(form, FORWARD), n_kernels=1)
    assert_compiled(operands.call(form, BOTH), n_kernels=2)
    return form


def assert_compiled(call: Call, n_kernels: int) -> None:
    """Make the first call; raise NotCompiledError unless Inductor generated ``n_kernels`` or more for it.

    The second call may not compile again, nor fall back: with the stance set here it would raise.
    """
    from torch._inductor import metrics

    generated = metrics.generated_kernel_count
    call()
    generated = metrics.generated_kernel_count - generated
    if generated < n_kernels:
        raise NotCompiledError(f"torch.compile generated {generated} kernels, {n_kernels} expected: this ran eagerly")
    with torch.compiler.set_stance("fail_on_recompile"):
        call()


def repeatable(right: dict[str, Maker], pass_: str) -> dict[str, Maker]:
    """A compiled backward writes over what its forward saved, and refuses to run on a graph that is kept."""
    return {name: maker for name, maker in right.items() if (name, pass_) != (COMPILED, BACKWARD)}


def wall_time(
    case: Case, pass_: str, device: torch.device, right: dict[str, Maker], failures: dict[str, str], effort: Effort
) -> Measurement:
    """A user's call, and on CUDA the memory it needs."""
    measurement = _measurement(case, pass_, WALL, device, right, failures)
    synchronize = timing.synchronizer(device)

    def call_once(maker: Maker) -> Call:
        call = maker(case.operands(device), pass_)
        call()
        return call

    calls = run_each(call_once, repeatable(right, pass_), measurement.failures)
    n_calls = measurement.calls_per_sample = timing.calls_per_wall_sample(calls.values(), synchronize)
    samplers = {name: timing.wall_sampler(call, n_calls, synchronize) for name, call in calls.items()}
    measurement.samples_ns = timing.interleave(samplers, effort)
    if device.type == "cuda":
        measurement.peak_bytes = {name: timing.peak_bytes(call, device) for name, call in calls.items()}
    return measurement


def device_time(
    case: Case,
    pass_: str,
    clock: str,
    device: torch.device,
    right: dict[str, Maker],
    failures: dict[str, str],
    effort: Effort,
) -> Measurement:
    """The same calls without the host, replayed; with a cold L2 cache each on operands of its own."""
    measurement = _measurement(case, pass_, clock, device, right, failures)
    n_calls = measurement.calls_per_sample = timing.calls_per_replay(case.bytes_moved(pass_))
    replays = timing.Replays(device)
    kept: list[list[Call]] = []  # the graphs read the operands in them

    def sampler(maker: Maker) -> Sampler:
        operands = [case.operands(device) for _ in range(n_calls if clock == COLD else 1)]
        with replays.on_capture_stream() if pass_ == BACKWARD else nullcontext():
            calls = [maker(one, pass_) for one in operands]
        kept.append(calls)
        return replays.cold(calls) if clock == COLD else replays.warm(calls[0], n_calls)

    samplers = run_each(sampler, repeatable(right, pass_), measurement.failures)
    measurement.samples_ns = timing.interleave(samplers, effort)
    return measurement


def _measurement(
    case: Case, pass_: str, clock: str, device: torch.device, right: dict[str, Maker], failures: dict[str, str]
) -> Measurement:
    runs = route(case, device) if OURS in right else "torch"
    return Measurement(case.to_json(), pass_, clock, runs, case.bytes_moved(pass_), failures=dict(failures))


def route(case: Case, device: torch.device) -> str:
    """What runs for the library: its "kernel", whose gradient is a Function of ours, or "torch", PyTorch's."""
    _, inputs = case.operands(device).leaves()
    return "kernel" if isinstance(case.row.ours(*inputs).grad_fn, BackwardCFunction) else "torch"
