"""Forward and backward are right to the ulps of one table, for every 16-bit input and at every special value."""

import pytest
import torch
from torch import Tensor

from sigmoid_op import SigmoidFunction, sigmoid
from tests.conftest import Path
from tests.ulp import (
    BACKWARD_ULPS,
    FALLBACK_BACKWARD_ULPS,
    FALLBACK_FORWARD_ULPS,
    FLOAT_DTYPES,
    FORWARD_ULPS,
    HALF_DTYPES,
    assert_within_ulps,
    every_16bit,
    exact_backward,
    exact_sigmoid,
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
    exact = exact_sigmoid(x)
    return (exact > 0) & (exact < torch.finfo(x.dtype).tiny)


def _forward_ulps(path: Path, dtype: torch.dtype) -> float:
    return (FORWARD_ULPS if path.uses_kernels else FALLBACK_FORWARD_ULPS)[dtype]


def _backward_ulps(path: Path, dtype: torch.dtype) -> float:
    return (BACKWARD_ULPS if path.uses_kernels else FALLBACK_BACKWARD_ULPS)[dtype]


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_forward_of_every_16bit_pattern(path: Path, dtype: torch.dtype) -> None:
    """All 65,536 patterns, NaNs and infinities included, are within the table's ulps."""
    x = every_16bit(dtype)
    if not path.uses_kernels:
        x = x[~_is_flushed_by_pytorch(x)]
    assert_within_ulps(sigmoid(x.to(path.device)).cpu(), exact_sigmoid(x), _forward_ulps(path, dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_forward_on_a_dense_sample(path: Path, dtype: torch.dtype) -> None:
    """The error is within the table's ulps."""
    x = _sample(dtype)
    if not path.uses_kernels:
        x = x[~_is_flushed_by_pytorch(x)]
    assert_within_ulps(sigmoid(x.to(path.device)).cpu(), exact_sigmoid(x), _forward_ulps(path, dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_special_values(path: Path, dtype: torch.dtype) -> None:
    """σ(±0) = 0.5, σ(inf) = 1, σ(-inf) = 0 without a sign, and NaN stays NaN."""
    out = sigmoid(torch.tensor(SPECIAL, dtype=dtype, device=path.device)).cpu()
    expected = torch.tensor([0.5, 0.5, 1.0, 0.0, float("nan")], dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert not out[3].signbit()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_subnormal_results(kernel_path: Path, dtype: torch.dtype) -> None:
    """Results below the smallest normal number are not flushed to zero, down to half the smallest subnormal."""
    info = torch.finfo(dtype)
    x = torch.linspace(-750, -5, 20_001, dtype=torch.float64).to(dtype)
    exact = exact_sigmoid(x)
    chosen = (exact < info.tiny) & (exact > 0.51 * info.smallest_normal * info.eps)
    assert chosen.sum() > 10
    out = sigmoid(x[chosen].to(kernel_path.device)).cpu()
    assert (out > 0).all()
    assert_within_ulps(out, exact[chosen], FORWARD_ULPS[dtype])


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_backward_of_every_16bit_out(path: Path, dtype: torch.dtype) -> None:
    """grad_out·out·(1 - out) is rounded once: within 0.51 ulp for every finite out."""
    out = every_16bit(dtype)
    out = out[out.isfinite() & (out >= 0) & (out <= 1)]
    generator = torch.Generator().manual_seed(1)
    for grad_out in (torch.ones_like(out), torch.randn(out.shape, generator=generator).to(dtype)):
        grad_in = _gradient_of(out, grad_out, path)
        assert_within_ulps(grad_in, exact_backward(grad_out, out), _backward_ulps(path, dtype))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_backward_on_a_dense_sample(path: Path, dtype: torch.dtype) -> None:
    """The gradient is that of the saved, rounded out, within the table's ulps."""
    x = _sample(dtype)
    out = sigmoid(x.to(path.device)).cpu()
    normal = (out > 4 * torch.finfo(dtype).tiny) & out.isfinite()
    out = out[normal]
    grad_out = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).to(dtype)
    assert_within_ulps(_gradient_of(out, grad_out, path), exact_backward(grad_out, out), _backward_ulps(path, dtype))


def _gradient_of(out: Tensor, grad_out: Tensor, path: Path) -> Tensor:
    from sigmoid_op.autograd import SigmoidBackwardFunction

    grad_in: Tensor = SigmoidBackwardFunction.apply(grad_out.to(path.device), out.to(path.device))
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
    assert ulp_error(careless, exact_sigmoid(x)).max() > 10


def test_gradient_uses_the_saved_output(path: Path) -> None:
    """SigmoidFunction's gradient is that of its own rounded output, element for element."""
    x = torch.linspace(-4, 4, 33, device=path.device, requires_grad=True)
    out = SigmoidFunction.apply(x)
    grad_out = torch.linspace(1, 2, 33, device=path.device)
    (grad_in,) = torch.autograd.grad(out, x, grad_out)
    assert_within_ulps(grad_in.cpu(), exact_backward(grad_out, out), _backward_ulps(path, torch.float32))
