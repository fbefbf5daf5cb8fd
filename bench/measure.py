"""One case: every form of its op is verified, then those that are right are timed side by side."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch.autograd.function import BackwardCFunction

from bench import timing
from bench.cases import Case, Operands
from bench.ops import BACKWARD, Form, kernels_from, one
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, WALL, WARM, Measurement, run_each
from bench.timing import Call, Effort, Sampler
from bench.verify import verify

Maker = Callable[[Operands, str], Call]  # of operands and a pass the call that is timed

# torch.compile takes seconds a case. By default it is timed on CUDA at these sizes only.
COMPILED_SIZES = (2**12, 2**26)


@dataclass(frozen=True)
class Race:
    """The forms of a case that are timed in turn; ``failures``: why others are not."""

    case: Case
    device: torch.device
    effort: Effort
    makers: dict[str, Maker]
    failures: dict[str, str]

    @classmethod
    def of(cls, case: Case, device: torch.device, effort: Effort, forms: Mapping[str, Callable[[], Form]]) -> "Race":
        """Of the ``forms`` that are right, our kernels at every size; getting one may raise."""

        def verified(get: Callable[[], Form]) -> Maker:
            form = get()
            with kernels_from(1):
                verify(form, case, device)
            return lambda operands, pass_: operands.call(form, pass_)

        failures: dict[str, str] = {}
        makers = run_each(verified, forms, failures)
        if case.row.inputs is one:  # a copy moves the same reads and writes
            makers[COPY] = Operands.copy
        return cls(case, device, effort, makers, failures)

    def wall_time(self, pass_: str) -> Measurement:
        """A user's call, and on CUDA the memory it needs."""

        def call_once(maker: Maker) -> Call:
            call = maker(self.case.operands(self.device), pass_)
            call()
            return call

        measurement, makers = self._begin(pass_, WALL)
        calls = run_each(call_once, makers, measurement.failures)
        n_calls = measurement.calls_per_sample = timing.calls_per_wall_sample(calls.values(), timing.WALL_SAMPLE_NS)
        samplers = {name: timing.wall_sampler(call, n_calls) for name, call in calls.items()}
        measurement.samples_ns = timing.interleave(samplers, self.effort)
        if self.device.type == "cuda":
            measurement.peak_bytes = {name: timing.peak_bytes(call, self.device) for name, call in calls.items()}
        return measurement

    def device_time(self, pass_: str, clock: str) -> Measurement:
        """The same calls without the host, replayed; with a cold L2 cache each on operands of its own."""
        measurement, makers = self._begin(pass_, clock)
        n_calls = measurement.calls_per_sample = timing.calls_per_replay(self.case.bytes_moved(pass_))
        replays = timing.Replays(self.device)
        kept: list[list[Call]] = []  # the graphs read the operands in them

        def sampler(maker: Maker) -> Sampler:
            operands = [self.case.operands(self.device) for _ in range(n_calls if clock == COLD else 1)]
            with replays.on_capture_stream() if pass_ == BACKWARD else nullcontext():
                calls = [maker(each, pass_) for each in operands]
            kept.append(calls)
            return replays.cold(calls) if clock == COLD else replays.warm(calls[0], n_calls)

        samplers = run_each(sampler, makers, measurement.failures)
        measurement.samples_ns = timing.interleave(samplers, self.effort)
        return measurement

    def _begin(self, pass_: str, clock: str) -> tuple[Measurement, dict[str, Maker]]:
        """A measurement without samples, and who takes part in it."""
        case = self.case
        runs = route(case, self.device) if OURS in self.makers else "torch"
        # A compiled backward writes over what its forward saved, and refuses to run on a graph that is kept.
        makers = {name: maker for name, maker in self.makers.items() if (name, pass_) != (COMPILED, BACKWARD)}
        moved = case.bytes_moved(pass_)
        return Measurement(case.to_json(), pass_, clock, runs, moved, failures=dict(self.failures)), makers


def measure(case: Case, device: torch.device, effort: Effort, compiles: bool | None = None) -> Iterator[Measurement]:
    """Each pass on each clock."""
    race = Race.of(case, device, effort, forms(case, device, compiles))
    for pass_ in case.passes:
        if pass_ != BACKWARD or len(case.passes) == 1:  # alone it is no call of a user's, but a recorded one
            yield race.wall_time(pass_)
    if device.type == "cuda":
        for pass_ in case.passes:
            for clock in [COLD, WARM] if timing.fits_in_l2(case.bytes_moved(pass_), device) else [COLD]:
                with kernels_from(1):
                    measurement = race.device_time(pass_, clock)
                yield measurement
        torch.cuda.empty_cache()


def forms(case: Case, device: torch.device, compiles: bool | None) -> dict[str, Callable[[], Form]]:
    """How to get each form of the op that is timed, by name."""
    row = case.row
    found = pair(case)
    by_default = (
        device.type == "cuda"
        and case.kind == "size"
        and case.n_elements in COMPILED_SIZES
        and (row.op == "sigmoid" or case.dtype == torch.bfloat16)
    )
    if by_default if compiles is None else compiles:
        from bench.compiled import compiled  # imports Inductor

        found[COMPILED] = lambda: compiled(case, device)
    if device.type == "cuda":
        found |= {name: get for name, get in row.others.items() if find_spec(name)}
    return found


def pair(case: Case) -> dict[str, Callable[[], Form]]:
    return {OURS: lambda: case.row.ours, TORCH: lambda: case.row.pytorch}


def route(case: Case, device: torch.device) -> str:
    """What runs for the library: its "kernel", whose gradient is a Function of ours, or "torch", PyTorch's."""
    _, inputs = case.operands(device).leaves()
    return "kernel" if isinstance(case.row.ours(*inputs).grad_fn, BackwardCFunction) else "torch"
