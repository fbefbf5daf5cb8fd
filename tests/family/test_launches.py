"""What a call goes through: no launch more than it needs, no Function that it does not need, nothing compiled twice."""

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from bench.ops import OPS, Op
from sigmoid_op import dispatch
from sigmoid_op.ops import bce, focal, gate, glu, logsigmoid, sigmoid, silu, swiglu
from tests.conftest import Route, kernels_from
from tests.fake_kernel import FakeKernel

every_row = pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)


def _operands(row: Op, n_elements: int, device: str) -> list[Tensor]:
    operands = row.operands(n_elements, torch.float32, torch.device(device))
    return [x.requires_grad_(i < row.n_gradients) for i, x in enumerate(operands)]


def _run(row: Op, operands: list[Tensor], count: Callable[[], int]) -> tuple[int, int]:
    """What ``count`` says of forward and of backward."""
    before = count()
    out = row.ours(*operands)
    grad_out = torch.ones_like(out)
    middle = count()
    torch.autograd.grad(out, operands[: row.n_gradients], grad_out)
    return middle - before, count() - middle


# In channels_last images the gate is summed over rows, of which a tile has 32; the mean over classes is divided by a
# count that is made on the device.
IN_ONE_TILE = [row for row in OPS if "channels_last" not in row.name and "classes" not in row.name]


@pytest.mark.parametrize("row", IN_ONE_TILE, ids=lambda row: row.name)
def test_one_tile_takes_one_launch_each_way(kernel_route: Route, launches: list[str], row: Op) -> None:
    """Sums included: of 1024 elements, all in one tile. tests/family/test_traffic.py counts those of many tiles."""
    assert _run(row, _operands(row, 1024, kernel_route.device), lambda: len(launches)) == (1, 1)


@every_row
def test_another_length_compiles_nothing(jit: FakeKernel, kernel_route: Route, row: Op) -> None:
    """A call of a known layout with another number of rows finds its kernels, forward and backward."""
    if kernel_route.device == "cuda":
        pytest.skip("the fake kernel stands for CUDA's, on CPU tensors")
    width = 2**18
    _run(row, _operands(row, 4 * width, "cpu"), lambda: 0)
    compiled = len(jit.launched)
    assert compiled
    for n_rows in (3, 5, 7):
        _run(row, _operands(row, n_rows * width, "cpu"), lambda: 0)
    assert len(jit.launched) == compiled


@every_row
def test_each_op_has_a_threshold_of_its_own(
    kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch, row: Op
) -> None:
    """It asks for the one of its name, and for no other; a small gate does not keep a large x from the kernel."""
    operands = _operands(row, 1024, kernel_route.device)
    size = operands[0].numel()
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(2**20) | {row.key: size})
    row.ours(*operands)
    assert launches
    launches.clear()
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(1) | {row.key: size + 1})
    row.ours(*operands)
    assert launches == []


FUNCTIONS = [
    sigmoid.SigmoidFunction, sigmoid.SigmoidBackwardFunction, silu.SiLUFunction, glu.GLUFunction,
    logsigmoid.LogSigmoidFunction, swiglu.SwiGLUFunction, swiglu.PackedSwiGLUFunction, gate.SigmoidGateFunction,
    bce.BCEWithLogitsFunction, focal.SigmoidFocalLossFunction,
]  # fmt: skip


@every_row
def test_functions_taken(kernel_route: Route, monkeypatch: pytest.MonkeyPatch, row: Op) -> None:
    """None without gradients, one with them, none in backward; and nobody inspects a signature on the way."""
    watched: dict[Any, Mock] = {function: Mock(wraps=function.apply) for function in FUNCTIONS}
    for function, apply in watched.items():
        monkeypatch.setattr(function, "apply", apply)
    operands = _operands(row, 1024, kernel_route.device)
    _run(row, operands, lambda: 0)  # compiles, or prepares to interpret
    watched[inspect] = Mock(wraps=inspect.signature)
    monkeypatch.setattr(inspect, "signature", watched[inspect])

    def taken() -> int:
        return sum(call.call_count for call in watched.values())

    before = taken()
    with torch.no_grad():
        row.ours(*operands)
    assert taken() == before
    assert _run(row, operands, taken) == (1, 0)
