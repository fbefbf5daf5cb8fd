"""Every op as a module: traced, scripted, copied, pickled."""

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.conftest import Route
from tests.members import Member
from tests.pytorch.ops import every_op


def _operands(op: Member, route: Route) -> tuple[Tensor, ...]:
    return op.operands("matrix", torch.float64, route.device)


def _assert_computes(op: Member, call: Callable[..., Tensor], *operands: Tensor) -> None:
    torch.testing.assert_close(call(*operands), op.truth(*operands), check_device=False)


@every_op
def test_modules(route: Route, launches: list[str], op: Member) -> None:
    """A module computes its function, in training and in evaluation, and has neither parameters nor a state."""
    module = op.module()
    for training in (True, False):
        assert module.train(training).training is training
        _assert_computes(op, module, *_operands(op, route))
    assert launches == ([op.kernels[0]] * 2 if route.uses_kernels else [])
    assert module.state_dict() == {}


@every_op
def test_copies(route: Route, op: Member) -> None:
    """deepcopy, pickle and torch.save give a module of the same class and settings that computes the same."""
    module = op.module()
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(stored, weights_only=False)):
        assert type(twin) is type(module)
        assert repr(twin) == repr(module)
        _assert_computes(op, twin, *_operands(op, route))


@every_op
def test_jit(kernel_route: Route, launches: list[str], op: Member) -> None:
    """TorchScript, scripted or traced, holds PyTorch's operators, and computes the same."""
    operands = _operands(op, kernel_route)
    traced = torch.jit.trace(op.module(), operands, check_trace=False)
    for program in (torch.jit.script(op.module()), traced):
        assert "PythonOp" not in str(program.inlined_graph)
        _assert_computes(op, program, *operands)
    assert launches == []


class _Model(nn.Module):
    def __init__(self, op: Callable[..., Tensor], arity: int) -> None:
        super().__init__()
        self.op, self.arity = op, arity

    def forward(self, x: Tensor) -> Tensor:
        return self.op(*((x, x)[: self.arity]))


@every_op
def test_symbolic_trace(kernel_route: Route, launches: list[str], op: Member) -> None:
    """FX traces a model with the module in it to the functions of PyTorch's form, for which its passes look."""
    ours, theirs = (torch.fx.symbolic_trace(_Model(form, op.arity)) for form in (op.module(), op.theirs))
    assert [node.target for node in ours.graph.nodes][1:-1] == [node.target for node in theirs.graph.nodes][1:-1]
    x = _operands(op, kernel_route)[0]
    _assert_computes(op, lambda *operands: ours(operands[0]), *((x, x)[: op.arity]))
    assert launches == []
