"""Exactly one tensor is kept for backward: the output itself, or with ``exact_grad`` σ(-|x|)."""

import weakref

import pytest
import torch

from sigmoid_op import sigmoid
from tests.conftest import Route, saved_tensors

pytestmark = pytest.mark.parametrize("exact_grad", [False, True])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(), (3, 1100)], ids=str)
def test_saves_one_tensor(route: Route, exact_grad: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of the input's dtype and shape: in the output's storage, no copy; with ``exact_grad``, neither input nor output.

    The input's memory is free once nobody else holds it, although the graph lives on.
    """
    leaf = torch.randn(shape, dtype=dtype, device=route.device, requires_grad=True)
    x = leaf * 2
    with saved_tensors() as saved:
        out = sigmoid(x, exact_grad=exact_grad)
    assert [(t.dtype, t.shape) for t in saved] == [(dtype, shape)]
    assert (saved[0].data_ptr() != out.data_ptr()) == exact_grad
    assert saved[0].data_ptr() != x.data_ptr()
    input = weakref.ref(x)
    del x
    assert input() is None
    out.sum().backward()
    assert leaf.grad is not None


def test_saves_nothing_without_grad(route: Route, exact_grad: bool) -> None:
    """Nothing is kept where nothing is differentiated: under no_grad, or when the input does not require it."""
    x = torch.randn(5, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        with torch.no_grad():
            assert not sigmoid(x, exact_grad=exact_grad).requires_grad
        assert not sigmoid(x.detach(), exact_grad=exact_grad).requires_grad
    assert saved == []
