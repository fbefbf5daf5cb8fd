"""Forward and backward are right to the ulps of one table, for every 16-bit input and at every special value."""

import pytest
import torch
from torch import Tensor

from sigmoid_op import SigmoidFunction, sigmoid
from sigmoid_op.ops.exact import ExactBackwardFunction
from sigmoid_op.ops.shared import GradientFunction
from sigmoid_op.ops.sigmoid import SigmoidBackwardFunction
from tests.conftest import Route
from tests.ulp import (
    BACKWARD_ULPS,
    FALLBACK_BACKWARD_ULPS,
    FALLBACK_FORWARD_ULPS,
    FLOAT_DTYPES,
    FORWARD_ULPS,
    HALF_DTYPES,
    assert_within_ulps,
    correctly_rounded,
    every_16bit,
    true_backward,
    true_sigmoid,
    ulp_error,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan")]


def _sample(dtype: torch.dtype) -> Tensor:
    """A dense sample of the range where σ is neither 0 nor 1, and values beyond both ends."""
    reach = {torch.float16: 20, torch.bfloat16: 95, torch.float32: 106, torch.float64: 760}[dtype]
    n = 2_000 if dtype == torch.float64 else 100_000
    linear = torch.linspace(-reach, reach, n, dtype=torch.float64)
    small = torch.logspace(-12, 0, n // 10, dtype=torch.float64)
    huge = torch.tensor([1e3, 3e4], dtype=torch.float64)
    return torch.cat([linear, small, -small, huge, -huge]).to(dtype)


def _is_flushed_by_pytorch(x: Tensor) -> Tensor:
    """Where the exact result is subnormal: PyTorch's own kernels, and so the fallback, give 0 for some of these."""
    exact = true_sigmoid(x)
    return (exact > 0) & (exact < torch.finfo(x.dtype).tiny)


def _forward_ulps(route: Route, dtype: torch.dtype) -> float:
    return (FORWARD_ULPS if route.uses_kernels else FALLBACK_FORWARD_ULPS)[dtype]


def _backward_ulps(route: Route, dtype: torch.dtype) -> float:
    return (BACKWARD_ULPS if route.uses_kernels else FALLBACK_BACKWARD_ULPS)[dtype]


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_forward_of_every_16bit_pattern(route: Route, dtype: torch.dtype) -> None:
    """All 65,536 patterns, NaNs and infinities included, are within the table's ulps."""
    x = every_16bit(dtype)
    if not route.uses_kernels:
        x = x[~_is_flushed_by_pytorch(x)]
    assert_within_ulps(sigmoid(x.to(route.device)).cpu(), true_sigmoid(x), _forward_ulps(route, dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_forward_on_a_dense_sample(route: Route, dtype: torch.dtype) -> None:
    """The error is within the table's ulps."""
    x = _sample(dtype)
    if not route.uses_kernels:
        x = x[~_is_flushed_by_pytorch(x)]
    assert_within_ulps(sigmoid(x.to(route.device)).cpu(), true_sigmoid(x), _forward_ulps(route, dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_special_values(route: Route, dtype: torch.dtype) -> None:
    """σ(±0) = 0.5, σ(inf) = 1, σ(-inf) = 0 without a sign, and NaN stays NaN."""
    out = sigmoid(torch.tensor(SPECIAL, dtype=dtype, device=route.device)).cpu()
    expected = torch.tensor([0.5, 0.5, 1.0, 0.0, float("nan")], dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert not out[3].signbit()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_subnormal_results(kernel_route: Route, dtype: torch.dtype) -> None:
    """Results below the smallest normal number are not flushed to zero, down to half the smallest subnormal."""
    info = torch.finfo(dtype)
    x = torch.linspace(-750, -5, 20_001, dtype=torch.float64).to(dtype)
    exact = true_sigmoid(x)
    chosen = (exact < info.tiny) & (exact > 0.51 * info.smallest_normal * info.eps)
    assert chosen.sum() > 10
    out = sigmoid(x[chosen].to(kernel_route.device)).cpu()
    assert (out > 0).all()
    assert_within_ulps(out, exact[chosen], FORWARD_ULPS[dtype])


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_backward_of_every_16bit_out(route: Route, dtype: torch.dtype) -> None:
    """grad_out·out·(1 - out) is within the table's ulps for every out from 0 to 1."""
    out = _every_out(dtype)
    generator = torch.Generator().manual_seed(1)
    for grad_out in (torch.ones_like(out), torch.randn(out.shape, generator=generator).to(dtype)):
        grad_in = _gradient_of(out, grad_out, route)
        assert_within_ulps(grad_in, true_backward(grad_out, out), _backward_ulps(route, dtype))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("function", [SigmoidBackwardFunction, ExactBackwardFunction])
def test_backward_is_correctly_rounded(
    kernel_route: Route, function: type[GradientFunction], dtype: torch.dtype
) -> None:
    """The 16-bit gradient is the nearest number, subnormal ones included, for every out and 32 values of grad_out."""
    grad_out, out = _pairs(dtype)
    grad_in = function.apply(grad_out.to(kernel_route.device), out.to(kernel_route.device)).cpu()
    nearest = correctly_rounded(true_backward(grad_out, out), dtype)
    assert torch.equal(grad_in, nearest)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_the_pairs_catch_a_second_rounding(dtype: torch.dtype) -> None:
    """Rounded to float32 first, to nearest or towards zero, some of the gradients would not be the nearest number."""
    grad_out, out = _pairs(dtype)
    exact = true_backward(grad_out, out)
    nearest = correctly_rounded(exact, dtype)
    to_nearest = exact.float()
    towards_zero = torch.where(to_nearest.abs() > exact.abs(), to_nearest.nextafter(torch.zeros(())), to_nearest)
    for twice in (to_nearest, towards_zero):
        assert 0 < (twice.to(dtype) != nearest).sum() < out.numel() / 100


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_special_gradients(route: Route, dtype: torch.dtype) -> None:
    """Signed zeros, infinities and NaN come out of the gradient as IEEE arithmetic has them; inf · 0 is NaN."""
    pairs = torch.cartesian_prod(torch.tensor([*SPECIAL, 1.0, -1.0]), torch.tensor([0.0, 0.01, 0.5, 1.0, torch.nan]))
    grad_out, out = pairs.to(dtype).unbind(1)
    expected = (grad_out.double() * out.double() * (1 - out.double())).to(dtype)
    special = ~expected.isfinite() | (expected == 0)
    grad_in = _gradient_of(out.contiguous(), grad_out.contiguous(), route)
    torch.testing.assert_close(grad_in[special], expected[special], rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(grad_in[number].signbit(), expected[number].signbit())


def _every_out(dtype: torch.dtype) -> Tensor:
    out = every_16bit(dtype)
    return out[(out >= 0) & (out <= 1)]


def _pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every out from 0 to 1 with 32 values of grad_out, two of which make ties of bfloat16 hard to see."""
    drawn = torch.randn(30, generator=torch.Generator().manual_seed(3))
    grad_out = torch.cat([drawn, torch.tensor([10.625, 13.0])]).to(dtype)
    pairs = torch.cartesian_prod(grad_out, _every_out(dtype))
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_backward_on_a_dense_sample(route: Route, dtype: torch.dtype) -> None:
    """The gradient is that of the saved, rounded out, within the table's ulps."""
    x = _sample(dtype)
    out = sigmoid(x.to(route.device)).cpu()
    normal = (out > 4 * torch.finfo(dtype).tiny) & out.isfinite()
    out = out[normal]
    grad_out = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).to(dtype)
    assert_within_ulps(_gradient_of(out, grad_out, route), true_backward(grad_out, out), _backward_ulps(route, dtype))


def _gradient_of(out: Tensor, grad_out: Tensor, route: Route) -> Tensor:
    grad_in: Tensor = SigmoidBackwardFunction.apply(grad_out.to(route.device), out.to(route.device))
    return grad_in.cpu()


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
    x = _sample(torch.float32)
    careless = 1 / (1 + torch.exp2((x * -1.4426950408889634).float()))
    assert ulp_error(careless, true_sigmoid(x)).max() > 10


def test_gradient_uses_the_saved_output(route: Route) -> None:
    """SigmoidFunction's gradient is that of its own rounded output, element for element."""
    x = torch.linspace(-4, 4, 33, device=route.device, requires_grad=True)
    out = SigmoidFunction.apply(x)
    grad_out = torch.linspace(1, 2, 33, device=route.device)
    (grad_in,) = torch.autograd.grad(out, x, grad_out)
    assert_within_ulps(grad_in.cpu(), true_backward(grad_out, out), _backward_ulps(route, torch.float32))
