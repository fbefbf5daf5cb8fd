"""Exported programs hold ``aten.sigmoid``: torch.export, AOTInductor packages, and ONNX with one Sigmoid node."""

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
from tests.pytorch.ops import FORMS, every_form
from tests.ulp import true_sigmoid

pytestmark = [
    # Inductor's advice on every GPU that has TF32, about matrix products, of which there are none here.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    # Copying an exported program meets PyTorch's own deprecated class.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

aten = torch.ops.aten


class Gate(nn.Module):
    """σ(x)·y with one of the ways to call σ."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x) * y


def _operands(device: str, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 4, generator=generator).to(device), torch.randn(rows, 4, generator=generator).to(device)


def _export(form: str, device: str, *, strict: bool, dynamic: bool) -> ExportedProgram:
    shapes: Any = ({0: Dim("rows")}, {0: Dim("rows")}) if dynamic else None
    return torch.export.export(Gate(FORMS[form]), _operands(device, 3), dynamic_shapes=shapes, strict=strict)


def _assert_gates(function: Callable[..., Any], device: str, rows: int) -> None:
    """``function`` computes σ(x)·y, by comparison with float64."""
    x, y = _operands(device, rows)
    expected = true_sigmoid(x) * y.cpu().double()
    torch.testing.assert_close(function(x, y).cpu().double(), expected, rtol=1e-6, atol=1e-6)


@every_form
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(kernel_route: Route, launches: list[str], form: str, strict: bool, dynamic: bool) -> None:
    """The program is σ and the multiply in PyTorch's operators, for the sizes asked for; exporting launches nothing."""
    program = _export(form, kernel_route.device, strict=strict, dynamic=dynamic)
    operators = [node.target for node in program.run_decompositions({}).graph.nodes if node.op == "call_function"]
    assert [op for op in operators if op is not aten.clone.default] == [aten.sigmoid.default, aten.mul.Tensor]
    for rows in (3, 7, 1000) if dynamic else (3,):
        _assert_gates(program.module(), kernel_route.device, rows)
    assert launches == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_aot_inductor(kernel_route: Route, launches: list[str], tmp_path: Path) -> None:
    """A package compiled ahead of time loads and runs at other sizes, with no kernel of ours in it."""
    if kernel_route is CUDA and not Path(cpp_extension.CUDA_HOME or "", "include", "cuda.h").exists():
        pytest.skip("AOTInductor needs the headers of the CUDA toolkit")
    program = _export("sigmoid", kernel_route.device, strict=False, dynamic=True)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "gate.pt2"))
    _assert_gates(torch._inductor.aoti_load_package(package), kernel_route.device, 7)
    assert launches == []


@every_form
def test_onnx(fallback: Route, form: str) -> None:
    """The ONNX model has one Sigmoid node, and onnxruntime computes the same with it at another size."""
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the exported model")
    program = torch.onnx.export(_export(form, "cpu", strict=False, dynamic=True), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model_proto.graph.node] == ["Sigmoid", "Mul"]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [argument.name for argument in session.get_inputs()]

    def run(*operands: Tensor) -> Tensor:
        (out,) = session.run(None, {name: x.numpy() for name, x in zip(names, operands, strict=True)})
        return torch.from_numpy(out)

    _assert_gates(run, "cpu", 7)


def test_the_operator_check_can_fail() -> None:
    """A σ written in other operators is told apart."""
    program = torch.export.export(Gate(lambda x: 1 / (1 + torch.exp(-x))), _operands("cpu", 3))
    assert aten.sigmoid.default not in [node.target for node in program.graph.nodes]
