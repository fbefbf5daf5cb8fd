"""The family as modules, converted, traced, scripted, copied; under autocast and checkpointing; with subclasses."""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sigmoid_op import (
    GLU,
    SiLU,
    convert,
    dispatch,
    revert,
)
from tests.conftest import Route
from tests.members import MEMBERS, Member, every_member


def _operands(member: Member, route: Route, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return member.operands("matrix", dtype, route.device)


def _assert_computes(member: Member, call: Callable[..., Tensor], *operands: Tensor) -> None:
    torch.testing.assert_close(call(*operands), member.truth(*operands), check_device=False)


@every_member
def test_modules(route: Route, launches: list[str], member: Member) -> None:
    """A module computes its function, in training and in evaluation, and has neither parameters nor a state."""
    module = member.module()
    for training in (True, False):
        _assert_computes(member, module.train(training), *_operands(member, route))
    assert launches == ([member.kernels[0]] * 2 if route.uses_kernels else [])
    assert module.state_dict() == {}


@every_member
def test_module_copies(route: Route, member: Member) -> None:
    """deepcopy, pickle and torch.save give a module of the same class and settings that computes the same."""
    module = member.module()
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(stored, weights_only=False)):
        assert type(twin) is type(module)
        assert repr(twin) == repr(module)
        _assert_computes(member, twin, *_operands(member, route))


@every_member
def test_jit(kernel_route: Route, launches: list[str], member: Member) -> None:
    """TorchScript, scripted or traced, holds PyTorch's operators, and computes the same."""
    operands = _operands(member, kernel_route)
    scripted = torch.jit.script(member.module())
    traced = torch.jit.trace(member.module(), operands, check_trace=False)
    for program in (scripted, traced):
        assert "PythonOp" not in str(program.inlined_graph)
        _assert_computes(member, program, *operands)
    assert launches == []


@every_member
def test_symbolic_trace(kernel_route: Route, launches: list[str], member: Member) -> None:
    """FX traces a model with the module in it, down to PyTorch's functions."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.member = member.module()

        def forward(self, x: Tensor) -> Tensor:
            return self.member(*((x, x)[: member.arity]))  # type: ignore[no-any-return]  # nn.Module is untyped there

    traced = torch.fx.symbolic_trace(Model())
    x = _operands(member, kernel_route)[0]
    _assert_computes(member, lambda *operands: traced(operands[0]), *((x, x)[: member.arity]))
    assert launches == []


@every_member
@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(route: Route, member: Member, inside: torch.dtype) -> None:
    """Under autocast the result has the dtype of PyTorch's form, and the gradients those of the operands."""
    for dtype in (torch.float32, inside):
        leaves = [operand.requires_grad_() for operand in _operands(member, route, dtype)]
        with torch.autocast(route.device, dtype=inside):
            out = member.ours(*leaves)
            assert out.dtype == member.theirs(*leaves).dtype
        assert [grad.dtype for grad in torch.autograd.grad(out.float().sum(), leaves)] == [dtype] * len(leaves)


class _Tagged(Tensor):
    """Keeps its type."""


@every_member
@pytest.mark.parametrize("tagged", [0, -1], ids=["first", "last"])
def test_subclasses(route: Route, launches: list[str], member: Member, tagged: int) -> None:
    """A subclass among the operands keeps its type, and is seen by its own ``__torch_function__``, not by a kernel."""
    operands = list(_operands(member, route))
    operands[tagged] = operands[tagged].as_subclass(_Tagged)
    out = member.ours(*operands)
    assert type(out) is _Tagged
    assert launches == []
    exact = member.truth(*(operand.as_subclass(Tensor) for operand in operands))
    torch.testing.assert_close(out.as_subclass(Tensor), exact, check_device=False)


@every_member
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(route: Route, launches: list[str], member: Member, use_reentrant: bool) -> None:
    """Checkpointed, the forward pass runs a second time, and the gradients are right."""
    leaves = [operand.requires_grad_() for operand in _operands(member, route)]
    out = checkpoint(member.ours, *leaves, use_reentrant=use_reentrant)
    out.sum().backward()
    truth = member.true_gradients(torch.ones_like(out), *leaves)
    gradients = member.parts(*(leaf.grad for leaf in leaves if leaf.grad is not None))
    torch.testing.assert_close(list(gradients), [exact for exact, _ in truth], check_device=False)
    forward, backward = member.kernels
    assert launches == ([forward, forward, backward] if route.uses_kernels else [])


@every_member
@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_checkpoint_watched_for_half_of_the_time(route: Route, member: Member, counted: str) -> None:
    """A mode on in one of the two forward passes, as that which counts operations, leaves the gradients right.

    Checkpointing hands backward what the second pass saved, in order: an op that saved other tensors under a mode
    would be given σ(gate) for the gate. So it is with one operand frozen, and with all trained.
    """
    n_operands = len(_operands(member, route))
    for trained in {tuple(range(n_operands)), (0,), (n_operands - 1,)}:
        operands = [x.requires_grad_(i in trained) for i, x in enumerate(_operands(member, route))]
        with FlopCounterMode(display=False) if counted == "forward" else nullcontext():
            out = checkpoint(member.ours, *operands, use_reentrant=False)
        with FlopCounterMode(display=False) if counted == "backward" else nullcontext():
            out.sum().backward()
        leaves = [x for x in operands if x.requires_grad]
        expected = torch.autograd.grad(member.theirs(*operands).sum(), leaves)
        torch.testing.assert_close([x.grad for x in leaves], list(expected))


def test_convert(route: Route, launches: list[str]) -> None:
    """nn.SiLU and nn.GLU become ours with their settings, give the gradients they gave, and are reverted exactly."""
    torch.manual_seed(0)
    layers = (nn.Conv1d(4, 6, 1), nn.SiLU(inplace=True), nn.Conv1d(6, 8, 1), nn.GLU(dim=1), nn.SiLU(), nn.GLU(-1))
    model = nn.Sequential(*layers).to(route.device, torch.float64)
    x = torch.randn(2, 4, 10, dtype=torch.float64, device=route.device)
    before = pickle.dumps(model)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    expected = step()
    assert launches == []
    assert convert(model).replaced == {"1": SiLU, "3": GLU, "4": SiLU, "5": GLU}
    torch.testing.assert_close(step(), expected)
    gate, gate_backward = "sigmoid_gate", "sigmoid_gate_backward"
    kernels = [gate, "silu", gate, gate_backward, "silu_backward", gate_backward]
    assert launches == (kernels if route.uses_kernels else [])
    revert(model)
    assert pickle.dumps(model) == before


def test_modules_have_the_settings_of_pytorch_s() -> None:
    """SiLU and GLU print as PyTorch's do and are instances of them; their settings have the same names and defaults."""
    for ours, theirs in ((SiLU(), nn.SiLU()), (SiLU(True), nn.SiLU(True)), (GLU(), nn.GLU()), (GLU(dim=0), nn.GLU(0))):
        assert repr(ours) == repr(theirs)
        assert isinstance(ours, type(theirs))


def test_the_subclass_check_can_fail(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatch that does not ask for subclasses gives one to a kernel, which the test above would see."""
    (member,) = (member for member in MEMBERS if member.name == "silu")
    monkeypatch.setattr(dispatch, "TENSOR_TYPES", frozenset({Tensor, _Tagged}))
    monkeypatch.setattr(dispatch, "is_watched", lambda: False)
    member.ours(_operands(member, kernel_route)[0].as_subclass(_Tagged))
    assert launches == ["silu"]
