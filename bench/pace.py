"""Case after case into a results file, as many as the time allows, whatever fails in one of them."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import clocks
from bench.clocks import Effort
from bench.environment import gpu
from bench.providers import Call
from bench.results import Measurement, Results

LONGEST_REASON = 300  # characters: Inductor names its own error first, and what went wrong after it

T = TypeVar("T")
U = TypeVar("U")


class Case(Protocol):
    """What is measured, by its name and by what a results file says of it."""

    @property
    def label(self) -> str: ...

    @property
    def dtype_name(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Case)


def measure_in_turn(
    chosen: Sequence[C],
    importance: Callable[[C], Any],
    measure: Callable[[C, float], Iterator[Measurement]],
    device: torch.device,
    results: Results,
    seconds: float,
) -> None:
    """Measure case after case into ``results``, which are saved whatever happens; time or Ctrl-C may end it early.

    The cases with the smallest ``importance`` come first; the file has them in the order of ``chosen``. ``measure``
    gets a case and the seconds that are its share of what is left.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    print(f"Measuring {len(chosen)} cases; the tables come at the end.", file=sys.stderr)
    results.save()
    ordered = sorted(chosen, key=importance)
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
                for measurement in measure(case, left / (len(ordered) - done)):
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


def keep_what_works(make: Callable[[T], U], sources: Mapping[str, T], failures: dict[str, str]) -> dict[str, U]:
    """``make`` of each source; where one raises, ``failures`` gets the reason and the others are still worth timing."""
    made = {}
    for name, source in sources.items():
        try:
            made[name] = make(source)
        except Exception as error:
            failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
    return made


def sample_wall_time(
    measurement: Measurement,
    make_call: Callable[[T], Call],
    sources: Mapping[str, T],
    device: torch.device,
    effort: Effort,
) -> None:
    """Fill in the wall time of each source's call, and on CUDA the memory it needs."""
    on_cuda = device.type == "cuda"
    synchronize = torch.cuda.synchronize if on_cuda else _nothing

    def call_once(source: T) -> Call:
        call = make_call(source)
        call()
        return call

    calls = keep_what_works(call_once, sources, measurement.failures)
    n_calls = measurement.calls_per_sample = clocks.calls_per_wall_sample(calls.values(), synchronize)
    samplers = {name: clocks.wall_sampler(call, n_calls, synchronize) for name, call in calls.items()}
    measurement.samples_ns = clocks.interleave(samplers, effort)
    if on_cuda:
        measurement.peak_bytes = {name: clocks.peak_bytes(call, device) for name, call in calls.items()}


def _nothing() -> None:
    """A CPU call has ended when it returns."""
