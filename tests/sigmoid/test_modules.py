"""``Sigmoid`` is an ``nn.Sigmoid`` to all that ask: isinstance, state dicts, pickles, copies, FX, TorchScript."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sigmoid_op import Sigmoid
from tests.conftest import Route


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Sigmoid(), nn.Linear(3, 2))


def test_is_the_module_it_replaces(route: Route) -> None:
    """It is an ``nn.Sigmoid``, prints as one, and computes the same."""
    module = Sigmoid()
    assert isinstance(module, nn.Sigmoid)
    assert repr(module) == repr(nn.Sigmoid())
    x = torch.randn(5, device=route.device)
    torch.testing.assert_close(module(x), nn.Sigmoid()(x))


def test_state_dicts_are_interchangeable() -> None:
    """A checkpoint of a model with ``nn.Sigmoid`` loads into one with ``Sigmoid``, and back."""
    ours = _model()
    theirs = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_copies_and_pickles() -> None:
    """deepcopy, pickle and torch.save give a ``Sigmoid`` that computes the same."""
    model = _model()
    x = torch.randn(2, 4)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    for twin in twins:
        assert type(twin[1]) is Sigmoid
        assert torch.equal(twin(x), model(x))


def test_symbolic_trace() -> None:
    """FX traces through it to torch.sigmoid, where its rewriting passes look for a sigmoid."""
    traced = torch.fx.symbolic_trace(_model())
    assert torch.sigmoid in [node.target for node in traced.graph.nodes]
    x = torch.randn(2, 4)
    torch.testing.assert_close(traced(x), _model()(x))


def test_jit_trace(route: Route) -> None:
    """``torch.jit.trace`` records ``aten::sigmoid``."""
    traced = torch.jit.trace(Sigmoid(), torch.zeros(2, device=route.device))
    assert "aten::sigmoid" in str(traced.graph)


def test_jit_script() -> None:
    """``torch.jit.script`` compiles it to ``aten::sigmoid``, as it does ``nn.Sigmoid``."""
    scripted = torch.jit.script(_model())
    assert "aten::sigmoid" in str(scripted.inlined_graph)
    x = torch.randn(2, 4)
    torch.testing.assert_close(scripted(x), _model()(x))


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval(training: bool) -> None:
    """It has the modes of a module and no parameters."""
    module = Sigmoid().train(training)
    assert module.training is training
    assert list(module.parameters()) == []
