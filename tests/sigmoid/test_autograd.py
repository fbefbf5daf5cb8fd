"""The corners of autograd: hooks, retained graphs, offloading, anomaly and inference mode, threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from sigmoid_op import Sigmoid, SigmoidFunction, dispatch, sigmoid
from tests.conftest import Route
from tests.models import Cut

Unary = Callable[[Tensor], Tensor]

# On the kernel routes ``sigmoid`` is SigmoidFunction; on the other it is PyTorch's own.
every_function = pytest.mark.parametrize(
    "function", [SigmoidFunction.apply, partial(sigmoid, exact_grad=True)], ids=["SigmoidFunction", "exact_grad"]
)


def _leaf(route: Route, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(route.device).requires_grad_()


def _slope(x: Tensor) -> Tensor:
    """σ'(x), from exponentials alone."""
    x = x.detach()
    return torch.exp(-x) / (1 + torch.exp(-x)) ** 2


@every_function
def test_hooks(route: Route, function: Unary) -> None:
    """Hooks on input, result, node and accumulation all run in order; what a tensor's hook returns is taken."""
    leaf, events, seen = _leaf(route, 5), list[str](), list[Tensor]()
    x = leaf * 1
    x.register_hook(seen.append)
    out = function(x)
    out.register_hook(lambda grad: 3 * grad)
    assert out.grad_fn is not None
    out.grad_fn.register_prehook(lambda grads: events.append("before"))
    out.grad_fn.register_hook(lambda grad_inputs, grad_outputs: events.append("after"))
    leaf.register_post_accumulate_grad_hook(lambda x: events.append("accumulated"))
    out.sum().backward()
    torch.testing.assert_close([*seen, leaf.grad], [3 * _slope(leaf)] * 2)
    assert events == ["before", "after", "accumulated"]


def test_module_hooks(route: Route) -> None:
    """Forward, pre-forward and full backward hooks on a ``Sigmoid`` all run, with its tensors."""
    module = Sigmoid()
    seen: dict[str, Any] = {}
    module.register_forward_pre_hook(lambda module, args: seen.update(args=args))
    module.register_forward_hook(lambda module, args, out: seen.update(out=out))
    module.register_full_backward_pre_hook(lambda module, grad_out: seen.update(grad_out=grad_out))
    module.register_full_backward_hook(lambda module, grad_in, grad_out: seen.update(grad_in=grad_in))
    x = _leaf(route, 5)
    out = module(x)
    out.sum().backward()
    torch.testing.assert_close(seen["args"][0], x)
    torch.testing.assert_close(seen["out"], out)
    torch.testing.assert_close(seen["grad_out"], (torch.ones_like(out),))
    torch.testing.assert_close(seen["grad_in"], (_slope(x),))


@every_function
def test_retain_graph(route: Route, function: Unary) -> None:
    """A retained graph gives the same gradient again; a freed one raises."""
    x = _leaf(route, 5)
    out = function(x)
    out.sum().backward(retain_graph=True)
    out.sum().backward()
    torch.testing.assert_close(x.grad, 2 * _slope(x))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


@every_function
def test_offloading_to_cpu(route: Route, function: Unary) -> None:
    """Saved tensors that spend the time until backward on the CPU give the same gradients, first and second."""
    x = _leaf(route, 5)
    with save_on_cpu(pin_memory=route.device == "cuda"):
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    s = 1 / (1 + torch.exp(-x.detach()))
    torch.testing.assert_close([first.detach(), second], [_slope(x), _slope(x) * (1 - 2 * s)])


# Anomaly mode announces itself.
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@every_function
def test_anomaly_mode(route: Route, function: Unary) -> None:
    """It finds nothing to complain of in a good gradient, and names the backward that made a NaN."""
    with torch.autograd.detect_anomaly():
        x = _leaf(route, 5)
        function(x).sum().backward()
        torch.testing.assert_close(x.grad, _slope(x))
        bad = function(x)
        with (
            pytest.warns(UserWarning, match="Error detected in .*Sigmoid"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            bad.backward(torch.full_like(bad, torch.nan))


@every_function
def test_inference_mode(route: Route, function: Unary) -> None:
    """Inside, nothing is recorded; a tensor made inside cannot be saved for a gradient outside, as in torch."""
    x = _leaf(route, 5)
    with torch.inference_mode():
        out = function(x)
        made_inside = torch.ones(5, device=route.device)
    assert out.is_inference()
    assert not out.requires_grad
    torch.testing.assert_close(function(made_inside), 1 / (1 + torch.exp(-made_inside)))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        function(x) * made_inside


@pytest.mark.parametrize("exact_grad", [False, True])
def test_an_undefined_gradient_stays_undefined(route: Route, exact_grad: bool) -> None:
    """What no gradient reaches has none, rather than zeros, with which an optimizer would decay its weights."""
    x = _leaf(route, 5)
    Cut.apply(sigmoid(x, exact_grad=exact_grad)).sum().backward()
    assert x.grad is None


@pytest.fixture
def _one_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter replaces parts of ``triton.language`` while a kernel runs, so it takes one at a time."""
    if dispatch.INTERPRETED:
        from sigmoid_op.kernels import pointwise
        from sigmoid_op.kernels import sigmoid as launchers

        lock, launch = threading.Lock(), pointwise.launch

        def launch_alone(*args: Any) -> None:
            with lock:
                launch(*args)

        monkeypatch.setattr(launchers, "launch", launch_alone)


@pytest.mark.usefixtures("_one_interpreter")
@every_function
def test_backward_in_several_threads(route: Route, function: Unary) -> None:
    """One graph, differentiated by four threads at once: each gets the gradient."""
    x = _leaf(route, 5)
    out, start = function(x), threading.Barrier(4)

    def differentiate(_: int) -> Tensor:
        start.wait(timeout=30)
        return torch.autograd.grad(out.sum(), x, retain_graph=True)[0]

    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(differentiate, range(4))), [_slope(x)] * 4)


@pytest.mark.usefixtures("_one_interpreter")
@every_function
def test_training_in_several_threads(route: Route, function: Unary) -> None:
    """Replicas in threads of their own, as in DataParallel: forward and backward at once, one dtype and size each."""
    start = threading.Barrier(8)

    def replica(index: int) -> tuple[Tensor, Tensor]:
        dtype = (torch.float32, torch.float64)[index % 2]
        x = _leaf(route, 3, 100 + index, seed=index).detach().to(dtype).requires_grad_()
        start.wait(timeout=30)
        grads = [torch.autograd.grad(function(x).sum(), x)[0] for _ in range(2)]
        return x, grads[-1]

    with ThreadPoolExecutor(8) as pool:
        for x, grad in pool.map(replica, range(8)):
            torch.testing.assert_close(grad, _slope(x))


@pytest.mark.gpu
def test_data_parallel() -> None:
    """``nn.DataParallel`` over every GPU there is gives the gradients of one."""
    module = nn.DataParallel(nn.Sequential(nn.Linear(4, 3), Sigmoid())).cuda().double()
    x = torch.randn(6, 4, dtype=torch.float64, device="cuda")
    module(x).sum().backward()
    linear = module.module[0]
    torch.testing.assert_close(linear.weight.grad, _slope(linear(x)).T @ x)
