"""Under torch.compile the op is ``aten.sigmoid``: one graph, every size, fused with what stands beside it."""

import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func  # type: ignore[import-untyped]  # it ships no types
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import run_and_get_code

from sigmoid_op import dispatch, sigmoid
from tests.conftest import CUDA, Route, kernels_from
from tests.pytorch.ops import FORMS, every_form
from tests.ulp import true_sigmoid

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # Inductor's advice on every GPU that has TF32, about matrix products, of which there are none here.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

aten = torch.ops.aten

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")

FUNCTIONS = ["sigmoid", "SigmoidFunction"]


class Recorder:
    """A compiler backend that runs the graphs as they are and keeps the operators of each."""

    def __init__(self) -> None:
        self.graphs: list[list[object]] = []
        self.backend = aot_autograd(fw_compiler=self._record, bw_compiler=self._record)

    def _record(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)  # type: ignore[no-any-return]  # untyped in torch


def _gate(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: FORMS[form](x) * y


def _operands(route: Route, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(route.device).requires_grad_() for _ in range(2))
    return x, y


def _check_step(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    """Result and gradients of σ(x)·y against float64."""
    out = step(x, y)
    grad_x, grad_y = torch.autograd.grad(out, (x, y), torch.ones_like(out))
    s, y64 = true_sigmoid(x), y.detach().cpu().double()
    for result, exact in [(out, s * y64), (grad_x, s * (1 - s) * y64), (grad_y, s)]:
        torch.testing.assert_close(result.detach().cpu().double(), exact, rtol=1e-6, atol=1e-6)


@every_form
@pytest.mark.parametrize("dynamic", [False, True])
def test_captured_graph(
    kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch, form: str, dynamic: bool
) -> None:
    """One graph forward and one backward, of PyTorch's operators; dynamic ones serve both sides of the threshold."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(50))
    recorder = Recorder()
    step = torch.compile(_gate(form), fullgraph=True, dynamic=dynamic, backend=recorder.backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [(3, 5), (5, 10), (200, 9)] if dynamic else [(30, 5)]:
            _check_step(step, *_operands(kernel_route, *shape))
    forward, backward = recorder.graphs
    assert forward.count(aten.sigmoid.default) == 1
    assert backward.count(aten.sigmoid_backward.default) == 1
    assert {op.namespace for op in forward + backward if isinstance(op, torch._ops.OpOverload)} == {"aten"}
    assert launches == []


def test_the_recompilation_check_can_fail() -> None:
    """A branch on the number of elements, as the eager route has one, is caught."""
    step = torch.compile(
        lambda x: torch.sigmoid(x) if x.numel() >= 50 else x.sigmoid() * 1, dynamic=True, backend="eager"
    )
    step(torch.ones(3, 5))
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(torch._dynamo.exc.RecompileError):
        step(torch.ones(200, 9))


@pytest.mark.parametrize("form", FUNCTIONS)
def test_transforms_inside(kernel_route: Route, launches: list[str], form: str) -> None:
    """vmap over grad, and jvp, inside a compiled function: no graph break, and the values of σ'."""
    function = FORMS[form]

    def slopes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        per_sample = torch.func.vmap(torch.func.grad(lambda row: function(row).sum()))(x)
        return per_sample * y, torch.func.jvp(function, (x,), (y,))[1]

    x, y = (operand.detach() for operand in _operands(kernel_route, 3, 5))
    s = true_sigmoid(x)
    for result in torch.compile(slopes, fullgraph=True, backend="eager")(x, y):
        torch.testing.assert_close(result.cpu().double(), s * (1 - s) * y.cpu().double(), rtol=1e-6, atol=1e-6)
    assert launches == []


# Compiled autograd itself looks at .grad of the tensors that the eager call saved.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("form", FUNCTIONS)
def test_compiled_autograd(kernel_route: Route, launches: list[str], form: str) -> None:
    """Compiled autograd traces the backward of an eager call, whose forward took our kernel, to PyTorch's operator."""
    recorder = Recorder()
    with torch._dynamo.compiled_autograd._enable(torch.compile(fullgraph=True, backend=recorder.backend)):
        _check_step(_gate(form), *_operands(kernel_route, 3, 5))
    (backward,) = recorder.graphs
    assert backward.count(aten.sigmoid_backward.default) == 1
    assert launches == ["sigmoid"]


def _kernels(codes: list[str]) -> list[list[str]]:
    """The names of the kernels that each piece of Inductor's code defines."""
    return [re.findall(r"^(\w+) = async_compile\.", code, re.MULTILINE) for code in codes]


def _assert_fused(codes: list[str]) -> None:
    (forward,), (backward,) = _kernels(codes)
    assert "fused_mul_sigmoid" in forward
    assert "fused_mul_sigmoid_sigmoid_backward" in backward


@needs_compiler
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_fuses_it(kernel_route: Route, launches: list[str], dynamic: bool) -> None:
    """Inductor's code for σ(x)·y is one kernel forward, sigmoid and multiply in it, and one backward."""
    step = torch.compile(_gate("sigmoid"), fullgraph=True, dynamic=dynamic)
    _, codes = run_and_get_code(_check_step, step, *_operands(kernel_route, 33, 32))
    _assert_fused(codes)
    assert launches == []


@pytest.mark.gpu
def test_large_tensors_are_fused_too(launches: list[str]) -> None:
    """Where the eager call takes our kernel by size, the compiled one is still Inductor's, and one kernel each way."""
    x, y = _operands(CUDA, dispatch.MIN_ELEMENTS["sigmoid"])
    sigmoid(x.detach())
    assert launches == ["sigmoid"]
    launches.clear()
    _, codes = run_and_get_code(_check_step, torch.compile(_gate("SigmoidFunction"), fullgraph=True), x, y)
    _assert_fused(codes)
    assert launches == []


def test_the_fusion_check_can_fail() -> None:
    """An operator that Inductor cannot see into, as a kernel of ours would be, is no fused kernel."""
    opaque = torch.library.custom_op(
        "sigmoid_op_tests::opaque", torch.sigmoid, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    opaque.register_fake(torch.empty_like)
    _, codes = run_and_get_code(torch.compile(opaque, fullgraph=True), torch.ones(3))
    assert _kernels(codes) == [[]]
