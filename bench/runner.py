"""Time sigmoid against torch.sigmoid: forward, backward and both, per dtype and size (the default command).

Wall time is a user's call, on the host clock; backward is torch.autograd.grad on a retained graph. Device time, on
CUDA, is the bare kernels in replayed CUDA graphs, with a cold and with a warm L2 cache. Beside them run a copy of the
same bytes, torch.compile and, on CUDA, the Triton kernel of the tutorials. Every result is compared with float64
before anything is timed.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import cases, clocks, report
from bench.cases import DTYPES, PASSES, Case, Inputs, Pass
from bench.clocks import Effort, Sampler
from bench.environment import environment, free_bytes, gpu
from bench.options import add_device_and_out, choose_device, elements, minutes, output_folder
from bench.providers import Call, Provider, kernel_call, path, providers, user_call
from bench.results import CLOCKS, COLD, WALL, WARM, Measurement, Results
from bench.verify import verify
from sigmoid_op import dispatch

EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
QUICK_EFFORT = Effort(seconds=0.05, min_rounds=5, max_rounds=15)

# torch.compile takes seconds a case, more than all measurements of it. By default it is timed at these sizes only: one
# launch-bound, one that fits in a GPU's L2 cache, one that does not.
COMPILED_SIZES = (2**12, 2**20, 2**26)

T = TypeVar("T")
U = TypeVar("U")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument(
        "--cases", choices=["grid", "recorded"], default="grid", help="sizes by powers of two, or calls of real models"
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="default: all four")
    parser.add_argument("--sizes", nargs="+", type=elements, help="element counts, such as 1000 or 2^20")
    parser.add_argument(
        "--max-elements",
        type=elements,
        help="the largest default size (2^30 on CUDA, 2^24 on a CPU, 2^20 with --quick)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes, fewer samples")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time torch.compile in every case (default: on CUDA at 2^12, 2^20 and 2^26 elements; "
        "a CPU needs a C++ compiler)",
    )
    parser.add_argument("--minutes", type=minutes, default=math.inf, help="end by then, sampling less in each case")


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 when a result was wrong or a provider failed, 2 for a wrong option, 130 when interrupted."""
    device = choose_device(args.device)
    if dispatch.INTERPRETED:
        print(
            "TRITON_INTERPRET is set: unset it, nothing timed in Triton's interpreter means anything", file=sys.stderr
        )
        return 2
    chosen, too_large = select_cases(args, device)
    if too_large:
        print(f"Left out for want of memory: {', '.join(dict.fromkeys(case.label for case in too_large))} elements.")
    results = Results(output_folder(args.out, device) / "results.json", environment(device))
    effort = QUICK_EFFORT if args.quick else EFFORT
    measure_all(chosen, device, results, with_compile=args.compile, effort=effort, seconds=60 * args.minutes)
    report.present(results, results.path.parent)
    if results.status == "interrupted":
        return 130
    return 1 if results.failures else 0


def select_cases(args: argparse.Namespace, device: torch.device) -> tuple[list[Case], list[Case]]:
    """The cases asked for: those that fit in memory, and those that do not."""
    if args.cases == "recorded":
        found = [case for case in cases.recorded() if case.dtype_name in args.dtypes]
    else:
        default_limit = 2**20 if args.quick else 2**30 if device.type == "cuda" else 2**24
        limit = args.max_elements or default_limit
        step = 4 if args.quick else 2
        sizes = args.sizes or [2**exponent for exponent in range(0, 31, step) if 2**exponent <= limit]
        found = list(cases.grid([DTYPES[name] for name in args.dtypes], sizes))
    # Operands and results of verification and timing come to at most 10 tensors, or some GiB where tensors are small.
    available = free_bytes(device) - 2**30 * (8 if device.type == "cuda" else 1)
    fits = [10 * case.n_elements * case.dtype.itemsize <= available for case in found]
    return (
        [case for case, fit in zip(found, fits, strict=True) if fit],
        [case for case, fit in zip(found, fits, strict=True) if not fit],
    )


def measure_all(
    chosen: list[Case],
    device: torch.device,
    results: Results,
    *,
    with_compile: bool | None,
    effort: Effort,
    seconds: float = math.inf,
) -> None:
    """Measure case after case into ``results``, which are saved whatever happens; time or Ctrl-C may end it early.

    Cases come from coarse to fine: what is cut short has a lower resolution, not a smaller range.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    results.save()
    ordered = sorted(chosen, key=lambda case: cases.fineness(case.n_elements))
    deadline = time.monotonic() + seconds
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(chosen))
            for done, case in enumerate(ordered):
                left = deadline - time.monotonic()
                if left <= 0:
                    results.status = "out of time"
                    results.environment["cases_left_out"] = len(ordered) - done
                    break
                progress.update(task, description=f"{case.dtype_name} {case.label}")
                affordable = _share(effort, left / (len(ordered) - done))
                compiles = _compiles_by_default(case, device) if with_compile is None else with_compile
                for measurement in measure(case, device, with_compile=compiles, effort=affordable):
                    results.add(measurement)
                progress.advance(task)
            else:
                results.status = "complete"
    except KeyboardInterrupt:
        results.status = "interrupted"
    finally:
        if device.type == "cuda":
            results.environment["gpu_at_end"] = gpu(device)
        position = [case.to_json() for case in chosen]
        results.measurements.sort(key=lambda m: position.index(m.case))
        results.save()


def _share(effort: Effort, seconds: float) -> Effort:
    """The effort of one measurement of a case that has ``seconds``; half of them go to verification and capture."""
    per_measurement = seconds / 2 / (len(PASSES) * len(CLOCKS))
    return replace(effort, seconds=min(effort.seconds, per_measurement))


def _compiles_by_default(case: Case, device: torch.device) -> bool:
    return device.type == "cuda" and case.kind == "size" and case.n_elements in COMPILED_SIZES


def measure(case: Case, device: torch.device, *, with_compile: bool, effort: Effort) -> Iterator[Measurement]:
    """Verify every provider, then time those that are right: each pass on each clock."""
    failures: dict[str, str] = {}

    def make_and_verify(make: Callable[[], Provider]) -> Provider:
        provider = make()
        verify(provider, case, device)
        return provider

    right = keep_what_works(make_and_verify, providers(case, device, with_compile=with_compile), failures)
    on_cuda = device.type == "cuda"
    n_operands = max(clocks.calls_per_replay(case.bytes_moved(pass_)) for pass_ in case.passes) if on_cuda else 1
    operands = [case.inputs(device) for _ in range(n_operands)]
    for pass_ in case.passes:
        yield wall_time(case, pass_, operands[0], right, failures, effort)
        if on_cuda:
            yield from device_time(case, pass_, operands, right, failures, effort)
    if on_cuda:
        torch.cuda.empty_cache()


def wall_time(
    case: Case,
    pass_: Pass,
    operands: Inputs,
    right: dict[str, Provider],
    failures: dict[str, str],
    effort: Effort,
) -> Measurement:
    """A user's call, and on CUDA the memory it needs; ``failures`` are those so far."""
    measurement = _measurement(case, pass_, WALL, path(operands.x, by_user=True), failures)
    on_cuda = operands.x.is_cuda
    synchronize = torch.cuda.synchronize if on_cuda else _nothing

    def call_once(provider: Provider) -> Call:
        call = user_call(provider, pass_, operands)
        call()
        return call

    calls = keep_what_works(call_once, right, measurement.failures)
    n_calls = measurement.calls_per_sample = clocks.calls_per_wall_sample(calls.values(), synchronize)
    samplers = {name: clocks.wall_sampler(call, n_calls, synchronize) for name, call in calls.items()}
    measurement.samples_ns = clocks.interleave(samplers, effort)
    if on_cuda:
        measurement.peak_bytes = {name: clocks.peak_bytes(call, operands.x.device) for name, call in calls.items()}
    return measurement


def device_time(
    case: Case,
    pass_: Pass,
    operands: list[Inputs],
    right: dict[str, Provider],
    failures: dict[str, str],
    effort: Effort,
) -> Iterator[Measurement]:
    """The bare kernels: cold L2, and warm L2 where operands and results fit."""
    device = operands[0].x.device
    runs = path(operands[0].x, by_user=False)
    n_calls = clocks.calls_per_replay(case.bytes_moved(pass_))
    replays = clocks.Replays(device)

    def cold(provider: Provider) -> Sampler:
        return replays.cold([kernel_call(provider, pass_, one) for one in operands[:n_calls]])

    def warm(provider: Provider) -> Sampler:
        return replays.warm(kernel_call(provider, pass_, operands[0]), n_calls)

    clocks_here = {COLD: cold}
    if clocks.fits_in_l2(case.bytes_moved(pass_), device):
        clocks_here[WARM] = warm
    for clock, sampler in clocks_here.items():
        measurement = _measurement(case, pass_, clock, runs, failures)
        measurement.calls_per_sample = n_calls
        samplers = keep_what_works(sampler, right, measurement.failures)
        measurement.samples_ns = clocks.interleave(samplers, effort)
        yield measurement


def _measurement(case: Case, pass_: Pass, clock: str, runs: str, failures: dict[str, str]) -> Measurement:
    return Measurement(case.to_json(), pass_, clock, runs, case.bytes_moved(pass_), failures=dict(failures))


def keep_what_works(make: Callable[[T], U], sources: Mapping[str, T], failures: dict[str, str]) -> dict[str, U]:
    """``make`` of each source; where one raises, ``failures`` gets the reason and the others are still worth timing."""
    made = {}
    for name, source in sources.items():
        try:
            made[name] = make(source)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return made


def _nothing() -> None:
    """A CPU call has ended when it returns."""
