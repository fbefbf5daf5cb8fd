"""Tensor subclasses keep their type, and are asked through ``__torch_function__``."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sigmoid_op import Sigmoid, sigmoid, sigmoid_
from sigmoid_op.override import enable
from tests.conftest import Route
from tests.ulp import true_sigmoid


class _Tagged(Tensor):
    """Keeps its type and notes the functions applied to it."""

    seen: list[object]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def seen() -> Iterator[list[object]]:
    _Tagged.seen = []
    yield _Tagged.seen
    del _Tagged.seen


@pytest.mark.parametrize(("ours", "theirs"), [(sigmoid, torch.sigmoid), (sigmoid_, torch.sigmoid_)])
def test_subclasses(
    route: Route, launches: list[str], seen: list[object], ours: Callable[..., Tensor], theirs: Callable[..., Tensor]
) -> None:
    """A subclass keeps its type, and its ``__torch_function__`` is called with torch's function."""
    x = torch.linspace(-3, 3, 5, device=route.device).as_subclass(_Tagged)
    exact = true_sigmoid(x.as_subclass(Tensor))
    out = ours(x)
    assert type(out) is _Tagged
    assert seen == [theirs]
    assert launches == []
    torch.testing.assert_close(out.as_subclass(Tensor).cpu().double(), exact, rtol=0, atol=1e-6)


def test_subclasses_under_enable(kernel_route: Route, seen: list[object]) -> None:
    """So it is below ``enable()``, and for modules."""
    x = torch.linspace(-3, 3, 5, device=kernel_route.device).as_subclass(_Tagged)
    with enable():
        for function in (torch.sigmoid, Sigmoid()):
            seen.clear()
            assert type(function(x)) is _Tagged
            assert torch.sigmoid in seen
