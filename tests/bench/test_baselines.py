"""What is timed beside the library: torch.compile, proved compiled, and other libraries' forms of the op."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench import compiled, measure, others
from bench.cases import DTYPES, Case, Operands
from bench.measure import Race
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, PASSES, Op
from bench.results import COMPILED, TORCH
from bench.timing import Effort
from bench.verify import verify

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SILU = next(row for row in OPS if row.name == "silu")


def test_an_eager_function_does_not_pass_for_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named torch.compile is no eager fallback, in no use of it, and does not compile again when timed."""
    x = torch.randn(16)
    with pytest.raises(compiled.NotCompiledError, match="eagerly"):
        compiled.assert_compiled(lambda: torch.sigmoid(x), n_kernels=1)
    sizes = itertools.count(2)
    grow = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with pytest.raises(RuntimeError, match="recompile"):
        compiled.assert_compiled(lambda: grow(torch.zeros(next(sizes))), n_kernels=0)
    proved: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(compiled, "assert_compiled", lambda call, n_kernels: proved.append(n_kernels))
    compiled.compiled(Case.of_size(SILU, torch.float32, 64), CPU)
    assert proved == [1, 2]


aten = torch.ops.aten
STAND_INS: dict[str, dict[str, Any]] = {  # others' functions that are timed, with their signatures, by PyTorch
    "liger_kernel.ops.swiglu": {"LigerSiLUMulFunction": SimpleNamespace(apply=lambda a, b: F.silu(a) * b)},
    "flag_gems": {
        "silu": F.silu, "silu_backward": lambda grad_output, self: aten.silu_backward(grad_output, self),
        "glu": F.glu, "glu_backward": lambda grad_output, self, dim=-1: aten.glu_backward(grad_output, self, dim),
    },
    "flag_gems.fused": {"silu_and_mul": lambda a, b: F.silu(a) * b},
}  # fmt: skip
OTHERS = [(row, label) for row in OPS for label in row.others]


@pytest.mark.parametrize(("row", "label"), OTHERS, ids=lambda one: getattr(one, "name", one))
def test_forms_of_other_libraries_are_the_op(row: Op, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed as theirs gives the op's result and gradients: functions and arguments are put together rightly."""
    monkeypatch.setattr(others, "import_module", lambda name: SimpleNamespace(**STAND_INS[name]))
    verify(row.others[label](), Case.of_size(row, torch.float32, 2**12), CPU)


def test_compiled_code_is_timed_where_it_was_asked_for() -> None:
    """By default on CUDA, at two sizes: of σ in every dtype, of other ops in bfloat16. No backward of it alone."""
    everywhere = [
        (row.name, n, dtype)
        for row in (OPS[0], SILU)
        for n in (2**12, 2**20)
        for dtype in DTYPES.values()
        if COMPILED in measure.forms(Case.of_size(row, dtype, n), CUDA, None)
    ]
    assert everywhere == [*(("sigmoid", 2**12, dtype) for dtype in DTYPES.values()), ("silu", 2**12, torch.bfloat16)]
    case = Case.of_size(SILU, torch.float32, 64)
    assert [COMPILED in measure.forms(case, CPU, compiles) for compiles in (None, False, True)] == [False, False, True]
    race = Race(case, CPU, Effort(0, 2, 2), {TORCH: Operands.copy, COMPILED: Operands.copy}, {})
    assert {pass_: list(race.wall_time(pass_).samples_ns) for pass_ in PASSES} == {
        FORWARD: [TORCH, COMPILED], BACKWARD: [TORCH], BOTH: [TORCH, COMPILED]
    }  # fmt: skip
