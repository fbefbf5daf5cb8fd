"""Each loss differentiated: to any order, by transforms and compilers, under checkpointing; what it keeps for that."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sigmoid_op import binary_cross_entropy_with_logits, logsigmoid, sigmoid_focal_loss
from tests.conftest import Route, formulas_of, saved_tensors
from tests.losses import WEIGHTED_BCE, classes, hard_labels, logits, rows
from tests.models import Cut

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def _soft(x: Tensor) -> Tensor:
    return hard_labels(x) * 0.7 + 0.1


def _bce(x: Tensor, **options: object) -> Tensor:
    return binary_cross_entropy_with_logits(x, _soft(x), **options)  # type: ignore[arg-type]


def _focal(x: Tensor, **options: object) -> Tensor:
    return sigmoid_focal_loss(x, _soft(x), **options)  # type: ignore[arg-type]


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": logsigmoid,
    "bce": _bce,
    "bce none": lambda x: _bce(x, reduction="none"),
    "bce weighted": lambda x: _bce(x, reduction="sum", **WEIGHTED_BCE.given(x)),
    "bce mask": lambda x: _bce(x, mask=rows(x), **WEIGHTED_BCE.given(x)),
    "bce normalizer": lambda x: _bce(x, normalizer=torch.tensor(7, device=x.device)),
    "focal": lambda x: _focal(x, reduction="mean"),
    "focal none": lambda x: _focal(x, alpha=-1, gamma=0.5),
    "focal mask": lambda x: _focal(x, alpha=0.6, gamma=1.5, reduction="mean", mask=rows(x)),
    "focal number": lambda x: _focal(x, gamma=2.2, reduction="sum", normalizer=3.0),
    "classes": lambda x: sigmoid_focal_loss(x, classes(x), reduction="mean"),
    "classes none": lambda x: sigmoid_focal_loss(x, classes(x), gamma=0.5),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@every_form
def test_derivatives(route: Route, form: Callable[[Tensor], Tensor]) -> None:
    """Gradients, and gradients of gradients, are those of finite differences; batched and forward-mode ones, too."""
    x = logits(torch.float64, route.device)
    assert gradcheck(form, x, fast_mode=True, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(form, x, fast_mode=True)
    out = form(x)
    (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    torch.testing.assert_close(again, slope)


@every_form
@pytest.mark.usefixtures("fresh_compiler")
def test_transforms(route: Route, launches: list[str], form: Callable[[Tensor], Tensor]) -> None:
    """Transforms and compilers see PyTorch's operators: nothing is launched, and the results are the same."""
    x = logits(torch.float64, route.device)
    out = form(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    launches.clear()
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(lambda x: form(x).sum())(x), slope)
    torch.testing.assert_close(torch.vmap(form)(torch.stack([x, x]))[1], out.detach())
    torch.testing.assert_close(torch.compile(form, backend="aot_eager", fullgraph=True)(x), out.detach())
    assert launches == []


@every_form
@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_checkpoint_watched_for_half_of_the_time(route: Route, form: Callable[[Tensor], Tensor], counted: str) -> None:
    """A mode on in one of the two forward passes, as that which counts operations, leaves the gradient right."""
    x = logits(torch.float64, route.device)
    (expected,) = torch.autograd.grad(form(x).sum(), x)
    with FlopCounterMode(display=False) if counted == "forward" else nullcontext():
        out: Tensor = checkpoint(form, x, use_reentrant=False)
    with FlopCounterMode(display=False) if counted == "backward" else nullcontext():
        out.sum().backward()
    torch.testing.assert_close(x.grad, expected)


@every_form
def test_an_undefined_gradient_stays_undefined(route: Route, form: Callable[[Tensor], Tensor]) -> None:
    """What no gradient reaches has none, rather than zeros."""
    x = logits(torch.float32, route.device)
    Cut.apply(form(x)).sum().backward()
    assert x.grad is None


@every_form
def test_launches_and_saved_tensors(kernel_route: Route, launches: list[str], form: Callable[[Tensor], Tensor]) -> None:
    """One launch forward, one backward, and at most one that adds up tiles.

    Backward keeps what was given, and of it nothing as large as the logits but those, labels and a mask.
    """
    x = logits(torch.float32, kernel_route.device)
    with saved_tensors() as saved:
        out = form(x)
    out.sum().backward()
    forward, backward = formulas_of(launches)
    assert (forward.endswith("_backward"), backward.endswith("_backward")) == (False, True)
    assert launches.count("sums_kernel") <= 1
    large = [tensor for tensor in saved if tensor.is_floating_point() and tensor.numel() == x.numel()]
    assert len(large) <= 2
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in large)
