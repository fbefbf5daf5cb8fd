"""What stands behind the figures of ``python -m bench``: its two clocks, its statistics, peak memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.benchmark import Timer

from bench import timing
from bench.results import OURS, TORCH, WALL, Measurement, Spread, run_each
from bench.timing import Effort

CPU = torch.device("cpu")


def _measured(ours: list[float], torch_: list[float], route: str = "kernel") -> Measurement:
    case, samples = {"pytorch_bytes": {"forward": 25_000}}, {OURS: ours, TORCH: torch_}
    return Measurement(case, "forward", WALL, route, bytes_moved=10_000, samples_ns=samples)


def test_times_are_medians_of_all_rounds() -> None:
    """Not the best round: beside the median stand the rounds that a fifth of all were below, and above."""
    m = _measured([100.0, *(1000.0 * i for i in range(1, 10)), 90000.0], [])
    assert m.time_us(OURS) == Spread(5.0, 2.0, 8.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is ten times as slow now and then changes the times but not the ratio."""
    assert _measured([10.0, 1.0, 10.0], [20.0, 2.0, 20.0]).ratio(TORCH) == Spread(2.0, 2.0, 2.0)


@pytest.mark.parametrize(("route", "rates"), [("kernel", (2.0, 2.5)), ("torch", (5.0, 2.5))])
def test_rates_are_of_the_bytes_that_moved(route: str, rates: tuple[float, float]) -> None:
    """Of ours where the kernel ran, of PyTorch's where its operators ran for the library, too."""
    m = _measured([5000.0], [10_000.0], route)
    assert (m.gigabytes_per_second(OURS), m.gigabytes_per_second(TORCH)) == rates


def test_providers_are_interleaved() -> None:
    """Each round takes one sample of every provider, and no provider always goes first."""
    taken: list[str] = []

    def sample(name: str) -> float:
        taken.append(name)
        return float(len(taken))

    samples = timing.interleave({name: partial(sample, name) for name in "abc"}, Effort(0.0, 20, 20))
    rounds = [taken[i : i + 3] for i in range(3, len(taken), 3)]  # the first three calls warm up
    assert len(rounds) == 20
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {names[0] for names in rounds} == {"a", "b", "c"}
    assert samples["a"] == [3.0 * i + names.index("a") + 4 for i, names in enumerate(rounds)]


def test_wall_time_is_shared_among_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read before and after all of them, by PyTorch's Timer, which waits for a GPU at both."""
    log: list[str] = []

    def clock() -> float:
        log.append("clock")
        return float(len(log))  # a second for each entry

    monkeypatch.setattr(timing, "Timer", partial(Timer, timer=clock))
    assert timing.wall_sampler(lambda: log.append("call"), 4)() == 5e9 / 4
    assert log[-6:] == ["clock", *["call"] * 4, "clock"]


def test_the_slowest_call_sets_how_many_make_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms of the slowest, and the same number of the others."""
    monkeypatch.setattr(timing, "wall_sampler", lambda call, n_calls: call)
    assert timing.calls_per_wall_sample([lambda: 1_000.0, lambda: 50_000.0], 1e6) == 20


def test_peak_memory_is_that_beyond_the_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda replaced: 700 bytes at the highest, of which 300 were there before the call."""
    replacements = {"synchronize": None, "memory_allocated": 300, "reset_peak_memory_stats": None}
    for name, value in (replacements | {"max_memory_allocated": 700}).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert timing.peak_bytes(lambda: None, CPU) == 400


class CudaOnPaper:
    """Stands for torch.cuda where there is no GPU: runs what is captured, and writes down the order of events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log = self.log

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                pass

            def record(self) -> None:
                log.append("record")

            def synchronize(self) -> None:
                log.append("synchronize")

            def elapsed_time(self, end: "Event") -> float:
                return 2.0

        stream = SimpleNamespace(wait_stream=lambda other: None)
        replacements: dict[str, Any] = {
            "CUDAGraph": Graph,
            "Event": Event,
            "Stream": lambda device: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: nullcontext(),
            "graph": lambda graph, pool, stream: nullcontext(),
            "graph_pool_handle": lambda: (0, 1),
            "synchronize": lambda: None,
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=2**16),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(torch.cuda, name, replacement)


def test_a_cold_replay_uses_each_operand_once_and_a_warm_one_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold: own operands, own results, an eviction before. Warm: one call over and over, an untimed replay before."""
    cuda = CudaOnPaper(monkeypatch)
    replays = timing.Replays(CPU)
    assert replays._source.nbytes > 2**16  # more than the L2 cache holds
    monkeypatch.setattr(replays, "_evict", lambda: cuda.log.append("evict"))
    called: list[int] = []

    def call(i: int) -> Callable[[], None]:
        return lambda: called.append(i)

    replays.cold([call(i) for i in range(3)])()
    assert called == [0, 0, 1, 2]  # the first outside the capture
    assert cuda.log == ["evict", "record", "replay", "record", "synchronize"]
    called.clear()
    cuda.log.clear()
    replays.warm(call(7), 3)()
    assert called == [7] * 4
    assert cuda.log == ["replay", "record", "replay", "record", "synchronize"]


def test_a_capture_that_fails_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in PyTorch, which then neither gives back the stream nor takes the memory pool again: ours mends both."""
    CudaOnPaper(monkeypatch)
    current, pools = ["the user's"], iter(range(10))

    @contextmanager
    def on(stream: str) -> Iterator[None]:
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def capture(graph: object, pool: int, stream: str) -> Iterator[None]:
        current[0] = stream
        yield
        if pool == 0:
            raise RuntimeError("the first pool fails")
        current[0] = "the user's"

    for name, replacement in {
        "Stream": lambda device: "for captures",
        "current_stream": lambda: current[0],
        "stream": on,
        "graph": capture,
        "graph_pool_handle": lambda: next(pools),
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    replays = timing.Replays(CPU)
    with pytest.raises(RuntimeError, match="the first pool fails"):
        replays.cold([lambda: None])
    assert current == ["the user's"]
    replays.cold([lambda: None])
    assert current == ["the user's"]


@pytest.mark.gpu
def test_after_a_capture_that_fails_the_next_one_is_timed() -> None:
    """On CUDA, where reading a number back ends a capture: the stream is that of before, and a replay takes time."""
    x = torch.ones(2**20, device="cuda")
    stream = torch.cuda.current_stream()
    replays = timing.Replays(x.device)
    calls: dict[str, Callable[[], object]] = {"reads": lambda: x.sum().item(), "adds": lambda: x + 1}
    failures: dict[str, str] = {}
    samplers = run_each(lambda call: replays.cold([call]), calls, failures)
    assert set(failures) == {"reads"}
    assert torch.cuda.current_stream() == stream
    assert samplers["adds"]() > 0
