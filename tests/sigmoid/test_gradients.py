"""The gradients are those of σ: checked against finite differences in float64, in every mode and on every route."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sigmoid_op import SigmoidFunction, sigmoid
from tests.conftest import Route
from tests.ulp import true_sigmoid

pytestmark = pytest.mark.usefixtures("poisoned_empty")

Unary = Callable[[Tensor], Tensor]
exact_sigmoid = partial(sigmoid, exact_grad=True)
every_function = pytest.mark.parametrize(
    "function", [SigmoidFunction.apply, exact_sigmoid], ids=["SigmoidFunction", "exact_grad"]
)


def leaf(route: Route, *shape: int, seed: int = 0) -> Tensor:
    """Of float64, three wide, so that both tails and the middle of σ are met."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    return x.to(route.device).requires_grad_()


@every_function
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_first_and_second_derivative(route: Route, function: Unary, shape: tuple[int, ...]) -> None:
    """Forward and reverse mode, and each over the other, batched and not, undefined gradients included."""
    x = leaf(route, *shape)
    assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, x, check_fwd_over_rev=True, check_batched_grad=True)


@every_function
def test_third_derivative(route: Route, function: Unary) -> None:
    """Differentiating further works: σ''' = σ'(1 - 6σ')."""
    x = leaf(route, 9)
    derivative = function(x)
    for _ in range(3):
        # A gradient that lies in memory as x does, which kernels read.
        (derivative,) = torch.autograd.grad(derivative, x, torch.ones_like(x), create_graph=True)
    s = true_sigmoid(x.detach()).to(x.device)
    torch.testing.assert_close(derivative.detach(), s * (1 - s) * (1 - 6 * s * (1 - s)))


@every_function
def test_a_gradient_penalty(route: Route, function: Unary) -> None:
    """Where the loss has the result and its gradient, what flows back through either is added up.

    The first gradient is of a sum, one number for all elements; the second one has as many numbers as elements.
    """
    x = leaf(route, 9)
    out = function(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(out + slope, x, torch.ones_like(x))
    s = true_sigmoid(x.detach()).to(x.device)
    torch.testing.assert_close(gradient, s * (1 - s) * (2 - 2 * s))


@pytest.mark.parametrize(("function", "name"), [(SigmoidFunction.apply, "sigmoid"), (exact_sigmoid, "sigmoid_exact")])
def test_kernels_compute_each_order(kernel_route: Route, launches: list[str], function: Unary, name: str) -> None:
    """Forward, backward and double backward each run their fused kernel, and no other."""
    x = leaf(kernel_route, 7)
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    torch.autograd.grad(grad, x, torch.ones_like(grad))
    # The second pass also goes back through what was saved, which is a first-order backward.
    assert launches == [name, f"{name}_backward", f"{name}_double_backward", f"{name}_backward"]


def test_complex_gradient(route: Route) -> None:
    """Complex input, which no kernel takes, is differentiated as PyTorch does, in forward mode, too."""
    x = torch.randn(4, dtype=torch.complex128, device=route.device, requires_grad=True)
    assert gradcheck(SigmoidFunction.apply, x, check_forward_ad=True)
    assert gradgradcheck(SigmoidFunction.apply, x, check_fwd_over_rev=True)
