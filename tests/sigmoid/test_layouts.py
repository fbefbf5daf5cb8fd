"""Every memory layout gives torch.sigmoid's result, shape and strides, forward and backward, every element written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigmoid_op import SigmoidFunction, sigmoid, sigmoid_
from sigmoid_op.dispatch import is_dense
from tests.conftest import Route
from tests.ulp import (
    FALLBACK_BACKWARD_ULPS,
    HALF_DTYPES,
    assert_within_ulps,
    every_dtype,
    forward_ulps,
    true_backward,
    true_sigmoid,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")

# A block is 2048 elements, of float64 1024: lengths around one, two and four, and lengths no power of two divides.
LENGTHS = [0, 1, 2, 7, 8, 15, 16, 17, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193, 10001]


def _base(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (3 * torch.randn(shape, generator=generator)).to(dtype).to(device)


def _misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "scalar": ((), lambda x: x),
    "transposed": ((5, 7), Tensor.t),
    "permuted": ((3, 4, 5), lambda x: x.permute(2, 0, 1)),
    "channels_last": ((2, 3, 4, 5), lambda x: x.to(memory_format=torch.channels_last)),
    "size one": ((4, 6), lambda x: x[:, None].transpose(0, 1)),
    "one of a batch": ((4, 4, 6), lambda x: x.transpose(1, 2)[::4]),
    "sliced": ((6, 10), lambda x: x[:, 1:8:2]),
    "narrowed": ((6, 10), lambda x: x[2:5]),
    "expanded": ((5, 1), lambda x: x.expand(5, 7)),
    "overlapping": ((12,), lambda x: x.as_strided((5, 3), (2, 1))),
    "misaligned": ((5001,), _misaligned),
    "misaligned by 8 bytes": ((64,), lambda x: x[8 // x.itemsize :]),
    "empty": ((0, 4), lambda x: x),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "ones, expanded": lambda out: torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape),
    "one of three, expanded": lambda out: torch.arange(3, dtype=out.dtype, device=out.device)[2].expand(out.shape),
    "a row, expanded": lambda out: torch.randn_like(out).sum(-1, keepdim=True).expand(out.shape),
    "every second": lambda out: torch.stack([torch.randn_like(out)] * 2, dim=-1)[..., 0],
    "contiguous": lambda out: torch.randn(out.shape, device=out.device).to(out.dtype),
    "same layout": torch.randn_like,
    "misaligned": lambda out: _misaligned(torch.randn_like(out, memory_format=torch.contiguous_format)),
}


def _made(layout: str, dtype: torch.dtype, device: str) -> Tensor:
    shape, change = LAYOUTS[layout]
    return change(_base(*shape, dtype=dtype, device=device))


def _assert_sigmoid(out: Tensor, x: Tensor, route: Route) -> None:
    """A layout with gaps or overlaps goes to PyTorch on every route."""
    expected = torch.sigmoid(x)
    assert (out.dtype, out.device, out.stride()) == (expected.dtype, expected.device, expected.stride())
    ulps = forward_ulps(x.dtype, by_kernel=route.uses_kernels and is_dense(x))
    assert_within_ulps(out.cpu(), true_sigmoid(x.cpu()), ulps)


@every_dtype
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(kernel_route: Route, dtype: torch.dtype, length: int) -> None:
    """Empty, odd and full blocks are written to the last element, and not one element further."""
    storage = _base(length + 64, dtype=dtype, device=kernel_route.device)
    x, behind = storage[:length].clone(), storage[length:].clone()
    _assert_sigmoid(sigmoid(x), x, kernel_route)
    sigmoid_(storage[:length])
    assert torch.equal(storage[length:], behind)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward(route: Route, dtype: torch.dtype, layout: str) -> None:
    """The result and its strides are torch.sigmoid's; the input is left as it was.

    ``sigmoid_``, which refuses elements that share memory, returns the very tensor, and tells autograd that it changed.
    """
    x = _made(layout, dtype, route.device)
    before, version = x.clone(), x._version
    _assert_sigmoid(sigmoid(x), x, route)
    assert torch.equal(x, before)
    if layout not in ("expanded", "overlapping"):
        assert sigmoid_(x) is x
        assert x._version == version + 1
        ulps = forward_ulps(dtype, by_kernel=route.uses_kernels and is_dense(x))
        assert_within_ulps(x.cpu(), true_sigmoid(before.cpu()), ulps)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward(route: Route, dtype: torch.dtype, layout: str) -> None:
    """The gradient is right for every layout of the incoming one, the stride-0 one of ``sum()`` included."""
    x = _made(layout, dtype, route.device).detach().requires_grad_()
    out = SigmoidFunction.apply(x)
    for name, make in GRADIENTS.items():
        if name == "a row, expanded" and x.dim() == 0:
            continue  # a scalar has no rows
        grad_out = make(out.detach())
        (grad_in,) = torch.autograd.grad(out, x, grad_out, retain_graph=True)
        assert grad_in.dtype == dtype
        exact = true_backward(grad_out.cpu(), out.detach().cpu())
        assert_within_ulps(grad_in.cpu(), exact, FALLBACK_BACKWARD_ULPS[dtype])


@every_dtype
def test_gradients_that_take_the_kernel(kernel_route: Route, launches: list[str], dtype: torch.dtype) -> None:
    """One that lies as the result does, but for the stride of a dimension of size 1, which is never stepped.

    Of 16 bits any other, too, copied, as the kernel rounds once; a wider one takes PyTorch's.
    """
    for shape, taken in [((5, 1), True), ((4, 6), dtype in HALF_DTYPES)]:
        out = SigmoidFunction.apply(torch.ones(shape, dtype=dtype, device=kernel_route.device, requires_grad=True))
        launches.clear()
        out.backward(torch.ones(shape[::-1], dtype=dtype, device=kernel_route.device).t())
        assert launches == (["sigmoid_backward"] if taken else [])


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "misaligned", "sliced", "expanded"])
def test_double_backward(route: Route, layout: str) -> None:
    """The second derivative does not depend on the layout."""
    x = _made(layout, torch.float64, route.device).detach().requires_grad_()
    (grad,) = torch.autograd.grad(SigmoidFunction.apply(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    s = torch.sigmoid(x.detach())
    torch.testing.assert_close(second, s * (1 - s) * (1 - 2 * s))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_is_what_empty_like_keeps(layout: str) -> None:
    """``is_dense`` answers whether ``empty_like`` keeps the strides, on which the kernels rely."""
    x = _made(layout, torch.float32, "cpu")
    kept = torch.empty_like(x).stride() == x.stride()
    assert is_dense(x) == (kept and layout not in ("sliced", "expanded", "overlapping"))
