"""TorchScript compiles every public function, with every keyword it has, to PyTorch's operators."""

import inspect
import re

import pytest
import torch

import sigmoid_op
from tests.conftest import Route

# What is between the parentheses of a call: without keywords, with one or some, and with all.
CALLS: dict[str, list[str]] = {
    "sigmoid": [
        "x",
        "x, out=y",
        "x, exact_grad=True",
        "x, out=y, exact_grad=True",
    ],
    "sigmoid_": ["x.clone()"],
    "silu": ["x", "x, inplace=False", "x, beta=1.5", "x, inplace=False, beta=1.5"],
    "quick_gelu": ["x"],
    "swiglu": [
        "x",
        "x, up=y",
        "x, alpha=1.702",
        "x, limit=2.5",
        "x, up_offset=1.0",
        "x, interleaved=True",
        "x, up=y, alpha=1.702, limit=2.5, up_offset=1.0, interleaved=False",
    ],
    "glu": ["x", "x, dim=0"],
    "sigmoid_gate": ["x, y", "x, y, out=x"],
    "logsigmoid": ["x"],
    "binary_cross_entropy_with_logits": [
        "x, y",
        "x, y, weight=y",
        "x, y, size_average=False",
        "x, y, reduce=True",
        "x, y, reduction='sum'",
        "x, y, pos_weight=2 * torch.ones_like(y)",
        "x, y, mask=y > 0.3",
        "x, y, normalizer=3.0",
        "x, y, weight=y, size_average=False, reduce=True, reduction='sum', pos_weight=2 * torch.ones_like(y)",
        "x, y, weight=y, reduction='sum', pos_weight=2 * torch.ones_like(y), mask=y > 0.3, normalizer=3.0",
    ],
    "sigmoid_focal_loss": [
        "x, y",
        "x, y, alpha=0.5",
        "x, y, gamma=3.0",
        "x, y, reduction='mean'",
        "x, y, mask=y > 0.3",
        "x, y, reduction='mean', normalizer=y.sum()",
        "x, y, alpha=0.5, gamma=3.0, reduction='mean', mask=y > 0.3, normalizer=y.sum()",
    ],
}
NOT_OPS = {"convert", "enable", "revert"}


def test_every_function_and_keyword_is_here() -> None:
    """A new function, or a new keyword of one, belongs in the table."""
    functions = {name for name in sigmoid_op.__all__ if inspect.isfunction(getattr(sigmoid_op, name))}
    assert set(CALLS) == functions - NOT_OPS
    for name, calls in CALLS.items():
        parameters = list(inspect.signature(getattr(sigmoid_op, name)).parameters)
        n_positional = len(calls[0].split(","))
        assert set(parameters[n_positional:]) == set(re.findall(r"(\w+)=", " ".join(calls))), name


# PyTorch says so of its own form, too.
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("call", [f"sigmoid_op.{name}({given})" for name in CALLS for given in CALLS[name]])
def test_a_script_calls_it(route: Route, launches: list[str], call: str) -> None:
    """The script holds no Python, launches no kernel, and computes and differentiates what the function does."""
    x = torch.linspace(-3, 3, 24, device=route.device).view(4, 6)
    y = torch.linspace(0, 1, 24, device=route.device).view(4, 6)
    given = x.clone(), y.clone()
    expected = eval(call)
    launches.clear()
    scripted = torch.jit.CompilationUnit(f"def call(x, y):\n    return {call}\n").call
    assert "PythonOp" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(*given), expected)
    torch.testing.assert_close(given, (x, y))  # of which one may be what ``out=`` has written
    if "out=" not in call:
        leaf = x.clone().requires_grad_()
        assert torch.autograd.grad(scripted(leaf, y).sum(), leaf)[0].isfinite().all()
    assert launches == []


@pytest.mark.parametrize("name", CALLS)
def test_scripting_it(fallback: Route, name: str) -> None:
    """``torch.jit.script`` of the function itself."""
    operands = [torch.rand(4, 6) for _ in CALLS[name][0].split(",")]
    scripted = torch.jit.script(getattr(sigmoid_op, name))
    expected = getattr(sigmoid_op, name)(*(x.clone() for x in operands))
    torch.testing.assert_close(scripted(*(x.clone() for x in operands)), expected)
