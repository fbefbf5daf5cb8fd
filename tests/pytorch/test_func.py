"""The transforms of torch.func and forward-mode differentiation pass through σ, kernels or not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from sigmoid_op import Sigmoid, SigmoidFunction, dispatch, sigmoid, sigmoid_
from tests.conftest import Route

Unary = Callable[[Tensor], Tensor]

# ``sigmoid`` itself is PyTorch's under a transform, which test_transforms.py checks.
FUNCTIONS: dict[str, Unary] = {
    "SigmoidFunction": SigmoidFunction.apply,
    "exact_grad": partial(sigmoid, exact_grad=True),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def _input(route: Route, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(shape, dtype=torch.float64, generator=generator)).to(route.device)


def _derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """σ, σ', σ'' and σ''' in closed form, from exponentials alone."""
    s = 1 / (1 + torch.exp(-x.detach()))
    first = s * (1 - s)
    return s, first, first * (1 - 2 * s), first * (1 - 6 * s + 6 * s * s)


@every_function
@pytest.mark.parametrize(("in_dim", "out_dim"), [(0, 0), (1, -1), (2, 0), (-1, 1)])
def test_vmap(route: Route, function: Unary, in_dim: int, out_dim: int) -> None:
    """Any input and output dimension can be the batch, in chunks too."""
    x = _input(route, 2, 3, 4)
    expected = _derivatives(x.movedim(in_dim, 0))[0].movedim(0, out_dim)
    torch.testing.assert_close(vmap(function, in_dims=in_dim, out_dims=out_dim)(x), expected)
    torch.testing.assert_close(vmap(function, in_dims=in_dim, out_dims=out_dim, chunk_size=1)(x), expected)


@every_function
def test_nested_vmap(route: Route, function: Unary) -> None:
    """vmap of vmap, with an argument that is not batched, and over grad: gradients per sample, and per row."""
    x = _input(route, 2, 3, 4)
    out = vmap(vmap(function, in_dims=1), in_dims=1)(x)
    torch.testing.assert_close(out, _derivatives(x.permute(1, 2, 0))[0])
    gated = vmap(lambda shared, y: function(shared) * y, in_dims=(None, 0))(x[0], x)
    torch.testing.assert_close(gated, _derivatives(x[0])[0] * x)
    slope = grad(lambda row: function(row).sum())
    for slopes in (vmap(slope)(x), vmap(vmap(slope), in_dims=1, out_dims=1)(x)):
        torch.testing.assert_close(slopes, _derivatives(x)[1])


# PyTorch's own constant folding in linearize warns about a node of its own.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@every_function
def test_first_order_transforms(route: Route, function: Unary) -> None:
    """grad, vjp, jvp, linearize, jacrev and jacfwd all give σ'."""
    x, v = _input(route, 6), _input(route, 7)[1:]
    s, first, _, _ = _derivatives(x)
    torch.testing.assert_close(grad(lambda x: function(x).sum())(x), first)
    out, pull_back, *_ = vjp(function, x)
    torch.testing.assert_close((out, *pull_back(v)), (s, first * v))
    torch.testing.assert_close(jvp(function, (x,), (v,)), (s, first * v))
    out, push_forward = linearize(function, x)
    torch.testing.assert_close((out, push_forward(v)), (s, first * v))
    torch.testing.assert_close(jacrev(function)(x), torch.diag(first))
    torch.testing.assert_close(jacfwd(function)(x), torch.diag(first))


@every_function
def test_higher_order_transforms(route: Route, function: Unary) -> None:
    """Forward over reverse, reverse over forward, reverse over reverse and hessian give σ''; one more grad, σ'''."""
    x, v = _input(route, 6), _input(route, 7)[1:]
    _, first, second, third = _derivatives(x)
    slope = grad(lambda x: function(x).sum())
    torch.testing.assert_close(jvp(slope, (x,), (v,)), (first, second * v))
    torch.testing.assert_close(grad(lambda x: jvp(function, (x,), (v,))[1].sum())(x), second * v)
    torch.testing.assert_close(grad(lambda x: slope(x).sum())(x), second)
    torch.testing.assert_close(hessian(lambda x: function(x).sum())(x), torch.diag(second))
    torch.testing.assert_close(jacfwd(jacfwd(lambda x: function(x).sum()))(x), torch.diag(second))
    torch.testing.assert_close(grad(lambda x: grad(lambda x: slope(x).sum())(x).sum())(x), third)


@every_function
def test_vectorized_jacobian(route: Route, function: Unary) -> None:
    """The older ``torch.autograd.functional.jacobian`` batches both modes; ``create_graph`` differentiates further."""
    x = _input(route, 6).requires_grad_()
    _, slope, curvature, _ = _derivatives(x)
    jacobian = partial(torch.autograd.functional.jacobian, vectorize=True)
    torch.testing.assert_close(jacobian(function, x, strategy="forward-mode"), torch.diag(slope))
    torch.testing.assert_close(jacobian(function, x), torch.diag(slope))
    of_product = jacobian(lambda x: x * function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(of_product.diagonal().sum(), x)
    torch.testing.assert_close(second, 2 * slope + x.detach() * curvature)


def test_functional_call(route: Route) -> None:
    """A model with ``Sigmoid`` called with other parameters, batched over samples: gradients per sample."""
    model = nn.Sequential(nn.Linear(4, 3), Sigmoid()).to(route.device, torch.float64)
    weights = {name: _input(route, *parameter.shape) for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, weights, (x,))
        return out.sum()

    x = _input(route, 5, 4)
    grads = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    slope = _derivatives(x @ weights["0.weight"].T + weights["0.bias"])[1]
    torch.testing.assert_close(grads, {"0.weight": slope[:, :, None] * x[:, None, :], "0.bias": slope})


def test_functionalize(route: Route) -> None:
    """``sigmoid_`` on a view is rewritten out of place by functionalize, and the base sees the result."""
    x = _input(route, 4, 3)

    def second_row(x: Tensor) -> Tensor:
        x = x.clone()
        sigmoid_(x[1])
        return x

    expected = x.clone()
    expected[1] = _derivatives(x[1])[0]
    torch.testing.assert_close(functionalize(second_row)(x), expected)


def _dual_result(function: Unary, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor | None]:
    with forward_ad.dual_level():
        out, out_tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
        return out, out_tangent


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("function", [*FUNCTIONS.values(), lambda x: sigmoid_(x.clone())], ids=[*FUNCTIONS, "sigmoid_"])
def test_dual_numbers(route: Route, function: Unary, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    """A tangent passes through, also where no gradient is recorded."""
    x, v = _input(route, 6), _input(route, 7)[1:]
    with mode():
        out, tangent = _dual_result(function, x, v)
    s, first, _, _ = _derivatives(x)
    torch.testing.assert_close((out, tangent), (s, first * v))


def test_the_tangent_check_can_fail(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel launched past autograd drops the tangent, which ``test_dual_numbers`` would see."""
    monkeypatch.setattr(dispatch, "_has_tangent", lambda x: False)
    x = _input(kernel_route, 6)
    assert _dual_result(sigmoid, x, torch.ones_like(x))[1] is None


@every_function
def test_forward_over_reverse_dual(route: Route, function: Unary) -> None:
    """The gradient of a dual number carries the tangent σ''·v."""
    x, v = _input(route, 6).requires_grad_(), _input(route, 7)[1:]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        (grad_x,) = torch.autograd.grad(function(dual).sum(), dual, create_graph=True)
        slope, curvature = forward_ad.unpack_dual(grad_x)
    torch.testing.assert_close((slope, curvature), (_derivatives(x)[1], _derivatives(x)[2] * v))
