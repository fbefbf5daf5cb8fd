"""Exactly one tensor is kept for backward: the output itself, or with ``exact_grad`` σ(-|x|)."""

import weakref

import pytest
import torch

from sigmoid_op import sigmoid
from tests.conftest import Route, saved_tensors


@pytest.mark.parametrize("shape", [(), (5,), (3, 1100)], ids=str)
def test_saves_the_output_alone(route: Route, shape: tuple[int, ...]) -> None:
    """One saved tensor, in the output's storage: no copy, and not the input."""
    x = torch.randn(shape, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        out = sigmoid(x)
    assert [(t.data_ptr(), t.shape) for t in saved] == [(out.data_ptr(), out.shape)]
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_exact_grad_saves_one_other(route: Route, dtype: torch.dtype) -> None:
    """One tensor of the input's dtype and shape, neither the input nor the output: the price the docstring states."""
    x = torch.randn(3, 1100, dtype=dtype, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        out = sigmoid(x, exact_grad=True)
    assert [(t.dtype, t.shape) for t in saved] == [(dtype, x.shape)]
    assert saved[0].data_ptr() not in (x.data_ptr(), out.data_ptr())


@pytest.mark.parametrize("exact_grad", [False, True])
def test_saves_nothing_without_grad(route: Route, exact_grad: bool) -> None:
    """Nothing is kept where nothing is differentiated: under no_grad, or when the input does not require it."""
    x = torch.randn(5, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        with torch.no_grad():
            out = sigmoid(x, exact_grad=exact_grad)
        assert not out.requires_grad
        assert not sigmoid(x.detach(), exact_grad=exact_grad).requires_grad
    assert saved == []


@pytest.mark.parametrize("exact_grad", [False, True])
def test_keeps_no_reference_to_the_input(route: Route, exact_grad: bool) -> None:
    """The input's memory is free once nobody else holds it, although the graph lives on."""
    leaf = torch.randn(5, device=route.device, requires_grad=True)
    x = leaf * 2
    out = sigmoid(x, exact_grad=exact_grad)
    storage = weakref.ref(x)
    del x
    assert storage() is None
    out.sum().backward()
    assert leaf.grad is not None


def test_the_hook_sees_a_second_tensor() -> None:
    """The check can fail: x·σ(x) saves the input too."""
    x = torch.randn(5, requires_grad=True)
    with saved_tensors() as saved:
        x * torch.sigmoid(x)
    assert len(saved) > 1
