"""Exactly one tensor is kept for backward: the output itself."""

import pytest
import torch

from sigmoid_op import SigmoidFunction, sigmoid, sigmoid_
from tests.conftest import Route, saved_tensors


@pytest.mark.parametrize("shape", [(), (5,), (3, 1100)], ids=str)
def test_saves_the_output_alone(route: Route, shape: tuple[int, ...]) -> None:
    """One saved tensor, in the output's storage: no copy, and not the input."""
    x = torch.randn(shape, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        out = sigmoid(x)
    assert [tensor.data_ptr() for tensor in saved] == [out.data_ptr()]
    assert saved[0].shape == out.shape
    assert saved[0].data_ptr() != x.data_ptr()


def test_saves_nothing_without_grad(route: Route) -> None:
    """Nothing is kept where nothing is differentiated: under no_grad, or when the input does not require it."""
    x = torch.randn(5, device=route.device, requires_grad=True)
    with saved_tensors() as saved:
        with torch.no_grad():
            sigmoid(x)
        sigmoid(x.detach())
    assert saved == []


def test_keeps_no_reference_to_the_input(route: Route) -> None:
    """The input's memory is free once nobody else holds it, although the graph lives on."""
    import weakref

    leaf = torch.randn(5, device=route.device, requires_grad=True)
    x = leaf * 2
    out = SigmoidFunction.apply(x)
    storage = weakref.ref(x)
    del x
    assert storage() is None
    out.sum().backward()
    assert leaf.grad is not None


def test_changing_the_output_afterwards_is_an_error(route: Route) -> None:
    """The version counter catches an output changed in place before backward, instead of a wrong gradient."""
    x = torch.randn(5, device=route.device, requires_grad=True)
    out = sigmoid(x)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_in_place_change_by_sigmoid_is_seen(route: Route) -> None:
    """``sigmoid_`` on a tensor that another operation saved raises in backward, as ``Tensor.sigmoid_`` does."""
    x = torch.randn(5, device=route.device, requires_grad=True)
    exp = x.exp()
    saved = exp.detach()
    sigmoid_(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        exp.sum().backward()


def test_the_hook_sees_a_second_tensor() -> None:
    """The check can fail: x·σ(x) saves the input too."""
    x = torch.randn(5, requires_grad=True)
    with saved_tensors() as saved:
        x * torch.sigmoid(x)
    assert len(saved) > 1
