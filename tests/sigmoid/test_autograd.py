"""The corners of autograd: hooks, offloading, anomaly and inference mode, threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from sigmoid_op import dispatch
from sigmoid_op.kernels.launch import launch
from tests.conftest import Route, replace_launches
from tests.models import Cut
from tests.sigmoid.test_gradients import Unary, every_function, leaf


def _slope(x: Tensor) -> Tensor:
    """σ'(x), from exponentials alone."""
    x = x.detach()
    return torch.exp(-x) / (1 + torch.exp(-x)) ** 2


@every_function
def test_hooks(route: Route, function: Unary) -> None:
    """Hooks on input, result, node and accumulation all run in order; what a tensor's hook returns is taken."""
    x, events, seen = leaf(route, 5), list[str](), list[Tensor]()
    copy = x * 1
    copy.register_hook(seen.append)
    out = function(copy)
    out.register_hook(lambda grad: 3 * grad)
    assert out.grad_fn is not None
    out.grad_fn.register_prehook(lambda grads: events.append("before"))
    out.grad_fn.register_hook(lambda grad_inputs, grad_outputs: events.append("after"))
    x.register_post_accumulate_grad_hook(lambda x: events.append("accumulated"))
    out.sum().backward()
    torch.testing.assert_close([*seen, x.grad], [3 * _slope(x)] * 2)
    assert events == ["before", "after", "accumulated"]


@every_function
def test_offloading_to_cpu(route: Route, function: Unary) -> None:
    """Saved tensors that spend the time until backward on the CPU give the same gradients, first and second."""
    x = leaf(route, 5)
    with save_on_cpu(pin_memory=route.device == "cuda"):
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    s = 1 / (1 + torch.exp(-x.detach()))
    torch.testing.assert_close([first.detach(), second], [_slope(x), _slope(x) * (1 - 2 * s)])


# Anomaly mode announces itself.
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@every_function
def test_anomaly_mode(route: Route, function: Unary) -> None:
    """It names the backward that made a NaN."""
    with torch.autograd.detect_anomaly():
        out = function(leaf(route, 5))
        with (
            pytest.warns(UserWarning, match="Error detected in .*Sigmoid"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            out.backward(torch.full_like(out, torch.nan))


@every_function
def test_inference_mode(route: Route, function: Unary) -> None:
    """Inside, nothing is recorded; a tensor made inside cannot be saved for a gradient outside, as in torch."""
    x = leaf(route, 5)
    with torch.inference_mode():
        out = function(x)
        made_inside = torch.ones(5, device=route.device)
    assert out.is_inference()
    assert not out.requires_grad
    torch.testing.assert_close(function(made_inside), 1 / (1 + torch.exp(-made_inside)))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        function(x) * made_inside


@every_function
def test_an_undefined_gradient_stays_undefined(route: Route, function: Unary) -> None:
    """What no gradient reaches has none, rather than zeros, with which an optimizer would decay its weights."""
    x = leaf(route, 5)
    Cut.apply(function(x)).sum().backward()
    assert x.grad is None


def _interpret_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter replaces parts of ``triton.language`` while a kernel runs."""
    lock = threading.Lock()

    def launch_alone(*args: Any) -> None:
        with lock:
            launch(*args)

    replace_launches(monkeypatch, launch_alone)


@every_function
def test_threads(route: Route, monkeypatch: pytest.MonkeyPatch, function: Unary) -> None:
    """One graph, differentiated by eight threads at once, each of which then trains a replica of its own.

    As in DataParallel, forward and backward run at once, of one dtype and size each.
    """
    if dispatch.INTERPRETED:
        _interpret_one_at_a_time(monkeypatch)
    shared, start = leaf(route, 5), threading.Barrier(8)
    out = function(shared)

    def work(index: int) -> list[tuple[Tensor, Tensor]]:
        start.wait(timeout=30)
        (gradient,) = torch.autograd.grad(out.sum(), shared, retain_graph=True)
        x = leaf(route, 3, 100 + index, seed=index).detach().to((torch.float32, torch.float64)[index % 2])
        x.requires_grad_()
        return [(shared, gradient), *[(x, torch.autograd.grad(function(x).sum(), x)[0]) for _ in range(2)]]

    with ThreadPoolExecutor(8) as pool:
        for gradients in pool.map(work, range(8)):
            for x, gradient in gradients:
                torch.testing.assert_close(gradient, _slope(x))
