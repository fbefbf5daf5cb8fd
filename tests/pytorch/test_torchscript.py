"""TorchScript compiles every public function, with every keyword it has, to PyTorch's operators."""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sigmoid_op
from tests.conftest import Route


@dataclass(frozen=True)
class Call:
    """The operands of a function, and for each other argument a value, as it stands in the script.

    ``sets`` are the keywords that are given together, where not each goes alone and all together.
    """

    operands: tuple[str, ...]
    keywords: dict[str, str] = field(default_factory=dict)
    sets: tuple[tuple[str, ...], ...] = ()

    def spellings(self, name: str) -> dict[str, str]:
        """The call without keywords, with each of them, and with all."""
        sets = self.sets or ((), *((keyword,) for keyword in self.keywords), tuple(self.keywords))
        return {
            ", ".join(keywords) or "no keyword": f"sigmoid_op.{name}("
            + ", ".join([*self.operands, *(f"{keyword}={self.keywords[keyword]}" for keyword in keywords)])
            + ")"
            for keywords in sets
        }


CALLS: dict[str, Call] = {
    "sigmoid": Call(("x",), {"out": "torch.empty_like(x)", "exact_grad": "True"}),
    "sigmoid_": Call(("x.clone()",)),
    "silu": Call(("x",), {"inplace": "False", "beta": "1.5"}),
    "quick_gelu": Call(("x",)),
    "swiglu": Call(("x",), {"up": "y", "alpha": "1.702", "limit": "2.5", "up_offset": "1.0", "interleaved": "False"}),
    "glu": Call(("x",), {"dim": "0"}),
    "sigmoid_gate": Call(("x", "y"), {"out": "torch.empty_like(x)"}),
    "logsigmoid": Call(("x",)),
    "binary_cross_entropy_with_logits": Call(
        ("x", "y"),
        {
            "weight": "y",
            "size_average": "False",
            "reduce": "True",
            "reduction": "'sum'",
            "pos_weight": "2 * torch.ones_like(y)",
            "mask": "y > 0.3",
            "normalizer": "3.0",
        },
        (
            (),
            *((keyword,) for keyword in ("weight", "size_average", "reduce", "reduction", "pos_weight")),
            *(("mask",), ("normalizer",)),
            ("weight", "size_average", "reduce", "reduction", "pos_weight"),
            ("weight", "reduction", "pos_weight", "mask", "normalizer"),
        ),
    ),
    "sigmoid_focal_loss": Call(
        ("x", "y"),
        {"alpha": "0.5", "gamma": "3.0", "reduction": "'mean'", "mask": "y > 0.3", "normalizer": "y.sum()"},
        (
            *((), ("alpha",), ("gamma",), ("reduction",), ("mask",)),
            *(("reduction", "normalizer"), ("alpha", "gamma", "reduction", "mask", "normalizer")),
        ),
    ),
}
NOT_OPS = {"convert", "enable", "revert"}
SPELLINGS = [
    pytest.param(expression, id=f"{name}-{keywords}")
    for name, call in CALLS.items()
    for keywords, expression in call.spellings(name).items()
]


def test_every_function_and_keyword_is_here() -> None:
    """A new function, or a new keyword of one, belongs in the table."""
    functions = {name for name in sigmoid_op.__all__ if inspect.isfunction(getattr(sigmoid_op, name))}
    assert set(CALLS) == functions - NOT_OPS
    for name, call in CALLS.items():
        parameters = list(inspect.signature(getattr(sigmoid_op, name)).parameters)
        assert sorted(parameters[len(call.operands) :]) == sorted(call.keywords), name


def _function(expression: str, folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of that one line, in a file, from which TorchScript takes the source."""
    path = folder / "caller.py"
    path.write_text(
        f"import torch\nimport sigmoid_op\n\n\ndef caller(x: torch.Tensor, y: torch.Tensor):\n    return {expression}\n"
    )
    spec = importlib.util.spec_from_file_location("caller", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    caller: Callable[[Tensor, Tensor], Tensor] = module.caller
    return caller


# PyTorch says so of its own form, too.
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("expression", SPELLINGS)
def test_a_script_calls_it(route: Route, launches: list[str], tmp_path: Path, expression: str) -> None:
    """The script holds no Python, launches no kernel, and computes and differentiates what the function does."""
    x = torch.linspace(-3, 3, 24, device=route.device).view(4, 6)
    y = torch.linspace(0, 1, 24, device=route.device).view(4, 6)
    caller = _function(expression, tmp_path)
    expected = caller(x, y)
    launches.clear()
    scripted = torch.jit.script(caller)
    assert "PythonOp" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x, y), expected)
    if "out=" not in expression:
        leaf = x.clone().requires_grad_()
        assert torch.autograd.grad(scripted(leaf, y).sum(), leaf)[0].isfinite().all()
    assert launches == []


@pytest.mark.parametrize("name", CALLS)
def test_scripting_it(fallback: Route, name: str) -> None:
    """``torch.jit.script`` of the function itself."""
    operands = [torch.rand(4, 6) for _ in CALLS[name].operands]
    scripted = torch.jit.script(getattr(sigmoid_op, name))
    expected = getattr(sigmoid_op, name)(*(x.clone() for x in operands))
    torch.testing.assert_close(scripted(*(x.clone() for x in operands)), expected)
