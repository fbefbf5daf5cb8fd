"""Time sigmoid against torch.sigmoid: forward, backward and both, per dtype and size (the default command).

Wall time is a user's call, on the host clock; backward is torch.autograd.grad on a retained graph. Device time, on
CUDA, is the bare kernels in replayed CUDA graphs, with a cold and with a warm L2 cache. Beside them run a copy of the
same bytes, torch.compile and, on CUDA, the Triton kernel of the tutorials. Every result is compared with float64
before anything is timed.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench import cases, clocks, family, pace, report
from bench.cases import DTYPES, PASSES, Case, Inputs, Pass
from bench.clocks import Effort, Sampler
from bench.environment import environment, free_bytes
from bench.members import OPS
from bench.options import add_device_and_out, choose_device, elements, minutes, output_folder
from bench.pace import keep_what_works, sample_wall_time
from bench.providers import Provider, kernel_call, providers, route, user_call
from bench.results import CLOCKS, COLD, WALL, WARM, Measurement, Results
from bench.side_by_side import one_thread
from bench.verify import verify
from sigmoid_op import dispatch

EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
QUICK_EFFORT = Effort(seconds=0.05, min_rounds=5, max_rounds=15)

# torch.compile takes seconds a case, more than all measurements of it. By default it is timed at these sizes only: one
# launch-bound, one beyond a GPU's L2 cache.
COMPILED_SIZES = (2**12, 2**26)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--cases", choices=["grid", "recorded"], default="grid", help="sizes by powers of two, or calls of real models"
    )
    what.add_argument(
        "--ops", nargs="+", choices=["all", *OPS], metavar="OP",
        help=f"not sigmoid, but these ops built on it: all, {', '.join(OPS)}",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=list(DTYPES),
        metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: all; with --ops all but float64)",
    )
    parser.add_argument("--sizes", nargs="+", type=elements, help="element counts, such as 1000 or 2^20")
    parser.add_argument(
        "--max-elements",
        type=elements,
        help="the largest default size (on CUDA 2^30, with --quick 2^20, with --ops 2^28; on a CPU 2^20)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes, fewer samples")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time torch.compile in every case (default: on CUDA at 2^12 and 2^26 elements, "
        "with --ops at 2^26 in bfloat16; a CPU needs a C++ compiler)",
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
    with one_thread():
        return family.run(args) if args.ops else _run_grid(args, device)


def _run_grid(args: argparse.Namespace, device: torch.device) -> int:
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
    dtypes = args.dtypes or list(DTYPES)
    if args.cases == "recorded":
        found = [case for case in cases.recorded() if case.dtype_name in dtypes]
    else:
        default_limit = 2**30 if device.type == "cuda" and not args.quick else 2**20
        limit = args.max_elements or default_limit
        step = 4 if args.quick else 2
        sizes = args.sizes or [2**exponent for exponent in range(0, 31, step) if 2**exponent <= limit]
        found = list(cases.grid([DTYPES[name] for name in dtypes], sizes))
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
    """Measure the cases in order of worth: what time cuts off are sizes, each in all dtypes."""

    def measure_one(case: Case, share: float) -> Iterator[Measurement]:
        compiles = _compiles_by_default(case, device) if with_compile is None else with_compile
        return measure(case, device, with_compile=compiles, effort=_share(effort, share))

    pace.measure_in_turn(chosen, cases.importance, measure_one, device, results, seconds)


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
    measurement = _measurement(case, pass_, WALL, route(operands.x, by_user=True), failures)
    sample_wall_time(
        measurement, lambda provider: user_call(provider, pass_, operands), right, operands.x.device, effort
    )
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
    runs = route(operands[0].x, by_user=False)
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
