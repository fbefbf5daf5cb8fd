"""How many launches each op takes, ours and PyTorch's; and that another length compiles and binds nothing."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.reference import torchvision_focal_loss
from sigmoid_op import (
    binary_cross_entropy_with_logits,
    glu,
    logsigmoid,
    sigmoid,
    sigmoid_focal_loss,
    sigmoid_gate,
    silu,
    swiglu,
)
from sigmoid_op.ops import bce, focal, gate, shared
from sigmoid_op.ops import glu as glu_op
from sigmoid_op.ops import logsigmoid as log
from sigmoid_op.ops import sigmoid as sigmoid_op
from sigmoid_op.ops import silu as silu_op
from sigmoid_op.ops import swiglu as swiglu_op
from tests.conftest import Route
from tests.fake_kernel import FakeKernel

Op = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    """An op and PyTorch's form, a call of one tile and one of many, and the launches forward and backward."""

    ours: Op
    theirs: Op
    n_gradients: int
    small: Shapes
    large: Shapes
    of_small: tuple[int, int]
    of_large: tuple[int, int]
    of_pytorch: tuple[int, int]


def _mean(loss: Op) -> Op:
    return lambda x, y: loss(x, y, reduction="mean")


def _packed(x: Tensor) -> Tensor:
    half, up = x.chunk(2, -1)
    return F.silu(half) * up


def _gate(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


MATRIX, IMAGE = (4, 64), (2, 3, 8, 16)
ROWS = {
    "sigmoid": Row(sigmoid, torch.sigmoid, 1, (MATRIX,), ((70, 64),), (1, 1), (1, 1), (1, 1)),
    "silu": Row(silu, F.silu, 1, (MATRIX,), ((70, 64),), (1, 1), (1, 1), (1, 1)),
    "glu": Row(glu, F.glu, 1, (MATRIX,), ((70, 64),), (1, 1), (1, 1), (1, 1)),
    "logsigmoid": Row(logsigmoid, F.logsigmoid, 1, (MATRIX,), ((70, 64),), (1, 1), (1, 1), (1, 1)),
    "swiglu": Row(swiglu, lambda g, u: F.silu(g) * u, 2, (MATRIX,) * 2, ((70, 64),) * 2, (1, 1), (1, 1), (2, 3)),
    "packed swiglu": Row(swiglu, _packed, 1, (MATRIX,), ((70, 64),), (1, 1), (1, 1), (2, 4)),
    "gate": Row(sigmoid_gate, _gate, 2, (MATRIX,) * 2, ((70, 64),) * 2, (1, 1), (1, 1), (2, 3)),
    "SE gate": Row(
        sigmoid_gate, _gate, 2, (IMAGE, (2, 3, 1, 1)), ((2, 3, 64, 64), (2, 3, 1, 1)), (1, 1), (1, 2), (2, 4),
    ),
    "gate per feature": Row(sigmoid_gate, _gate, 2, (MATRIX, (64,)), ((70, 64), (64,)), (1, 1), (1, 2), (2, 4)),
    "BCE, mean": Row(
        _mean(binary_cross_entropy_with_logits), _mean(F.binary_cross_entropy_with_logits), 1,
        (MATRIX,) * 2, ((70, 64),) * 2, (1, 1), (2, 1), (6, 4),
    ),
    "focal loss, mean": Row(
        _mean(sigmoid_focal_loss), _mean(torchvision_focal_loss), 1,
        (MATRIX,) * 2, ((70, 64),) * 2, (1, 1), (2, 1), (20, 17),
    ),
}  # fmt: skip
every_row = pytest.mark.parametrize("name", ROWS)


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators, each a launch on a GPU; views and allocations are none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "binary_cross_entropy_with_logits":  # one operator for autograd, several kernels underneath
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.count += 1
        return func(*args, **(kwargs or {}))


def _operands(row: Row, shapes: Shapes, device: str) -> list[Tensor]:
    operands = [torch.rand(shape, device=device) for shape in shapes]
    return [x.requires_grad_(i < row.n_gradients) for i, x in enumerate(operands)]


def _run(op: Op, operands: list[Tensor], count: Callable[[], int]) -> tuple[int, int]:
    """What ``count`` says of forward and of backward."""
    before = count()
    out = op(*operands)
    grad_out = torch.ones_like(out)
    middle = count()
    torch.autograd.grad(out, [x for x in operands if x.requires_grad], grad_out)
    return middle - before, count() - middle


@every_row
@pytest.mark.parametrize("size", ["small", "large"])
def test_ours(kernel_route: Route, launches: list[str], name: str, size: str) -> None:
    """As few as the table says: one each way, and one more to add up sums that one tile does not hold."""
    row = ROWS[name]
    shapes, expected = (row.small, row.of_small) if size == "small" else (row.large, row.of_large)
    assert _run(row.ours, _operands(row, shapes, kernel_route.device), lambda: len(launches)) == expected


@every_row
def test_pytorch(name: str) -> None:
    """What one writes without this library takes as many as the table says, and README and docs say after it."""
    row = ROWS[name]
    operands = _operands(row, row.large, "cpu")
    with Operators() as counted:
        forward, backward = _run(row.theirs, operands, lambda: counted.count)
    assert (forward - 1, backward) == row.of_pytorch  # ones_like is the test's own


@every_row
def test_another_length_compiles_nothing(jit: FakeKernel, kernel_route: Route, name: str) -> None:
    """A call of a known layout with another number of rows finds its kernels, forward and backward."""
    row = ROWS[name]

    def longer(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (shape[0] + n, *shape[1:]) if len(shape) == len(row.large[0]) else shape

    def run(n: int) -> None:
        _run(row.ours, _operands(row, tuple(longer(shape, n) for shape in row.large), "cpu"), lambda: 0)

    if kernel_route.device == "cuda":
        pytest.skip("the fake kernel stands for CUDA's, on CPU tensors")
    run(0)
    compiled = len(jit.launched)
    assert compiled
    for n in (1, 5, 16, 83):
        run(n)
    assert len(jit.launched) == compiled


FUNCTIONS = [
    sigmoid_op.SigmoidFunction, sigmoid_op.SigmoidBackwardFunction, silu_op.SiLUFunction, glu_op.GLUFunction,
    log.LogSigmoidFunction, swiglu_op.SwiGLUFunction, swiglu_op.PackedSwiGLUFunction, gate.SigmoidGateFunction,
    bce.BCEWithLogitsFunction, focal.SigmoidFocalLossFunction,
]  # fmt: skip


@every_row
def test_functions_taken(kernel_route: Route, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """None without gradients, one with them, none in backward; and nobody inspects a signature on the way."""
    row, taken = ROWS[name], list[str]()

    def watched(function: Any) -> Callable[..., Any]:
        apply = function.apply

        def take(*args: Any) -> Any:
            taken.append(function.__name__)
            return apply(*args)

        return take

    for function in FUNCTIONS:
        monkeypatch.setattr(function, "apply", watched(function))
    monkeypatch.setattr(inspect, "signature", lambda *args, **kwargs: taken.append("inspect.signature"))
    operands = _operands(row, row.small, kernel_route.device)
    with torch.no_grad():
        row.ours(*operands)
    assert taken == []
    assert _run(row.ours, operands, lambda: len(taken)) == (1, 0)


def test_a_signature_inspected_would_be_seen(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applied in the form that torch.func needs, a Function does have its signature inspected."""
    x = torch.ones(3, device=kernel_route.device, requires_grad=True)

    def refuse(*args: object, **keywords: object) -> None:
        raise AssertionError("inspect.signature")

    monkeypatch.setattr(inspect, "signature", refuse)
    monkeypatch.setattr(shared, "functorch_active", lambda: True)
    with pytest.raises(AssertionError, match=r"inspect\.signature"):
        sigmoid_op.SigmoidFunction.apply(x)
