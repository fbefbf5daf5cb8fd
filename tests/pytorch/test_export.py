"""Exported programs hold PyTorch's operators: torch.export, AOTInductor packages, and ONNX with one Sigmoid node."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import cpp_extension

from tests.conftest import CUDA, Route
from tests.members import Member, Op
from tests.pytorch.ops import FORMS, SIGMOID, each, every_op_and_form

pytestmark = [
    # Inductor's advice on every GPU that has TF32, about matrix products, of which there are none here.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    # Copying an exported program meets PyTorch's own deprecated class.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


class _Calling(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, *operands: Tensor) -> Tensor:
        return self.op(*operands)


def _operands(op: Member, device: str, repeat: int = 1) -> tuple[Tensor, ...]:
    operands = op.operands("matrix", torch.float64, device)
    return tuple(torch.cat([x] * repeat, dim=int(op.halved == 0)) for x in operands)


def _export(op: Member, form: Op, device: str, *, strict: bool = False) -> ExportedProgram:
    """For any number of rows."""
    shapes: Any = (tuple({int(op.halved == 0): Dim("rows")} for _ in range(op.arity)),)
    return torch.export.export(_Calling(form), _operands(op, device), dynamic_shapes=shapes, strict=strict)


def _check(function: Callable[..., Any], op: Member, device: str) -> None:
    """At the size it was exported with, and at another."""
    for repeat in (1, 3):
        operands = _operands(op, device, repeat)
        torch.testing.assert_close(function(*operands), op.truth(*operands), check_device=False)


@every_op_and_form
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(kernel_route: Route, launches: list[str], op: Member, strict: bool) -> None:
    """The program holds the operators of PyTorch's form, and serves every size; exporting launches nothing."""
    programs = [_export(op, form, kernel_route.device, strict=strict) for form in (op.ours, op.theirs)]
    graphs = [program.run_decompositions({}).graph for program in programs]
    ours, theirs = ([str(node.target) for node in graph.nodes if node.op == "call_function"] for graph in graphs)
    assert ours == theirs
    _check(programs[0].module(), op, kernel_route.device)
    assert launches == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aot_inductor(kernel_route: Route, launches: list[str], tmp_path: Path) -> None:
    """A package compiled ahead of time loads and runs at other sizes, with no kernel of ours in it."""
    if kernel_route is CUDA and not Path(cpp_extension.CUDA_HOME or "", "include", "cuda.h").exists():
        pytest.skip("AOTInductor needs the headers of the CUDA toolkit")
    program = _export(SIGMOID, SIGMOID.ours, kernel_route.device)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "sigmoid.pt2"))
    _check(torch._inductor.aoti_load_package(package), SIGMOID, kernel_route.device)
    assert launches == []


@each(*FORMS)
def test_onnx(fallback: Route, op: Member) -> None:
    """The ONNX model has one Sigmoid node, and onnxruntime computes the same with it at another size."""
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the exported model")
    program = torch.onnx.export(_export(op, op.ours, "cpu"), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model_proto.graph.node] == ["Sigmoid"]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (argument,) = session.get_inputs()
    _check(lambda x: torch.from_numpy(session.run(None, {argument.name: x.numpy()})[0]), op, "cpu")
