"""The table of ops that PyTorch's subsystems are tried with: the family's, and σ itself."""

import pytest
import torch

from sigmoid_op import Sigmoid, sigmoid
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
