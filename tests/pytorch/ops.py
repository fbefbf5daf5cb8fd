"""What PyTorch's subsystems are tried with: the family's table of ops and a row for σ; and σ in each of its forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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

every_op = pytest.mark.parametrize("op", [SIGMOID, *MEMBERS], ids=lambda op: op.name)

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": sigmoid,
    "Sigmoid": Sigmoid(),
    "SigmoidFunction": SigmoidFunction.apply,
    "sigmoid_": lambda x: sigmoid_(x.clone()),
}
every_form = pytest.mark.parametrize("form", FORMS)
