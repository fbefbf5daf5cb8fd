"""Nothing is timed that is wrong: every form is compared with float64 first, and errors are told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import DTYPES, Case
from bench.ops import OPS, Op
from bench.reference import ulp_error
from bench.results import run_each
from bench.verify import WrongResultError, reference, verify

CPU = torch.device("cpu")
SIGMOID = OPS[0]
every_row = pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@every_row
def test_verification_tells_rounding_from_a_mistake(row: Op, dtype: torch.dtype) -> None:
    """PyTorch passes in every dtype; its op on operands that are a little off does not."""
    case = Case.of_size(row, dtype, 2**14)
    verify(row.pytorch, case, CPU)

    def off(x: Tensor, *others: Tensor) -> Tensor:
        return row.pytorch(x + 0.5, *others)

    with pytest.raises(WrongResultError, match="eps from float64"):
        verify(off, case, CPU)


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
        grad_in: Tensor = 1.001 * grad_out * out * (1 - out)
        return grad_in


def _off_at_the_end(x: Tensor) -> Tensor:
    out = torch.sigmoid(x)
    return torch.cat([out[:-1], out[-1:] + 1])


def _unwritten(x: Tensor) -> Tensor:
    """What the first call left in memory."""
    left.append(torch.sigmoid(x))
    return left[0]


left: list[Tensor] = []
MISTAKES = [
    ("forward", lambda x: torch.sigmoid(x) * 1.001),
    ("forward", _off_at_the_end),
    ("forward", _unwritten),
    ("forward: torch.float64", lambda x: torch.sigmoid(x).double()),
    ("forward", lambda x: torch.sigmoid(x).flatten()),
    ("forward", lambda x: torch.sigmoid(x) * torch.nan),
    ("forward with grad", lambda x: torch.sigmoid(x) * (1.001 if x.requires_grad else 1)),
    ("gradient of operand 0", WrongGradient.apply),
]


@pytest.mark.parametrize(("what", "wrong"), MISTAKES)
def test_each_call_that_is_timed_is_verified(
    what: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On inputs of its own. One mistake in one call, or in the last of several chunks, and the form is refused."""
    monkeypatch.setattr("bench.verify.CHUNK", 100)
    case = Case.of_size(SIGMOID, torch.float32, 1000)
    wrong(case.operands(CPU).inputs[0])
    with pytest.raises(WrongResultError, match=rf"^{what}"):
        verify(wrong, case, CPU)


@every_row
def test_the_reference_is_the_same_in_chunks(row: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by themselves, the mean of means, and shared weights: as if all were taken at once."""
    operands = Case.of_size(row, torch.float64, 2**12).operands(CPU)
    whole = reference(operands, row.pytorch)
    monkeypatch.setattr("bench.verify.CHUNK", 2**10)
    torch.testing.assert_close(reference(operands, row.pytorch), whole)


def test_the_reason_of_a_failure_is_told() -> None:
    """Inductor's first line names only itself: what follows is kept, in one line of bounded length."""

    def fail(message: str) -> None:
        raise RuntimeError(message)

    failures: dict[str, str] = {}
    sources = {"short": "backend='inductor' raised:\nTritonError: no\n\n  ptxas", "long": "x\n" * 1000}
    assert run_each(fail, sources, failures) == {}
    assert failures["short"] == "RuntimeError: backend='inductor' raised: TritonError: no ptxas"
    assert len(failures["long"]) == 300


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        (1 + 2**-10, 1.0, 1.0),
        (1.0, 1 - 2**-12, 0.5),  # below 1 the ulp is 2^-11
        (2**-24, 0.0, 1.0),
        (3 * 2**-24, 2**-24, 2.0),
        (0.0, 0.0, 0.0),
        (float("nan"), 1.0, float("inf")),
    ],
)
def test_errors_are_counted_in_units_in_the_last_place(got: float, want: float, error: float) -> None:
    """By hand: around 1, at a power of two, in the subnormal range, for 0 and for NaN."""
    exact = torch.tensor([want], dtype=torch.float64)
    assert float(ulp_error(torch.tensor([got], dtype=torch.float16), exact)) == error
