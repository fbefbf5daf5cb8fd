"""What PyTorch's subsystems are tried with: the family's table of ops, a row for σ, and one for each form of it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigmoid_op import Sigmoid, SigmoidFunction, sigmoid, sigmoid_
from tests.members import MEMBERS, Member

SIGMOID = Member(
    "sigmoid",
    sigmoid,
    Sigmoid,
    torch.sigmoid,
    ("sigmoid", "sigmoid_backward"),
    {"matrix": ((3, 6),)},
    lambda m, x: m.sigmoid(x),
    lambda m, grad, x: ((grad * m.sigmoid(x) * m.sigmoid(-x),),),
)
FUNCTION = replace(SIGMOID, name="SigmoidFunction", ours=SigmoidFunction.apply)
EXACT = replace(SIGMOID, name="exact_grad", ours=partial(sigmoid, exact_grad=True))
IN_PLACE = replace(
    SIGMOID, name="sigmoid_", ours=lambda x: sigmoid_(x.clone()), theirs=lambda x: torch.sigmoid_(x.clone())
)
# The forms of σ that a compiler and an exporter see as ``aten.sigmoid``.
FORMS = [SIGMOID, replace(SIGMOID, name="Sigmoid", ours=Sigmoid()), FUNCTION, IN_PLACE]


def each(*ops: Member) -> pytest.MarkDecorator:
    """Once for each of these."""
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


every_op = each(SIGMOID, *MEMBERS)
every_op_and_form = each(*FORMS, *MEMBERS)


class Watch(TorchDispatchMode):
    """Keeps the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func)
        return func(*args, **(kwargs or {}))
