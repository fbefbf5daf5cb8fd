"""``sigmoid_`` is ``Tensor.sigmoid_`` to autograd: views, version counters, and errors that leave the tensor alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigmoid_op import sigmoid, sigmoid_
from tests.conftest import Route


def _inference_tensor(device: str) -> Tensor:
    with torch.inference_mode():
        return torch.zeros(5, device=device)


def _leaf(device: str) -> Tensor:
    return torch.ones(4, 4, device=device, requires_grad=True)


REFUSED: dict[str, tuple[Callable[[str], Tensor], str]] = {
    "integers": (lambda device: torch.arange(3, device=device), "result type Float can't be cast"),
    "a leaf": (_leaf, "a leaf Variable that requires grad"),
    "a view of a leaf": (lambda device: _leaf(device)[1:], "a view of a leaf Variable that requires grad"),
    "a view of a view": (lambda device: _leaf(device).t()[1:][:, 1:], "a view of a leaf Variable that requires grad"),
    "shared memory": (lambda device: torch.ones(5, 1, device=device).expand(5, 7), "single memory location"),
    "an inference tensor": (_inference_tensor, "Inplace update to inference tensor outside InferenceMode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_errors(route: Route, kind: str) -> None:
    """PyTorch's error, and the tensor is as PyTorch leaves it: unchanged, but for the inference tensor."""
    make, message = REFUSED[kind]
    theirs, ours = make(route.device), make(route.device)
    for function, x in ((torch.sigmoid_, theirs), (sigmoid_, ours)):
        with pytest.raises(RuntimeError, match=message):
            function(x)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, make(route.device)) == (kind != "an inference tensor")


def test_views_are_differentiated(route: Route) -> None:
    """Inside a graph, ``sigmoid_`` of a view of a view is differentiated like ``sigmoid``."""
    leaf = torch.randn(4, 4, device=route.device, requires_grad=True)
    x = leaf * 1
    sigmoid_(x[1:][:, 1:])
    (grad,) = torch.autograd.grad(x.sum(), leaf)
    s, expected = leaf.detach().sigmoid(), torch.ones_like(leaf)
    expected[1:, 1:] = (s * (1 - s))[1:, 1:]
    torch.testing.assert_close(grad, expected)


def test_a_view_and_its_base(route: Route) -> None:
    """A plain view is overwritten, its base with it, and both count one change."""
    base = torch.zeros(4, 4, device=route.device)
    view = base[1:3]
    sigmoid_(view)
    assert base[1:3].eq(0.5).all()
    assert base[::3].eq(0).all()
    assert (view._version, base._version) == (1, 1)


def test_inference_mode(route: Route) -> None:
    """Inference tensors, which have no version counter, are overwritten; outside of it not even under no_grad."""
    with torch.inference_mode():
        assert sigmoid_(torch.zeros(3, device=route.device)).tolist() == [0.5, 0.5, 0.5]
    with torch.no_grad(), pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        sigmoid_(_inference_tensor(route.device))


@pytest.mark.parametrize("function", [sigmoid, sigmoid_])
def test_the_result_is_saved(route: Route, function: Callable[[Tensor], Tensor]) -> None:
    """Changing it before backward is an error, instead of a wrong gradient."""
    out = function(torch.randn(5, device=route.device, requires_grad=True) * 1)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_others_see_the_change(route: Route) -> None:
    """``sigmoid_`` on a tensor that another operation saved is an error in its backward."""
    exp = torch.randn(5, device=route.device, requires_grad=True).exp()
    sigmoid_(exp.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        exp.sum().backward()
