"""What is timed by python -m bench is what it claims to be: its cases, its verification, its baselines."""

import itertools
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import cases, providers
from bench.cases import PASSES, Case, Layout
from bench.pace import keep_what_works
from bench.providers import NotCompiledError, Provider, assert_compiled
from bench.reference import sigmoid64, ulp_error
from bench.verify import WrongResultError, verify
from tests.conftest import Route

CPU = torch.device("cpu")


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
