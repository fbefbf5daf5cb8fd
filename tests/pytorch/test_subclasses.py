"""Tensor subclasses keep their type, are asked through ``__torch_function__``, and take no kernel."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sigmoid_op import Sigmoid, sigmoid_
from sigmoid_op.override import enable
from tests.conftest import Route
from tests.members import Member
from tests.pytorch.ops import every_op


class _Tagged(Tensor):
    """Keeps its type and notes the functions applied to it."""

    seen: list[object]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def seen() -> Iterator[list[object]]:
    _Tagged.seen = []
    yield _Tagged.seen
    del _Tagged.seen


@every_op
@pytest.mark.parametrize("tagged", [0, -1], ids=["first", "last"])
def test_among_the_operands(route: Route, launches: list[str], seen: list[object], op: Member, tagged: int) -> None:
    """One subclass among the operands makes the result one, and sees the functions of PyTorch's form."""
    operands = list(op.operands("matrix", torch.float64, route.device))
    exact = op.truth(*operands)
    operands[tagged] = operands[tagged].as_subclass(_Tagged)
    out = op.ours(*operands)
    ours = list(seen)
    seen.clear()
    op.theirs(*operands)
    assert type(out) is _Tagged
    assert ours[-1] == seen[-1]
    assert launches == []
    torch.testing.assert_close(out.as_subclass(Tensor), exact, check_device=False)


def test_in_place(route: Route, launches: list[str], seen: list[object]) -> None:
    """``sigmoid_`` is ``torch.sigmoid_`` of a subclass, and changes that very tensor."""
    x = torch.zeros(5, device=route.device).as_subclass(_Tagged)
    assert sigmoid_(x) is x
    assert seen == [torch.sigmoid_]
    assert launches == []
    assert bool((x.as_subclass(Tensor) == 0.5).all())


def test_under_enable(kernel_route: Route, seen: list[object]) -> None:
    """So it is below ``enable()``, and for modules."""
    x = torch.linspace(-3, 3, 5, device=kernel_route.device).as_subclass(_Tagged)
    with enable():
        for function in (torch.sigmoid, Sigmoid()):
            seen.clear()
            assert type(function(x)) is _Tagged
            assert torch.sigmoid in seen
