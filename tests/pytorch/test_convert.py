"""``convert(model)`` changes the class of every ``nn.Sigmoid`` and nothing else; ``revert(model)`` takes it back."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sigmoid_op
from sigmoid_op import Sigmoid, convert, revert
from tests.conftest import Route
from tests.models import LSTM, GatedMLP, SqueezeExcitation

# The model, the shape of its input, the names of what is replaced, and the formulas that a forward pass launches.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], list[str]]] = {
    "SE blocks": (
        lambda: nn.Sequential(SqueezeExcitation(4, 2), nn.Conv2d(4, 6, 1), SqueezeExcitation(6, 3)),
        (2, 4, 5, 5),
        ["0.gate", "2.gate"],
        ["sigmoid"] * 2,
    ),
    "gated MLP": (lambda: nn.Sequential(nn.Dropout(0.0), GatedMLP(5, 8)), (3, 5), ["1.act"], ["sigmoid"]),
    "LSTM": (lambda: LSTM(4), (3, 2, 4), ["input_gate", "forget_gate", "output_gate"], ["sigmoid"] * 9),
    "a lone nn.Sigmoid": (nn.Sigmoid, (5,), [""], ["sigmoid"]),
    "SiLU and GLU": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 1), nn.SiLU(inplace=True), nn.GLU(dim=1), nn.SiLU(), nn.GLU(-1)),
        (2, 4, 10),
        ["1", "2", "3", "4"],
        ["sigmoid_gate", "silu", "sigmoid_gate"],  # in place, silu is PyTorch's
    ),
}


def _step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of its weighted sum with respect to the input and all parameters."""
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("name", MODELS)
def test_real_models(route: Route, launches: list[str], name: str) -> None:
    """In float64 a converted model gives the outputs and gradients it gave; bit for bit where PyTorch's kernels run.

    The report names what was replaced, the kernels run where they can, and reverted it is what it was.
    """
    make, shape, names, formulas = MODELS[name]
    torch.manual_seed(0)
    model = make().to(route.device, torch.float64)
    x = torch.randn(shape, dtype=torch.float64).to(route.device).requires_grad_()
    expected = _step(model, x)
    assert launches == []

    assert list(convert(model).replaced) == names
    got = _step(model, x)
    formulas = [*formulas, *(f"{name}_backward" for name in reversed(formulas))]
    assert launches == (formulas if route.uses_kernels else [])
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if route.uses_kernels else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(got, expected, **tolerance)

    assert list(revert(model).replaced) == names
    launches.clear()
    torch.testing.assert_close(_step(model, x), expected, **tolerance)  # cuDNN may add in another order
    assert launches == []


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (nn.Sigmoid(), sigmoid_op.Sigmoid()),
        (nn.SiLU(), sigmoid_op.SiLU()),
        (nn.SiLU(True), sigmoid_op.SiLU(True)),
        (nn.GLU(), sigmoid_op.GLU()),
        (nn.GLU(0), sigmoid_op.GLU(dim=0)),
        (nn.LogSigmoid(), sigmoid_op.LogSigmoid()),
        (nn.BCEWithLogitsLoss(reduction="sum"), sigmoid_op.BCEWithLogitsLoss(reduction="sum")),
    ],
    ids=repr,
)
def test_every_kind(theirs: nn.Module, ours: nn.Module) -> None:
    """Ours pass for PyTorch's; a converted one keeps its settings, and is copied, pickled and scripted."""
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    model = copy.deepcopy(theirs)
    before = pickle.dumps(model)
    assert convert(model).replaced == {"": type(ours)}
    assert repr(model) == repr(ours)
    x = torch.randn(4, 6)
    inputs = (x, x.sigmoid()) if isinstance(theirs, nn.BCEWithLogitsLoss) else (x,)
    expected = theirs(*(x.clone() for x in inputs))
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.jit.script(copy.deepcopy(model))
    for twin in (model, *twins):
        torch.testing.assert_close(twin(*(x.clone() for x in inputs)), expected)
    assert revert(model).replaced == {"": type(theirs)}
    assert pickle.dumps(model) == before


def test_every_place() -> None:
    """However deep, and in every kind of container; a shared module stays one object, by each of its names."""
    model = nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(nn.Sigmoid())]), "b": GatedMLP(2, 2), "c": LSTM(3)})
    before = list(model.modules())
    names = ["a.0.0", "b.act", "c.input_gate", "c.forget_gate", "c.output_gate"]
    assert convert(model).replaced == dict.fromkeys(names, Sigmoid)
    assert [id(module) for module in model.modules()] == [id(module) for module in before]
    assert [type(module) for module in before if isinstance(module, nn.Sigmoid)] == [Sigmoid] * 3


def test_shared_at_every_level() -> None:
    """40 levels that each hold the one below twice: a name for each of the 81 places, not for each of 2^40 paths."""
    model: nn.Module = nn.Sigmoid()
    for _ in range(40):
        model = nn.ModuleList([model, model])
    deepest = ".".join("0" * 39)
    for kind, change in ((Sigmoid, convert), (nn.Sigmoid, revert)):
        replaced = change(model).replaced  # by itself: a failed assert would print the model, path by path
        assert replaced == {f"{deepest}.0": kind, f"{deepest}.1": kind}


def test_hooks() -> None:
    """Forward, forward-pre, backward, backward-pre and state-dict hooks fire once each, and can still be removed."""
    model = nn.Sequential(nn.Sigmoid())
    fired: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: fired.append("forward-pre")),
        model[0].register_forward_hook(lambda *_: fired.append("forward")),
        model[0].register_full_backward_pre_hook(lambda *_: fired.append("backward-pre")),
        model[0].register_full_backward_hook(lambda *_: fired.append("backward")),
        model[0].register_state_dict_post_hook(lambda *_: fired.append("state dict")),
        model[0].register_load_state_dict_post_hook(lambda *_: fired.append("load")),
    ]
    convert(model)
    assert type(model[0]) is Sigmoid
    for _ in range(2):
        model(torch.ones(3, requires_grad=True)).sum().backward()
        model.load_state_dict(model.state_dict())
        assert fired == ["forward-pre", "forward", "backward-pre", "backward", "state dict", "load"]
        for handle in handles:
            handle.remove()


def test_everything_else_stays() -> None:
    """Names, flags, attributes of the user's own and state dicts are as they were; reverted, so are the pickles."""
    model: Any = nn.Sequential(SqueezeExcitation(4, 2).eval(), GatedMLP(4, 4))
    model[1].act.note = "mine"
    before, pickled = copy.deepcopy(model), pickle.dumps(model)
    convert(model)
    pairs = list(zip(model.named_modules(), before.named_modules(), strict=True))
    for (name, module), (name_before, module_before) in pairs:
        assert (name, module.training) == (name_before, module_before.training)
        assert vars(module).keys() == vars(module_before).keys()
    assert list(model.state_dict()) == list(before.state_dict())
    before.load_state_dict(model.state_dict())
    revert(model)
    assert pickle.dumps(model) == pickled


class _MySigmoid(nn.Sigmoid):
    """Someone's own: what its forward does, ours would not."""


def test_subclasses() -> None:
    """Subclasses, parametrized and scripted modules stay as they are, and those with a forward of their own."""
    parametrized = nn.Sigmoid()
    parametrized.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(parametrized, "scale", nn.Identity())
    hooked: Any = nn.Sigmoid()
    hooked.forward = hooked.forward
    others = [_MySigmoid(), parametrized, torch.jit.script(nn.Sigmoid()), hooked, nn.Softsign(), nn.Hardsigmoid()]
    kinds = [type(module) for module in others]
    assert convert(nn.Sequential(*others, nn.Sigmoid())).replaced == {"6": Sigmoid}
    assert [type(module) for module in others] == kinds


def test_twice_is_once() -> None:
    """A second conversion finds nothing to do, and says so."""
    model = GatedMLP(2, 2)
    assert str(convert(model)) == "1 replaced:\n  act: sigmoid_op.ops.sigmoid.Sigmoid"
    assert str(convert(model)) == str(convert(nn.Linear(2, 2))) == "0 replaced"
    assert str(convert(nn.Sigmoid())) == "1 replaced:\n  (the model itself): sigmoid_op.ops.sigmoid.Sigmoid"


def test_a_traced_model_is_converted() -> None:
    """An FX graph that holds nn.Sigmoid holds ours after convert(), and computes the same."""
    model, x = nn.Sequential(nn.Sigmoid(), nn.Tanh()), torch.randn(5)
    traced = torch.fx.symbolic_trace(model)
    assert convert(traced).replaced == {"0": Sigmoid}
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_models() -> None:
    """A model compiled before is converted inside its wrapper, and gives the same results."""
    model, x = nn.Sequential(nn.Sigmoid(), nn.Tanh()), torch.randn(5)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(x)
    assert convert(compiled).replaced == {"_orig_mod.0": Sigmoid}
    torch.testing.assert_close(compiled(x), expected)
    assert convert(model).replaced == {}
