"""``exact_grad=True`` is about the tensor: one that nobody differentiates has torch.sigmoid's result."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vmap

from sigmoid_op import sigmoid
from tests.conftest import Route

exact = partial(sigmoid, exact_grad=True)

# Tensors that have no gradient, or no exact one.
BYSTANDERS: dict[str, Callable[[], Tensor]] = {
    "bool": lambda: torch.tensor([True, False]),
    "integer": lambda: torch.tensor([1, -3]),
    "complex": lambda: torch.tensor([1 + 2j, -0.5j]),
    "quantized": lambda: torch.quantize_per_tensor(torch.tensor([1.0, -1.0]), 0.1, 0, torch.qint8),
    "mkldnn": lambda: torch.tensor([1.0, -1.0]).to_mkldnn(),
    "float": lambda: torch.tensor([1.0, -20.0]),
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated by PyTorch
every_bystander = pytest.mark.parametrize("name", BYSTANDERS)


def _value(x: Tensor) -> Tensor:
    return x.dequantize() if x.is_quantized else x.to_dense() if x.is_mkldnn else x


@pytest.mark.parametrize("name", [name for name in BYSTANDERS if name != "mkldnn"])  # which torch.func cannot compare
def test_beside_a_gradient(route: Route, name: str) -> None:
    """Within torch.func.grad of something else."""
    same: list[bool] = []

    def function(w: Tensor) -> Tensor:
        ours, theirs = _value(exact(BYSTANDERS[name]())), _value(torch.sigmoid(BYSTANDERS[name]()))
        same.append(bool((ours == theirs).all()))
        return w.sum()

    grad(function)(torch.ones(2, device=route.device))
    assert same == [True]


@every_bystander
def test_beside_a_tangent(route: Route, name: str) -> None:
    """Within a level of forward-mode differentiation, in which it has no tangent."""
    with forward_ad.dual_level():
        out = exact(BYSTANDERS[name]())
    assert torch.equal(_value(out), _value(torch.sigmoid(BYSTANDERS[name]())))


@pytest.mark.parametrize("name", ["bool", "integer", "complex", "float"])
def test_under_vmap(route: Route, name: str) -> None:
    """Mapped over, and not differentiated."""
    x = BYSTANDERS[name]().to(route.device)
    assert torch.equal(vmap(exact)(x), vmap(torch.sigmoid)(x))
    one = torch.ones((), device=route.device)
    expected = vmap(torch.sigmoid)(x)
    assert torch.equal(jvp(lambda w: w * vmap(exact)(x), (one,), (one,))[1], expected)


@pytest.mark.parametrize("name", ["bool", "complex"])
def test_as_an_argument_that_is_not_differentiated(route: Route, name: str) -> None:
    """A transform wraps every argument; its gradient is with respect to some."""
    x, w = BYSTANDERS[name]().to(route.device), torch.ones(2, device=route.device)
    expected = torch.sigmoid(x).real
    assert torch.equal(grad(lambda w, x: (w * exact(x).real).sum())(w, x), expected)
    assert torch.equal(vmap(grad(lambda w, x: w * exact(x).real), (0, 0))(w, x), expected)


@pytest.mark.parametrize("under", ["grad", "grad of grad", "vmap of grad", "jvp", "grad of vmap", "jvp of vmap"])
def test_who_is_differentiated_has_the_exact_gradient(route: Route, under: str) -> None:
    """At x = 20, where the gradient of torch.sigmoid in float32 is 0."""
    x = torch.full((3,), 20.0, device=route.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "grad": lambda: grad(lambda x: exact(x).sum())(x),
        "grad of grad": lambda: -torch.diagonal(hessian(lambda x: exact(x).sum())(x)),
        "vmap of grad": lambda: vmap(grad(exact))(x),
        "jvp": lambda: jvp(exact, (x,), (torch.ones_like(x),))[1],
        "grad of vmap": lambda: grad(lambda x: vmap(exact)(x).sum())(x),
        "jvp of vmap": lambda: jvp(vmap(exact), (x,), (torch.ones_like(x),))[1],
    }
    torch.testing.assert_close(ways[under]().double(), torch.full_like(x, 2.0611536e-9).double(), rtol=1e-6, atol=0)


def test_a_complex_tensor_that_is_differentiated_is_refused(route: Route) -> None:
    """With an error that says so, in every mode."""
    x = torch.ones(2, dtype=torch.complex64, device=route.device)
    with pytest.raises(TypeError, match=r"exact_grad=True needs a real dtype, got torch\.complex64"):
        exact(x.requires_grad_())
    with pytest.raises(TypeError, match="exact_grad=True needs a real dtype"):
        grad(lambda x: exact(x).real.sum())(x.detach())
