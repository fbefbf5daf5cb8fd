"""What stands behind the figures of python -m bench: its cases, its verification, its two clocks, its statistics."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import cases, clocks, providers, runner
from bench.cases import PASSES, Case, Layout
from bench.clocks import Effort
from bench.pace import keep_what_works
from bench.providers import COPY, OURS, TORCH, NotCompiledError, Provider, assert_compiled
from bench.reference import sigmoid64, ulp_error
from bench.results import COLD, WALL, WARM, Measurement, Spread
from bench.verify import WrongResultError, verify
from tests.conftest import Route

CPU = torch.device("cpu")
LEAST_EFFORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3)


def a_case(n_elements: int = 1000, dtype: torch.dtype = torch.float32) -> Case:
    layout = Layout.contiguous([n_elements])
    return Case(cases.size_label(n_elements), "size", dtype, layout, layout)


def test_recorded_cases_carry_strides_and_counts(fallback: object) -> None:
    """The recorded file names its source; a strided x and a stride-0 gradient come out as recorded, and are right."""
    source = json.loads(cases.RECORDED_CALLS.read_text())
    assert "tritonbench" in source["source"]
    assert source["license"] == "BSD-3-Clause"
    recorded = list(cases.recorded())
    assert sum(case.count for case in recorded) == 592
    assert len({(case.x, case.grad_out, case.passes, case.dtype) for case in recorded}) == len(recorded) == 88
    strided = next(case for case in recorded if case.x.stride == (619520, 123904, 352, 1))
    expanded = next(case for case in recorded if case.grad_out.stride == (0, 0))
    assert strided.inputs(CPU).x.stride() == (619520, 123904, 352, 1)
    assert expanded.inputs(CPU).grad_out.stride() == (0, 0)
    assert expanded.bytes_moved("backward") == 2 * (1 + 2 * 96 * 65)
    for case in (strided, expanded):
        for make in providers.providers(case, CPU, with_compile=False).values():
            verify(make(), case, CPU)


def test_a_misaligned_view_is_one() -> None:
    """``[1:]`` begins one element into its allocation; the bytes of each pass are those read once and written once."""
    case = next(case for case in cases.grid([torch.bfloat16], [2**12]) if case.kind == "misaligned")
    x = case.inputs(CPU).x
    assert (x.storage_offset(), x.numel(), x.is_contiguous()) == (1, 2**12, True)
    assert [case.bytes_moved(pass_) for pass_ in PASSES] == [2**14, 3 * 2**13, 5 * 2**13]


@pytest.mark.parametrize("dtype", cases.DTYPES.values(), ids=cases.DTYPES)
def test_the_tutorial_kernel_is_right(dtype: torch.dtype, kernel_route: Route) -> None:
    """The baseline is a sigmoid, for a length that its block size does not divide."""
    verify(providers.tutorial(), a_case(1500, dtype), torch.device(kernel_route.device))


def test_verification_sees_a_result_that_was_never_written() -> None:
    """What an earlier provider left in memory does not pass: every verification draws its own inputs."""
    remembered: list[Tensor] = []

    def unwritten(x: Tensor) -> Tensor:
        remembered.append(torch.sigmoid(x))
        return remembered[0]

    unwritten_forward = Provider(unwritten, providers.pytorch().backward, unwritten)
    case = a_case()
    unwritten(case.inputs(CPU).x)
    with pytest.raises(WrongResultError, match="forward kernel"):
        verify(unwritten_forward, case, CPU)


class InexactSigmoid(torch.autograd.Function):
    """Off by 4.5 to 9 ulp; its gradient is right for the output it gave."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = (sigmoid64(x) * (1 + 4.5 * torch.finfo(x.dtype).eps)).to(x.dtype)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return providers.pytorch().backward(grad_out, out)


@pytest.mark.parametrize(
    ("dtype", "triton_exp", "allowed"),
    [(torch.float32, True, True), (torch.float32, False, False), (torch.float64, True, False)],
)
def test_a_less_accurate_exponential_is_allowed_where_it_is_one(
    dtype: torch.dtype, triton_exp: bool, allowed: bool
) -> None:
    """9 ulp are no mistake of a baseline with Triton's exponential, in float32 alone."""
    sigmoid = InexactSigmoid.apply
    inexact = Provider(sigmoid, providers.pytorch().backward, sigmoid, triton_exp=triton_exp)
    with nullcontext() if allowed else pytest.raises(WrongResultError, match="forward kernel"):
        verify(inexact, a_case(dtype=dtype), CPU)


class WrongGradient(torch.autograd.Function):
    """A σ whose gradient is off by a thousandth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.sigmoid(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return 1.001 * providers.pytorch().backward(grad_out, out)


def _off(x: Tensor) -> Tensor:
    return 1.001 * torch.sigmoid(x)


def _off_at_the_end(x: Tensor) -> Tensor:
    out = torch.sigmoid(x)
    out[-1] += 1
    return out


def _off_with_grad(x: Tensor) -> Tensor:
    return _off(x) if x.requires_grad else torch.sigmoid(x)


def _backward_off(grad_out: Tensor, out: Tensor) -> Tensor:
    return 1.001 * providers.pytorch().backward(grad_out, out)


RIGHT = providers.pytorch()
MISTAKES: list[tuple[str, Provider]] = [
    ("forward kernel", replace(RIGHT, forward=_off)),
    ("forward kernel", replace(RIGHT, forward=_off_at_the_end)),
    ("forward kernel: torch.float64", replace(RIGHT, forward=lambda x: torch.sigmoid(x).double())),
    ("forward call", replace(RIGHT, sigmoid=_off)),
    ("forward with grad", replace(RIGHT, sigmoid=_off_with_grad)),
    ("backward kernel", replace(RIGHT, backward=_backward_off)),
    ("backward through autograd", replace(RIGHT, sigmoid=WrongGradient.apply)),
    ("copy of x", replace(providers.copy(), forward=_off)),
    (r"grad_out \+ out", replace(providers.copy(), backward=torch.sub)),
]


@pytest.mark.parametrize(("what", "wrong"), MISTAKES)
def test_each_call_that_is_timed_is_verified(what: str, wrong: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mistake in one of them, or in the last of several chunks, and the provider is refused."""
    monkeypatch.setattr("bench.verify.CHUNK", 300)
    with pytest.raises(WrongResultError, match=f"^{what}"):
        verify(wrong, a_case(), CPU)


def test_the_reason_of_a_failure_is_told() -> None:
    """Inductor's first line names only itself: what follows is kept, in one line of bounded length."""

    def fail(message: str) -> None:
        raise RuntimeError(message)

    failures: dict[str, str] = {}
    sources = {"short": "backend='inductor' raised:\nTritonError: no\n\n  ptxas", "long": "x\n" * 1000}
    assert keep_what_works(fail, sources, failures) == {}
    assert failures["short"] == "RuntimeError: backend='inductor' raised: TritonError: no ptxas"
    assert len(failures["long"]) == 300


def test_errors_are_counted_in_units_in_the_last_place() -> None:
    """By hand: around 1, at a power of two, in the subnormal range, for 0 and for NaN."""
    half = torch.float16

    def error(got: float, want: float) -> float:
        return float(ulp_error(torch.tensor([got], dtype=half), torch.tensor([want], dtype=torch.float64)))

    assert error(1 + 2**-10, 1.0) == 1.0
    assert error(1.0, 1 - 2**-12) == 0.5  # below 1 the ulp is 2^-11
    assert error(2**-24, 0.0) == 1.0
    assert error(3 * 2**-24, 2**-24) == 2.0
    assert error(0.0, 0.0) == 0.0
    assert not error(float("nan"), 1.0) <= 1e9


def test_an_eager_function_does_not_pass_for_compiled() -> None:
    """The baseline named torch.compile cannot be an eager fallback."""
    x = torch.randn(16)
    with pytest.raises(NotCompiledError, match="eagerly"):
        assert_compiled(lambda: torch.sigmoid(x), n_kernels=1)
    compiled_by_nobody = torch.compile(torch.sigmoid, backend="eager")
    with pytest.raises(NotCompiledError, match="eagerly"):
        assert_compiled(lambda: compiled_by_nobody(x), n_kernels=1)


def test_what_compiles_again_is_no_baseline() -> None:
    """A call that takes another graph each time would be timed while it compiles."""
    sizes = itertools.count(2)
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with pytest.raises(RuntimeError, match="recompile"):
        assert_compiled(lambda: compiled(torch.zeros(next(sizes))), n_kernels=0)


def test_every_use_of_the_compiled_baseline_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward alone are a kernel each, both through autograd two: an eager one of them is told."""
    proven: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(providers, "assert_compiled", lambda call, n_kernels: proven.append(n_kernels))
    providers.compiled(a_case(), CPU)
    assert proven == [1, 1, 2]


def test_times_are_medians_of_all_rounds() -> None:
    """Not the best round: beside the median stand the rounds that a fifth of all were below, and above."""
    ns = [100.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 6000.0, 7000.0, 8000.0, 9000.0, 90000.0]
    m = Measurement({}, "forward", WALL, "torch", bytes_moved=10_000, samples_ns={OURS: ns})
    assert m.time_us(OURS) == Spread(5.0, 2.0, 8.0)
    assert m.gigabytes_per_second(OURS) == 2.0


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down tenfold halfway changes the times but not the ratio."""
    ours = [1.0, 1.0, 1.0, 10.0, 10.0]
    samples = {OURS: ours, TORCH: [2 * ns for ns in ours]}
    m = Measurement({}, "forward", WALL, "torch", bytes_moved=100, calls_per_sample=1, samples_ns=samples)
    assert m.ratio(TORCH, OURS) == Spread(2.0, 2.0, 2.0)
    assert m.gigabytes_per_second(OURS) == 100.0


def test_providers_are_interleaved() -> None:
    """Each round takes one sample of every provider, and no provider always goes first."""
    taken: list[str] = []

    def sampler(name: str) -> clocks.Sampler:
        def sample() -> float:
            taken.append(name)
            return float(len(taken))

        return sample

    samples = clocks.interleave({name: sampler(name) for name in "abc"}, Effort(0.0, min_rounds=20, max_rounds=20))
    rounds = [taken[i : i + 3] for i in range(3, len(taken), 3)]  # the first three calls warm up
    assert len(rounds) == 20
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {names[0] for names in rounds} == {"a", "b", "c"}
    assert all(len(values) == 20 for values in samples.values())


def test_wall_time_is_that_of_a_call_which_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is waited for before the clock starts, and before it stops; the time is shared among the calls."""
    log: list[str] = []
    times = iter([1_000, 7_000])

    def clock() -> int:
        log.append("clock")
        return next(times)

    monkeypatch.setattr("time.perf_counter_ns", clock)
    sample = clocks.wall_sampler(lambda: log.append("call"), 3, lambda: log.append("synchronize"))
    assert sample() == 2_000
    assert log == ["synchronize", "clock", "call", "call", "call", "synchronize", "clock"]


def test_the_slowest_call_sets_how_many_make_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms of the slowest, and the same number of the others."""
    monkeypatch.setattr(clocks, "wall_sampler", lambda call, n_calls, synchronize: call)
    assert clocks.calls_per_wall_sample([lambda: 1_000.0, lambda: 50_000.0], lambda: None) == 20


def test_peak_memory_is_that_beyond_the_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda replaced: 700 bytes at the highest, of which 300 were there before the call."""
    replacements = {"synchronize": None, "memory_allocated": 300, "reset_peak_memory_stats": None}
    for name, value in (replacements | {"max_memory_allocated": 700}).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert clocks.peak_bytes(lambda: None, CPU) == 400


class CudaOnPaper:
    """Stands for torch.cuda where there is no GPU: runs what is captured, and writes down the order of events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log = self.log

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

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


def test_device_time_is_measured_cold_and_where_it_fits_warm(fallback: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, torch.cuda replaced: both clocks of every pass; 2 ms of a replay are shared among its calls."""
    CudaOnPaper(monkeypatch)
    right = {OURS: providers.ours(), TORCH: providers.pytorch(), COPY: providers.copy()}
    for n_elements, expected in ((1000, [COLD, WARM]), (2**16, [COLD])):
        case = a_case(n_elements)
        operands = [case.inputs(CPU) for _ in range(clocks.calls_per_replay(case.bytes_moved("forward")))]
        for pass_ in PASSES:
            measured = list(runner.device_time(case, pass_, operands, right, {}, LEAST_EFFORT))
            assert [m.clock for m in measured] == expected
            for m in measured:
                assert m.failures == {}
                assert m.calls_per_sample == 256
                assert m.samples_ns == {name: [2e6 / 256] * 3 for name in right}


def test_a_cold_replay_uses_each_operand_once_and_a_warm_one_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold: own operands, own results, an eviction before. Warm: one call over and over, an untimed replay before."""
    cuda = CudaOnPaper(monkeypatch)
    replays = clocks.Replays(CPU)
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

    replacements: dict[str, Any] = {
        "Stream": lambda device: "for captures",
        "current_stream": lambda: current[0],
        "stream": on,
        "graph": capture,
        "graph_pool_handle": lambda: next(pools),
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    replays = clocks.Replays(CPU)
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
    replays = clocks.Replays(x.device)
    calls: dict[str, Callable[[], object]] = {"reads": lambda: x.sum().item(), "adds": lambda: x + 1}
    failures: dict[str, str] = {}
    samplers = keep_what_works(lambda call: replays.cold([call]), calls, failures)
    assert set(failures) == {"reads"}
    assert torch.cuda.current_stream() == stream
    assert samplers["adds"]() > 0
