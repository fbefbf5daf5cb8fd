"""``exact_grad=True``: the gradient is the true derivative to a few ulps, saturated or not, in every autograd mode."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from bench.reference import derivative64
from sigmoid_op import Sigmoid, sigmoid
from tests.conftest import Route, replace_launches
from tests.ulp import EXACT_GRADIENT_ULPS, assert_within_ulps, every_dtype, sample, true_derivative

pytestmark = [
    pytest.mark.usefixtures("poisoned_empty"),
    # Dynamo makes an instance of Function itself, to trace any of its subclasses.
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]

# By then out is 1 and the default's gradient exactly 0, on every route; at 0.95 of it neither is.
DEAD_FROM = {torch.bfloat16: 6.25, torch.float16: 8.3203125, torch.float32: 17.4}

exact_sigmoid = partial(sigmoid, exact_grad=True)


def _gradient(x: Tensor, *, exact_grad: bool = True) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(sigmoid(leaf, exact_grad=exact_grad).sum(), leaf)
    return gradient


@every_dtype
def test_gradient_is_the_true_derivative(route: Route, dtype: torch.dtype) -> None:
    """Within 2 ulp in 16 bits and 3 in float32, for every 16-bit number and a dense sample of the wider ones.

    It has the same bits at x and -x; at ±inf it is 0, and NaN at NaN alone.
    """
    x = sample(dtype)
    derivative = true_derivative(x)
    normal = derivative >= torch.finfo(dtype).tiny
    gradient = _gradient(x.to(route.device)).cpu()
    assert_within_ulps(gradient[normal], derivative[normal], EXACT_GRADIENT_ULPS[dtype])
    torch.testing.assert_close(_gradient(-x.to(route.device)).cpu(), gradient, rtol=0, atol=0, equal_nan=True)
    assert (gradient[x.isinf()] == 0).all()
    assert torch.equal(gradient.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", DEAD_FROM, ids=str)
def test_default_is_dead_where_the_exact_one_lives(route: Route, dtype: torch.dtype) -> None:
    """From the stated x on the default's gradient is exactly 0; the exact one is not: so the test above can fail."""
    x = torch.linspace(DEAD_FROM[dtype], 1.9 * DEAD_FROM[dtype], 100, dtype=dtype, device=route.device)
    assert (_gradient(x, exact_grad=False) == 0).all()
    assert (_gradient(x) > 0).all()
    alive = torch.tensor([0.95 * DEAD_FROM[dtype]], dtype=dtype, device=route.device)
    assert _gradient(alive, exact_grad=False) > 0


@every_dtype
def test_result_is_that_of_the_default(route: Route, dtype: torch.dtype) -> None:
    """Only the gradient differs: the results are equal bit for bit."""
    x = torch.linspace(-110, 110, 5_001, dtype=dtype, device=route.device)
    assert torch.equal(exact_sigmoid(x.clone().requires_grad_()), sigmoid(x))


def test_the_gradient_of_a_sum_stays_one_number(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """No zeros are made for the gradient of t, nor added: the kernel is given the one number that sum() expands."""
    n_scalars: list[int] = []
    replace_launches(monkeypatch, lambda kernel, programs, args, *_: n_scalars.append(len(args[0])))
    _gradient(torch.ones(5, device=kernel_route.device))
    assert n_scalars == [0, 1]


@every_dtype
def test_second_derivative_has_the_sign_of_minus_x(route: Route, dtype: torch.dtype) -> None:
    """σ'' is negative for x > 0 and positive for x < 0, and close to the true value, saturated values included."""
    x = torch.tensor([-9.0, -7.0, -1.0, 1.0, 7.0, 9.0], dtype=dtype, device=route.device, requires_grad=True)
    (first,) = torch.autograd.grad(exact_sigmoid(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    x64 = x.detach().cpu().double()
    true = -derivative64(x64) * torch.tanh(x64 / 2)
    torch.testing.assert_close(second.cpu().double(), true, rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_gradient_is_exact(route: Route, dtype: torch.dtype) -> None:
    """torch.compile takes it in one graph, with dynamic sizes, and its gradient lives where the default's is dead."""
    compiled = torch.compile(exact_sigmoid, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (7, 12):
        x = torch.linspace(-20, 20, n, dtype=dtype, device=route.device, requires_grad=True)
        (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
        # In PyTorch's operators, whose float32 σ and product each round a little worse than the kernels.
        assert_within_ulps(gradient.cpu(), derivative64(x.cpu()), EXACT_GRADIENT_ULPS[dtype] + 1)


@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_fuses_it(route: Route) -> None:
    """Inductor compiles forward and backward to a kernel each; the gradient is still the true derivative."""
    x = torch.linspace(-16, 16, 64, device=route.device, requires_grad=True)

    def step() -> Tensor:
        (gradient,) = torch.autograd.grad(torch.compile(exact_sigmoid, fullgraph=True)(x).sum(), x)
        return gradient

    gradient, code = run_and_get_code(step)
    assert len(code) == 2
    # Inductor's float32 exponential on a GPU rounds x·log2 e once: a relative error of 1e-6 at x = 16.
    torch.testing.assert_close(gradient.cpu().double(), derivative64(x.cpu()), rtol=4e-6, atol=0)


def test_module_keeps_the_choice(route: Route) -> None:
    """repr, pickle, deepcopy and an FX trace of Sigmoid(exact_grad=True) keep it; the default says nothing of it."""
    module = Sigmoid(exact_grad=True)
    assert repr(module) == "Sigmoid(exact_grad=True)"
    assert repr(Sigmoid()) == "Sigmoid()"
    traced = torch.fx.symbolic_trace(nn.Sequential(module))
    x = torch.full((2,), 9.0, dtype=torch.bfloat16, device=route.device, requires_grad=True)
    for twin in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module), traced):
        (gradient,) = torch.autograd.grad(twin(x).sum(), x)
        assert (gradient > 0).all()


def test_torchscript_has_the_result_and_pytorchs_gradient(route: Route) -> None:
    """A scripted and a traced Sigmoid(exact_grad=True) compute σ; their gradient is that of torch.sigmoid."""
    module = Sigmoid(exact_grad=True)
    x = torch.tensor([-2.0, 0.5, 3.0], device=route.device, requires_grad=True)
    want = torch.autograd.grad(torch.sigmoid(x).sum(), x)
    for program in (torch.jit.script(module), torch.jit.trace(module, x)):
        torch.testing.assert_close(program(x), torch.sigmoid(x))
        torch.testing.assert_close(torch.autograd.grad(program(x).sum(), x), want)
        assert "aten::sigmoid" in str(program.inlined_graph)


def test_gradient_in_another_layout(route: Route) -> None:
    """A grad_out that is expanded, transposed or strided gives the same gradient as a contiguous one."""
    x = torch.linspace(-9, 9, 24, device=route.device).view(4, 6).requires_grad_()
    out = exact_sigmoid(x)
    for grad_out in (torch.ones(1, device=route.device).expand(4, 6), torch.rand(6, 4, device=route.device).t()):
        (gradient,) = torch.autograd.grad(out, x, grad_out, retain_graph=True)
        exact = grad_out.cpu().double() * derivative64(x.cpu())
        torch.testing.assert_close(gradient.cpu().double(), exact, rtol=1e-6, atol=0)
