"""The gradients are those of σ: checked against finite differences in float64, once and twice, on every route."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function, gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from sigmoid_op import SigmoidFunction, sigmoid
from tests.conftest import Route

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def _input(route: Route, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    return x.to(route.device).requires_grad_()


@pytest.mark.parametrize("function", [SigmoidFunction.apply, sigmoid], ids=["SigmoidFunction", "sigmoid"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 2)], ids=str)
def test_first_and_second_derivative(
    route: Route, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """gradcheck and gradgradcheck hold, undefined gradients included."""
    x = _input(route, *shape)
    assert gradcheck(function, x, check_undefined_grad=True)
    assert gradgradcheck(function, x, check_undefined_grad=True)


def test_kernels_compute_each_order(kernel_route: Route, launches: list[str]) -> None:
    """Forward, backward and double backward each run their fused kernel, and no other."""
    x = _input(kernel_route, 7)
    out = SigmoidFunction.apply(x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)
    torch.autograd.grad(grad, x, torch.ones_like(grad))
    # The second pass also goes back through out, which is a first-order backward.
    assert launches == ["sigmoid", "sigmoid_backward", "sigmoid_double_backward", "sigmoid_backward"]


def test_third_derivative(route: Route) -> None:
    """Differentiating further works: σ''' = σ'(1 - 6σ + 6σ²)."""
    x = _input(route, 9)
    derivative = SigmoidFunction.apply(x)
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), x, create_graph=True)
    s = torch.sigmoid(x.detach())
    torch.testing.assert_close(derivative, s * (1 - s) * (1 - 6 * s + 6 * s * s))


def test_complex_gradient(route: Route) -> None:
    """Complex input, which no kernel takes, is differentiated as PyTorch does, in forward mode, too."""
    x = torch.randn(4, dtype=torch.complex128, device=route.device, requires_grad=True)
    assert gradcheck(SigmoidFunction.apply, x, check_forward_ad=True)
    assert gradgradcheck(SigmoidFunction.apply, x, check_fwd_over_rev=True)


def test_gradcheck_catches_a_wrong_gradient() -> None:
    """The check can fail: a backward that forgets the factor (1 - out) does not pass."""

    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            out = torch.sigmoid(x)
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor) -> Tensor:
            (out,) = ctx.saved_tensors
            result: Tensor = grad_out * out
            return result

    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradcheck(Wrong.apply, torch.zeros(3, dtype=torch.float64, requires_grad=True))
