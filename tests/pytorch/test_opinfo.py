"""The inputs that PyTorch tests its own sigmoid with: every dtype and layout, empty, extremal and overlapping ones."""

import copy
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from sigmoid_op import SigmoidFunction, dispatch, sigmoid, sigmoid_
from tests.conftest import Route
from tests.ulp import FALLBACK_BACKWARD_ULPS, FORWARD_ULPS, assert_within_ulps, true_backward, true_sigmoid

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")

from torch.testing._internal.common_methods_invocations import op_db

(OPINFO,) = [info for info in op_db if info.name == "sigmoid"]
DTYPES = sorted({*OPINFO.dtypes, *OPINFO.dtypesIfCUDA}, key=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@cache
def _made_samples(device: str, dtype: torch.dtype) -> list[Tensor]:
    makers = (OPINFO.sample_inputs, OPINFO.reference_inputs)
    samples = [sample for make in makers for sample in make(device, dtype)]
    assert not any(sample.args or sample.kwargs for sample in samples)
    return [_shortened(sample.input) if device == "cpu" else sample.input for sample in samples]


def _samples(route: Route, dtype: torch.dtype) -> Iterator[Tensor]:
    """The OpInfo's sample inputs and reference inputs, copied with their strides and overlaps."""
    if not OPINFO.supports_dtype(dtype, route.device):
        pytest.skip(f"PyTorch has no samples of {dtype} on {route.device}")
    yield from map(copy.deepcopy, _made_samples(route.device, dtype))


def _shortened(x: Tensor) -> Tensor:
    """Cut down in the outer dimension, for Triton's interpreter; a dense layout stays dense. CUDA takes it whole."""
    if x.numel() <= 2**14:
        return x
    small = x.narrow(max(range(x.dim()), key=x.stride), 0, 8)
    # A storage of its own, of the size it needs, for the copies to be cheap.
    return torch.empty_strided(small.shape, small.stride(), dtype=x.dtype).copy_(small)


def _thinned(x: Tensor) -> Tensor:
    """The values to compare: all of them, or every n-th where the exact ones come from mpmath, at 20 us each."""
    flat = x.detach().flatten()
    return flat[:: 1 + flat.numel() // 1000] if x.dtype == torch.float64 else flat


def _assert_sigmoid(result: Tensor, x: Tensor, expected: Tensor, *, by_kernel: bool) -> None:
    """Dtype, shape and strides of torch.sigmoid; its very bits too, or, from a kernel, σ(x) within the tolerance."""
    assert (result.dtype, result.shape, result.stride()) == (expected.dtype, expected.shape, expected.stride())
    if by_kernel:
        assert_within_ulps(_thinned(result), true_sigmoid(_thinned(x)), FORWARD_ULPS[x.dtype])
    else:
        _assert_equal(result, expected)


def _assert_equal(result: Tensor, expected: Tensor) -> None:
    if expected.is_complex():  # not every comparison exists for complex32
        result, expected = torch.view_as_real(result), torch.view_as_real(expected)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@every_dtype
def test_forward(route: Route, launches: list[str], dtype: torch.dtype) -> None:
    """Ours on every sample; each one that a kernel takes launches it, unless it is empty, and no other does."""
    expected_launches = 0
    for x in _samples(route, dtype):
        by_kernel = dispatch.supported(x)
        expected_launches += by_kernel and x.numel() > 0
        _assert_sigmoid(sigmoid(x), x, torch.sigmoid(x), by_kernel=by_kernel)
    assert launches == ["sigmoid"] * expected_launches
    assert bool(launches) == (route.uses_kernels and dtype in dispatch.KERNEL_DTYPES)


@every_dtype
def test_out(route: Route, dtype: torch.dtype) -> None:
    """``out=`` on every sample: given the right shape, and empty, to be resized."""
    assert OPINFO.supports_out
    for x in _samples(route, dtype):
        expected = torch.sigmoid(x)
        for out in (torch.empty_like(expected), expected.new_empty(0)):
            assert sigmoid(x, out=out) is out
            _assert_equal(out, expected)


def _error(change: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """What ``change(x)`` raises; None where it gives back ``x`` itself."""
    try:
        return None if change(x) is x else "another tensor"
    except RuntimeError as error:
        return str(error)


@every_dtype
def test_in_place(route: Route, dtype: torch.dtype) -> None:
    """``sigmoid_`` on every sample: Tensor.sigmoid_'s result, or its error where it cannot hold one or overlaps."""
    for x, ours, theirs in zip(*(_samples(route, dtype) for _ in range(3)), strict=True):
        by_kernel = dispatch.supported(ours)
        error = _error(OPINFO.get_inplace(), theirs)
        assert _error(sigmoid_, ours) == error
        if error is None:
            _assert_sigmoid(ours, x, theirs, by_kernel=by_kernel)


@pytest.mark.parametrize("dtype", sorted(dispatch.KERNEL_DTYPES, key=str), ids=str)
def test_backward(route: Route, dtype: torch.dtype) -> None:
    """The gradient on every sample, in the dtype, shape and strides of torch.sigmoid's."""
    assert dtype in OPINFO.supported_backward_dtypes(route.device)
    for x in _samples(route, dtype):
        ours, theirs = (x.detach().requires_grad_() for _ in range(2))
        out, expected_out = SigmoidFunction.apply(ours), torch.sigmoid(theirs)
        grad_out = torch.randn_like(expected_out)
        (grad,) = torch.autograd.grad(out, ours, grad_out)
        (expected,) = torch.autograd.grad(expected_out, theirs, grad_out)
        assert (grad.dtype, grad.shape, grad.stride()) == (expected.dtype, expected.shape, expected.stride())
        exact = true_backward(_thinned(grad_out), _thinned(out))
        assert_within_ulps(_thinned(grad), exact, FALLBACK_BACKWARD_ULPS[dtype])


def test_there_are_no_error_inputs() -> None:
    """PyTorch lists no wrong calls of sigmoid; when it does, they belong here (see test_dispatch for our own)."""
    assert OPINFO.error_inputs_func is None
