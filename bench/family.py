"""Time the ops built on σ against eager PyTorch, torch.compile and, where they are installed, other libraries.

``python -m bench --ops all``. Device time, on CUDA, is that of a user's calls replayed in CUDA graphs, with a cold L2
cache: forward, backward, and both. Wall time and peak memory are those of the calls themselves. Every result and
gradient is compared with float64 before anything is timed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch

from bench import clocks, pace, report
from bench.cases import DTYPES, PASSES, Pass, size_label
from bench.clocks import Effort, Sampler
from bench.environment import environment, free_bytes
from bench.family_calls import FamilyCase, providers, verify
from bench.members import LEAST_ELEMENTS, MEMBERS
from bench.options import choose_device, output_folder
from bench.pace import keep_what_works, sample_wall_time
from bench.providers import COMPILED, Call, kernels_for_all_sizes
from bench.results import COLD, FAMILY, WALL, Measurement, Results
from bench.rivals import Op
from sigmoid_op import dispatch

# In order of worth, size before dtype: what time leaves out are the last sizes.
DTYPE_NAMES = ("bfloat16", "float32", "float16")
CUDA_SIZES = (2**26, 2**28, 2**24)
CPU_SIZES = (2**18, 2**20)

# torch.compile takes seconds a case, for three graphs: by default it is timed on CUDA, at this dtype and size.
COMPILED_BY_DEFAULT = (torch.bfloat16, 2**26)

WALL_PASSES: tuple[Pass, ...] = ("forward", "forward+backward")

# Tensors of float64 that eager PyTorch holds for a focal loss and its gradient, with room to spare.
REFERENCE_TENSORS = 24

EFFORT = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
QUICK_EFFORT = Effort(seconds=0.05, min_rounds=5, max_rounds=15)


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 when a result was wrong or a provider failed, 2 for a wrong size, 130 when interrupted."""
    device = choose_device(args.device)
    sizes = args.sizes or [size for size in _sizes(device, args.quick) if size <= (args.max_elements or size)]
    odd = [size for size in sizes if size % LEAST_ELEMENTS]
    if odd:
        print(
            f"python -m bench: error: with --ops a size is a multiple of {LEAST_ELEMENTS}, not {odd[0]}",
            file=sys.stderr,
        )
        return 2
    fitting = [size for size in sizes if size * REFERENCE_TENSORS * 8 <= free_bytes(device)]
    if fitting != sizes:
        left_out = ", ".join(size_label(size) for size in sizes if size not in fitting)
        print(f"Left out for want of memory: {left_out} elements.")
    dtype_names = args.dtypes or DTYPE_NAMES
    chosen = [
        FamilyCase(member, DTYPES[name], size)
        for member in MEMBERS
        if "all" in args.ops or member.op in args.ops
        for name in dtype_names
        for size in sorted(fitting)
    ]
    effort = QUICK_EFFORT if args.quick else EFFORT

    def importance(case: FamilyCase) -> tuple[int, int]:
        return fitting.index(case.n_elements), dtype_names.index(case.dtype_name)

    def measure_one(case: FamilyCase, share: float) -> Iterator[Measurement]:
        by_default = device.type == "cuda" and (case.dtype, case.n_elements) == COMPILED_BY_DEFAULT
        compiles = by_default if args.compile is None else args.compile
        # Half of the share goes to verification and capture.
        affordable = min(effort.seconds, share / 2 / (len(WALL_PASSES) + len(PASSES)))
        return measure(case, device, with_compile=compiles, effort=replace(effort, seconds=affordable))

    results = Results(output_folder(args.out, device) / "results.json", environment(device), kind=FAMILY)
    pace.measure_in_turn(chosen, importance, measure_one, device, results, 60 * args.minutes)
    report.present(results, results.path.parent)
    if results.status == "interrupted":
        return 130
    return 1 if results.failures else 0


def _sizes(device: torch.device, quick: bool) -> list[int]:
    sizes = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
    return list(sizes[:1] if quick else sizes)


def measure(case: FamilyCase, device: torch.device, *, with_compile: bool, effort: Effort) -> Iterator[Measurement]:
    """Verify every provider, then time those that are right: each pass on each clock."""
    failures: dict[str, str] = {}

    def make_and_verify(make: Callable[[], Op]) -> Op:
        op = make()
        with kernels_for_all_sizes():
            verify(op, case, device)
        return op

    right = keep_what_works(make_and_verify, providers(case, device, with_compile=with_compile), failures)
    for pass_ in WALL_PASSES:
        yield wall_time(case, pass_, device, right, failures, effort)
    if device.type == "cuda":
        for pass_ in PASSES:
            with kernels_for_all_sizes():
                measurement = device_time(case, pass_, device, right, failures, effort)
            yield measurement
        torch.cuda.empty_cache()


def wall_time(
    case: FamilyCase, pass_: Pass, device: torch.device, right: dict[str, Op], failures: dict[str, str], effort: Effort
) -> Measurement:
    """A user's call, and on CUDA the memory it needs; ``failures`` are those so far."""
    measurement = _measurement(case, pass_, WALL, device, failures)
    sample_wall_time(measurement, lambda op: case.operands(device).call(op, pass_), right, device, effort)
    return measurement


def device_time(
    case: FamilyCase, pass_: Pass, device: torch.device, right: dict[str, Op], failures: dict[str, str], effort: Effort
) -> Measurement:
    """The same calls without the host: every call on operands of its own, the L2 cache emptied before."""
    measurement = _measurement(case, pass_, COLD, device, failures)
    n_calls = measurement.calls_per_sample = clocks.calls_per_replay(case.bytes_moved(pass_))
    replays = clocks.Replays(device)
    kept: list[list[Call]] = []  # the graphs read the operands in them

    def cold(op: Op) -> Sampler:
        operands = [case.operands(device) for _ in range(n_calls)]
        with replays.on_capture_stream() if pass_ == "backward" else nullcontext():
            calls = [one.call(op, pass_) for one in operands]
        kept.append(calls)
        return replays.cold(calls)

    # A compiled backward writes over what its forward saved, and refuses to run on a graph that is kept.
    repeatable = {name: op for name, op in right.items() if (name, pass_) != (COMPILED, "backward")}
    samplers = keep_what_works(cold, repeatable, measurement.failures)
    measurement.samples_ns = clocks.interleave(samplers, effort)
    return measurement


def _measurement(
    case: FamilyCase, pass_: Pass, clock: str, device: torch.device, failures: dict[str, str]
) -> Measurement:
    runs = "kernel" if dispatch.takes("sigmoid", case.operands(device).inputs[0]) else "torch"
    return Measurement(case.to_json(), pass_, clock, runs, case.bytes_moved(pass_), failures=dict(failures))
