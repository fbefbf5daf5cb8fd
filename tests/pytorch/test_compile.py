"""Under torch.compile an op is PyTorch's form of it: one graph, every size, fused with what stands beside it."""

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
from tests.members import Member, Op
from tests.pytorch.ops import FUNCTION, SIGMOID, each, every_op_and_form
from tests.ulp import true_sigmoid

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # Inductor's advice on every GPU that has TF32, about matrix products, of which there are none here.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


class Recorder:
    """A compiler backend that runs the graphs as they are and keeps the operators of each."""

    def __init__(self) -> None:
        self.graphs: list[list[object]] = []
        self.backend = aot_autograd(fw_compiler=self._record, bw_compiler=self._record)

    def _record(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        targets = [node.target for node in graph.graph.nodes]
        self.graphs.append([target for target in targets if isinstance(target, torch._ops.OpOverload)])
        return make_boxed_func(graph.forward)  # type: ignore[no-any-return]  # untyped in torch


def _step(form: Op, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of its square."""
    out = form(*leaves)
    return out, *torch.autograd.grad(out.square().sum(), leaves)


@every_op_and_form
def test_operators(kernel_route: Route, launches: list[str], op: Member) -> None:
    """One graph forward and one backward, holding the operators of PyTorch's form and none of our kernels."""
    leaves = [x.requires_grad_() for x in op.operands("matrix", torch.float64, kernel_route.device)]
    recorders = Recorder(), Recorder()
    steps = [
        _step(torch.compile(form, fullgraph=True, dynamic=False, backend=recorder.backend), *leaves)
        for form, recorder in zip((op.ours, op.theirs), recorders, strict=True)
    ]
    torch.testing.assert_close(*steps)
    assert len(recorders[0].graphs) == 2
    assert recorders[0].graphs == recorders[1].graphs
    assert launches == []


@every_op_and_form
def test_dynamic_sizes(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch, op: Member) -> None:
    """One graph each way serves every number of rows, on both sides of the threshold."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(70))
    recorder = Recorder()
    compiled = torch.compile(op.ours, fullgraph=True, dynamic=True, backend=recorder.backend)
    for repeat in (3, 5, 7):
        operands = op.operands("matrix", torch.float64, kernel_route.device)
        leaves = [torch.cat([x] * repeat, dim=int(op.halved == 0)).requires_grad_() for x in operands]
        torch.testing.assert_close(_step(compiled, *leaves), _step(op.theirs, *leaves))
    assert len(recorder.graphs) == 2
    assert launches == []


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


@each(SIGMOID, FUNCTION)
def test_transforms_inside(kernel_route: Route, launches: list[str], op: Member) -> None:
    """vmap over grad, and jvp, inside a compiled function: no graph break, and the values of σ'."""

    def slopes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        per_sample = torch.func.vmap(torch.func.grad(lambda row: op.ours(row).sum()))(x)
        return per_sample * y, torch.func.jvp(op.ours, (x,), (y,))[1]

    x, y = (operand.detach() for operand in _operands(kernel_route, 3, 5))
    s = true_sigmoid(x)
    for result in torch.compile(slopes, fullgraph=True, backend="eager")(x, y):
        torch.testing.assert_close(result.cpu().double(), s * (1 - s) * y.cpu().double(), rtol=1e-6, atol=1e-6)
    assert launches == []


# Compiled autograd itself looks at .grad of the tensors that the eager call saved.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@each(SIGMOID, FUNCTION)
def test_compiled_autograd(kernel_route: Route, launches: list[str], op: Member) -> None:
    """Compiled autograd traces the backward of an eager call, whose forward took our kernel, to PyTorch's operator."""
    recorder = Recorder()
    with torch._dynamo.compiled_autograd._enable(torch.compile(fullgraph=True, backend=recorder.backend)):
        _check_step(lambda x, y: op.ours(x) * y, *_operands(kernel_route, 3, 5))
    (backward,) = recorder.graphs
    assert backward.count(torch.ops.aten.sigmoid_backward.default) == 1
    assert launches == ["sigmoid"]


def _check_fused(x: Tensor, y: Tensor, *, dynamic: bool | None = None) -> None:
    """Inductor's code for σ(x)·y is one kernel forward, sigmoid and multiply in it, and one backward."""
    step = torch.compile(lambda x, y: sigmoid(x) * y, fullgraph=True, dynamic=dynamic)
    _, codes = run_and_get_code(_check_step, step, x, y)
    (forward,), (backward,) = (re.findall(r"^(\w+) = async_compile\.", code, re.MULTILINE) for code in codes)
    assert "fused_mul_sigmoid" in forward
    assert "fused_mul_sigmoid_sigmoid_backward" in backward


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_fuses_it(kernel_route: Route, launches: list[str], dynamic: bool) -> None:
    """Forward and backward are one kernel each, which multiplies, too."""
    _check_fused(*_operands(kernel_route, 33, 32), dynamic=dynamic)
    assert launches == []


@pytest.mark.gpu
def test_large_tensors_are_fused_too(launches: list[str]) -> None:
    """Where the eager call takes our kernel by size, the compiled one is still Inductor's, and one kernel each way."""
    x, y = _operands(CUDA, dispatch.MIN_ELEMENTS["sigmoid"])
    sigmoid(x.detach())
    assert launches == ["sigmoid"]
    launches.clear()
    _check_fused(x, y)
    assert launches == []
