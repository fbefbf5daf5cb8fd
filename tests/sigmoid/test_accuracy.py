"""Forward and backward are right to the ulps of one table, for every 16-bit input and at every special value."""

import pytest
import torch
from torch import Tensor

from sigmoid_op import sigmoid
from sigmoid_op.ops.exact import ExactBackwardFunction
from sigmoid_op.ops.shared import GradientFunction
from sigmoid_op.ops.sigmoid import SigmoidBackwardFunction
from tests.conftest import Route
from tests.ulp import (
    BACKWARD_ULPS,
    FALLBACK_BACKWARD_ULPS,
    HALF_DTYPES,
    assert_within_ulps,
    correctly_rounded,
    every_16bit,
    every_dtype,
    forward_ulps,
    sample,
    true_backward,
    true_sigmoid,
    ulp_error,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

every_half = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan")]


@every_dtype
def test_forward(route: Route, dtype: torch.dtype) -> None:
    """Within the table's ulps, subnormal results included, of which PyTorch's own kernels flush some to 0."""
    x = sample(dtype)
    exact = true_sigmoid(x)
    subnormal = (exact > 0) & (exact < torch.finfo(dtype).tiny)
    assert subnormal.sum() > 10
    if not route.uses_kernels:
        x, exact = x[~subnormal], exact[~subnormal]
    ulps = forward_ulps(dtype, by_kernel=route.uses_kernels)
    assert_within_ulps(sigmoid(x.to(route.device)).cpu(), exact, ulps)


@every_dtype
def test_special_values(route: Route, dtype: torch.dtype) -> None:
    """σ(±0) = 0.5, σ(inf) = 1, σ(-inf) = 0 without a sign, and NaN stays NaN."""
    out = sigmoid(torch.tensor(SPECIAL, dtype=dtype, device=route.device)).cpu()
    expected = torch.tensor([0.5, 0.5, 1.0, 0.0, float("nan")], dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert not out[3].signbit()


@every_dtype
def test_backward(route: Route, dtype: torch.dtype) -> None:
    """grad_out·out·(1 - out) is within the table's ulps for every 16-bit out, and for a sample of wider ones."""
    out = _outs(dtype)
    ulps = BACKWARD_ULPS if route.uses_kernels else FALLBACK_BACKWARD_ULPS
    for grad_out in (torch.ones_like(out), torch.linspace(-3, 3, out.numel(), dtype=torch.float64).to(dtype)):
        grad_in = SigmoidBackwardFunction.apply(grad_out.to(route.device), out.to(route.device)).cpu()
        assert_within_ulps(grad_in, true_backward(grad_out, out), ulps[dtype])


@every_half
@pytest.mark.parametrize("function", [SigmoidBackwardFunction, ExactBackwardFunction])
def test_backward_is_correctly_rounded(
    kernel_route: Route, function: type[GradientFunction], dtype: torch.dtype
) -> None:
    """The 16-bit gradient is the nearest number, subnormal ones included, for every out and 32 values of grad_out."""
    grad_out, out = _pairs(dtype)
    grad_in = function.apply(grad_out.to(kernel_route.device), out.to(kernel_route.device)).cpu()
    nearest = correctly_rounded(true_backward(grad_out, out), dtype)
    assert torch.equal(grad_in, nearest)


@every_half
def test_the_pairs_catch_a_second_rounding(dtype: torch.dtype) -> None:
    """Rounded to float32 first, to nearest or towards zero, some of the gradients would not be the nearest number."""
    grad_out, out = _pairs(dtype)
    exact = true_backward(grad_out, out)
    nearest = correctly_rounded(exact, dtype)
    to_nearest = exact.float()
    towards_zero = torch.where(to_nearest.abs() > exact.abs(), to_nearest.nextafter(torch.zeros(())), to_nearest)
    for twice in (to_nearest, towards_zero):
        assert 0 < (twice.to(dtype) != nearest).sum() < out.numel() / 100


@every_dtype
def test_special_gradients(route: Route, dtype: torch.dtype) -> None:
    """Signed zeros, infinities and NaN come out of the gradient as IEEE arithmetic has them; inf · 0 is NaN."""
    pairs = torch.cartesian_prod(torch.tensor([*SPECIAL, 1.0, -1.0]), torch.tensor([0.0, 0.01, 0.5, 1.0, torch.nan]))
    grad_out, out = pairs.to(dtype).t().contiguous()
    expected = (grad_out.double() * out.double() * (1 - out.double())).to(dtype)
    special = ~expected.isfinite() | (expected == 0)
    grad_in = SigmoidBackwardFunction.apply(grad_out.to(route.device), out.to(route.device)).cpu()
    torch.testing.assert_close(grad_in[special], expected[special], rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(grad_in[number].signbit(), expected[number].signbit())


def _outs(dtype: torch.dtype) -> Tensor:
    """Every one of 16 bits from 0 to 1; of wider dtypes a sample of those that are normal numbers."""
    if dtype in HALF_DTYPES:
        out = every_16bit(dtype)
        return out[(out >= 0) & (out <= 1)]
    out = true_sigmoid(sample(dtype)).to(dtype)
    return out[out > 4 * torch.finfo(dtype).tiny]


def _pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every out from 0 to 1 with 32 values of grad_out, two of which make ties of bfloat16 hard to see."""
    drawn = torch.randn(30, generator=torch.Generator().manual_seed(3))
    grad_out = torch.cat([drawn, torch.tensor([10.625, 13.0])]).to(dtype)
    grad_out, out = torch.cartesian_prod(grad_out, _outs(dtype)).t().contiguous()
    return grad_out, out


def test_the_measure_can_fail() -> None:
    """One wrong last bit is one ulp; a flushed subnormal, a NaN and a missed infinity are infinitely or far off."""
    exact = torch.tensor([0.75, 1e-40, 0.5, float("inf")], dtype=torch.float64)
    result = torch.tensor([0.75 + 2**-24, 0.0, float("nan"), 1.0])
    error = ulp_error(result, exact)
    assert error[0] == 1
    assert error[1] > 1e4
    assert error[2:].isinf().all()
    with pytest.raises(AssertionError, match="ulp off"):
        assert_within_ulps(result[:2], exact[:2], 1.0)


def test_the_sample_catches_a_careless_exponential() -> None:
    """A float32 σ whose exponent is rounded once, as ``tl.exp`` does on a GPU, fails the table by far."""
    x = sample(torch.float32)
    careless = 1 / (1 + torch.exp2((x * -1.4426950408889634).float()))
    assert ulp_error(careless, true_sigmoid(x)).max() > 10
