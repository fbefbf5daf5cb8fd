"""Two clocks, kept apart: wall time per call as a user waits for it, and device time without the host.

A sampler returns the nanoseconds of one call, averaged over one sample. :func:`interleave` samples all in turn, so that
a drift of the machine hits all alike and the ratio within a round means something.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

Call = Callable[[], Any]
Sampler = Callable[[], float]

WALL_SAMPLE_NS = 1e6  # a sample of a short call is a loop of about 1 ms
MAX_CALLS_PER_WALL_SAMPLE = 10_000
# A device sample replays calls that move about 2 GiB, far beyond any L2 cache, each on buffers of its own; at most 256
# calls, so that a capture stays short.
REPLAY_BYTES = 2**31
MAX_CALLS_PER_REPLAY = 256


@dataclass(frozen=True)
class Effort:
    """How long one measurement samples: at least ``min_rounds``, then until ``seconds`` or ``max_rounds``."""

    seconds: float
    min_rounds: int
    max_rounds: int


def interleave(samplers: Mapping[str, Sampler], effort: Effort) -> dict[str, list[float]]:
    """Samples of all, round by round, each round in a random order of its own; sample i is of round i."""
    order = random.Random(0)
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with without_gc():
        for name in names:  # an unrecorded round: caches, clocks, lazy initialisation
            samplers[name]()
        deadline = time.perf_counter() + effort.seconds
        for done in range(effort.max_rounds):
            if done >= effort.min_rounds and time.perf_counter() > deadline:
                break
            for name in order.sample(names, len(names)):
                samples[name].append(round(samplers[name](), 1))
    return samples


def wall_sampler(call: Call, n_calls: int) -> Sampler:
    """The host clock around a loop of ``n_calls`` in one thread, a GPU being waited for before and after."""
    timer = Timer("call()", globals={"call": call})
    return lambda: timer.timeit(n_calls).mean * 1e9


def calls_per_wall_sample(calls: Iterable[Call], sample_ns: float) -> int:
    """One number for all ``calls``, from the slowest, so that the cost of waiting weighs alike on each."""
    times = [min(wall_sampler(call, 3)() for _ in range(4)) for call in calls]
    return min(max(1, round(sample_ns / max(times, default=sample_ns))), MAX_CALLS_PER_WALL_SAMPLE)


def calls_per_replay(bytes_moved: int) -> int:
    return min(max(1, math.ceil(REPLAY_BYTES / bytes_moved)), MAX_CALLS_PER_REPLAY)


def fits_in_l2(bytes_moved: int, device: torch.device) -> bool:
    """Whether operands and results of a call stay in the L2 cache until the next one, with room to spare."""
    return bytes_moved <= _l2_bytes(device) // 2


class Replays:
    """Makes the device-time samplers of one measurement.

    All its CUDA graphs share one memory pool, so that the results of all lie at the same addresses: the graphs are
    replayed one after another, and nobody reads the results.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._source = torch.zeros(4 * _l2_bytes(device), dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)

    def cold(self, calls: Sequence[Call]) -> Sampler:
        """Nothing is in L2: each of ``calls`` has its own operands and writes a result of its own.

        Before each replay an operator on buffers larger than L2 throws out what was there. It leaves the mix of clean
        and dirty lines that such calls leave behind themselves, so a replay pays for as much writing back as it causes.
        """
        return _replay_sampler(self._capture(calls, keep_results=True), len(calls), self._evict)

    def warm(self, call: Call, n_calls: int) -> Sampler:
        """Operands and result are in L2: ``n_calls`` on one set of operands, after as many untimed ones."""
        graph = self._capture([call] * n_calls, keep_results=False)
        return _replay_sampler(graph, n_calls, graph.replay)

    @contextmanager
    def on_capture_stream(self) -> Iterator[None]:
        """For a forward pass whose backward is to be captured: autograd runs a node on the stream of its forward."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize()

    def _evict(self) -> None:
        torch.bitwise_not(self._source, out=self._target)

    def _capture(self, calls: Sequence[Call], *, keep_results: bool) -> torch.cuda.CUDAGraph:
        """One CUDA graph of ``calls``. With ``keep_results`` no result takes the memory of an earlier one."""
        with self.on_capture_stream():
            calls[0]()  # compiles and initialises what may not be done inside a capture
        graph = torch.cuda.CUDAGraph()
        results = []
        try:
            # The outer stream: after a capture that fails, torch.cuda.graph leaves the one it captured on.
            # No collection: it could free, and so unload, a kernel of an earlier form, which would end the capture.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                without_gc(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
            ):
                for call in calls:
                    result = call()
                    if keep_results:
                        results.append(result)
                    del result
        except Exception:
            self._pool = torch.cuda.graph_pool_handle()  # PyTorch refuses the old one: "already recording"
            raise
        return graph


def peak_bytes(call: Call, device: torch.device) -> int:
    """Memory that one call needs beyond its operands, at its highest."""
    call()  # what is allocated once, such as a kernel's workspace, is not the call's
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def _replay_sampler(graph: torch.cuda.CUDAGraph, n_calls: int, prelude: Callable[[], object]) -> Sampler:
    """Events around a replay; ``prelude`` keeps the device busy while the host enqueues them: no gap is timed."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample() -> float:
        prelude()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds * 1e6 / n_calls

    return sample


def _l2_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


@contextmanager
def without_gc() -> Iterator[None]:
    """As timeit does: a collection would fall on whoever runs at the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
