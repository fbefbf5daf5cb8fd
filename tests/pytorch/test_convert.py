"""``convert(model)`` changes the class of every ``nn.Sigmoid`` and nothing else; ``revert(model)`` takes it back."""

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sigmoid_op
from sigmoid_op import Sigmoid
from sigmoid_op.conversion import MODULES, convert, revert
from tests.conftest import Route
from tests.models import LSTM, GatedMLP, SqueezeExcitation

# The model, the shape of its input, the names of its sigmoids, and how many run in a forward pass.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str], int]] = {
    "SE blocks": (
        lambda: nn.Sequential(SqueezeExcitation(4, 2), nn.Conv2d(4, 6, 1), SqueezeExcitation(6, 3)),
        (2, 4, 5, 5),
        ["0.gate", "2.gate"],
        2,
    ),
    "gated MLP": (lambda: nn.Sequential(nn.Dropout(0.0), GatedMLP(5, 8)), (3, 5), ["1.act"], 1),
    "LSTM": (lambda: LSTM(4), (3, 2, 4), ["input_gate", "forget_gate", "output_gate"], 9),
    "a lone nn.Sigmoid": (nn.Sigmoid, (5,), [""], 1),
}
every_model = pytest.mark.parametrize("name", MODELS)


def _step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of its weighted sum with respect to the input and all parameters."""
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])]


@every_model
def test_real_models(route: Route, launches: list[str], name: str) -> None:
    """In float64 a converted model gives the outputs and gradients it gave; bit for bit where PyTorch's kernels run.

    The report names what was replaced, the kernels run where they can, and reverted it is what it was.
    """
    make, shape, names, calls = MODELS[name]
    torch.manual_seed(0)
    model = make().to(route.device, torch.float64)
    x = torch.randn(shape, dtype=torch.float64).to(route.device).requires_grad_()
    expected = _step(model, x)
    assert launches == []

    report = convert(model)
    assert report.replaced == dict.fromkeys(names, Sigmoid)
    got = _step(model, x)
    assert launches == (["sigmoid"] * calls + ["sigmoid_backward"] * calls if route.uses_kernels else [])
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if route.uses_kernels else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(got, expected, **tolerance)

    assert revert(model).replaced == dict.fromkeys(names, nn.Sigmoid)
    launches.clear()
    torch.testing.assert_close(_step(model, x), expected, **tolerance)  # cuDNN may add in another order
    assert launches == []


Convert = Callable[[nn.Module], object]


def _check_every_one(convert: Convert) -> None:
    """However deep, and in every kind of container."""
    deep = nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(nn.Sigmoid())]), "b": GatedMLP(2, 2)})
    convert(deep)
    assert [type(module) for module in deep.modules() if isinstance(module, nn.Sigmoid)] == [Sigmoid, Sigmoid]


def _check_shared_modules(convert: Convert) -> None:
    """One object in three places stays one object."""
    model = LSTM(3)
    gate = model.input_gate
    convert(model)
    assert model.input_gate is model.forget_gate is model.output_gate is gate
    assert type(gate) is Sigmoid


def _check_root(convert: Convert) -> None:
    """The model itself may be the one."""
    model = nn.Sigmoid()
    convert(model)
    assert type(model) is Sigmoid


def _check_hooks(convert: Convert) -> None:
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


def _check_attributes(convert: Convert) -> None:
    """train/eval flags, attributes of the user's own and weak references are as they were."""
    model: Any = nn.Sequential(nn.Sigmoid(), nn.Sigmoid().eval())
    model[0].note = "mine"
    reference = weakref.ref(model[0])
    convert(model)
    assert [type(module) for module in model] == [Sigmoid, Sigmoid]
    assert [module.training for module in model] == [True, False]
    assert model[0].note == "mine"
    assert reference() is model[0]


def _check_names_and_state_dicts(convert: Convert) -> None:
    """Names are the same, and state dicts load in both directions."""
    model = nn.Sequential(SqueezeExcitation(4, 2), GatedMLP(4, 4))
    before = copy.deepcopy(model)
    convert(model)
    assert type(model[0].gate) is Sigmoid
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before.named_modules()]
    assert list(model.state_dict()) == list(before.state_dict())
    model.load_state_dict(before.state_dict())
    before.load_state_dict(model.state_dict())


class _MySigmoid(nn.Sigmoid):
    """Someone's own: what its forward does, ours would not."""


def _check_subclasses(convert: Convert) -> None:
    """Subclasses, parametrized and scripted modules stay as they are, and those with a forward of their own."""
    parametrized = nn.Sigmoid()
    parametrized.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(parametrized, "scale", nn.Identity())
    scripted = torch.jit.script(nn.Sigmoid())
    hooked: Any = nn.Sigmoid()
    hooked.forward = hooked.forward
    model = nn.Sequential(_MySigmoid(), parametrized, scripted, hooked, nn.Softsign(), nn.Hardsigmoid(), nn.Sigmoid())
    kinds = [type(module) for module in model]
    convert(model)
    assert [type(module) for module in model] == [*kinds[:-1], Sigmoid]


def _convert_nothing(model: nn.Module) -> None:
    """A way to fail: nothing is done."""


def _convert_children_only(model: nn.Module) -> None:
    """A way to fail: one level deep."""
    for name, child in model.named_children():
        if type(child) is nn.Sigmoid:
            setattr(model, name, Sigmoid())


def _convert_by_new_modules(model: nn.Module) -> None:
    """A way to fail: a new module at each place, which is how it is mostly done."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if type(child) is nn.Sigmoid:
                setattr(module, name, Sigmoid())


def _convert_by_wrapping(model: nn.Module) -> None:
    """A way to fail: a container in the place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Sigmoid:
                setattr(module, name, nn.Sequential(Sigmoid()))


def _convert_subclasses_too(model: nn.Module) -> None:
    """A way to fail: isinstance."""
    for module in model.modules():
        if isinstance(module, nn.Sigmoid):
            module.__class__ = Sigmoid


PROMISES: dict[Callable[[Convert], None], Convert] = {
    _check_every_one: _convert_children_only,
    _check_shared_modules: _convert_by_new_modules,
    _check_root: _convert_by_new_modules,
    _check_hooks: _convert_by_new_modules,
    _check_attributes: _convert_by_new_modules,
    _check_names_and_state_dicts: _convert_by_wrapping,
    _check_subclasses: _convert_subclasses_too,
}


@pytest.mark.parametrize("check", PROMISES)
def test_promise(check: Callable[[Convert], None]) -> None:
    """What the check says holds."""
    check(convert)


@pytest.mark.parametrize(("check", "broken"), PROMISES.items())
def test_each_promise_can_be_broken(check: Callable[[Convert], None], broken: Convert) -> None:
    """The check fails for a conversion that does nothing, and for a plausible one that is wrong."""
    for mistake in (_convert_nothing, broken):
        with pytest.raises(AssertionError):
            check(mistake)


def test_revert_is_the_inverse() -> None:
    """Classes, attributes and pickles are byte for byte what they were before."""
    model = nn.Sequential(SqueezeExcitation(4, 2).eval(), LSTM(4), _MySigmoid())
    before = pickle.dumps(model)
    convert(model)
    assert pickle.dumps(model) != before
    revert(model)
    assert pickle.dumps(model) == before


def test_shared_at_every_level() -> None:
    """40 levels that each hold the one below twice: a name for each of the 81 places, not for each of 2^40 paths."""
    model: nn.Module = nn.Sigmoid()
    gate = model
    for _ in range(40):
        model = nn.ModuleList([model, model])
    deepest = ".".join("0" * 39)
    converted = convert(model).replaced  # by itself: a failed assert would print the model, path by path
    assert converted == {f"{deepest}.0": Sigmoid, f"{deepest}.1": Sigmoid}
    assert type(gate) is Sigmoid
    reverted = revert(model).replaced
    assert list(reverted) == [f"{deepest}.0", f"{deepest}.1"]


def test_twice_is_once() -> None:
    """A second conversion finds nothing to do, and says so."""
    model = GatedMLP(2, 2)
    assert str(convert(model)) == "1 replaced:\n  act: sigmoid_op.ops.sigmoid.Sigmoid"
    assert str(convert(model)) == str(convert(nn.Linear(2, 2))) == "0 replaced"
    assert str(convert(nn.Sigmoid())) == "1 replaced:\n  (the model itself): sigmoid_op.ops.sigmoid.Sigmoid"


def test_copies_pickles_and_scripts() -> None:
    """A converted model is copied, pickled and scripted like any other, and computes the same."""
    torch.manual_seed(0)
    model, x = GatedMLP(3, 4), torch.randn(2, 3)
    expected = model(x)
    convert(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    for twin in twins:
        assert type(twin.act) is Sigmoid
        torch.testing.assert_close(twin(x), expected)
    scripted = torch.jit.script(model)
    assert "aten::sigmoid" in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), expected)


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


def test_every_kind_is_converted() -> None:
    """The five that the docstring names, each to ours of that name."""
    ours = (sigmoid_op.Sigmoid, sigmoid_op.SiLU, sigmoid_op.GLU, sigmoid_op.LogSigmoid, sigmoid_op.BCEWithLogitsLoss)
    model = nn.ModuleList([nn.Sigmoid(), nn.SiLU(), nn.GLU(), nn.LogSigmoid(), nn.BCEWithLogitsLoss()])
    assert list(convert(model).replaced.values()) == list(ours)


@pytest.mark.parametrize(("theirs", "ours"), MODULES.items())
def test_rows_of_the_table(theirs: type[nn.Module], ours: type[nn.Module]) -> None:
    """Each of our classes fits an instance of PyTorch's: a subclass, with nothing of its own to be set per instance."""
    assert issubclass(ours, theirs)
    converted = theirs()
    converted.__class__ = ours
    assert repr(converted) == repr(ours())
    x = torch.randn(4, 6)
    inputs = (x, x.sigmoid()) if issubclass(theirs, nn.BCEWithLogitsLoss) else (x,)
    torch.testing.assert_close(converted(*inputs), theirs()(*inputs))
