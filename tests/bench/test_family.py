"""python -m bench --ops: every op of the family is compared with float64, timed, and judged by its goal."""

import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from bench import clocks, family, family_calls, family_report
from bench.__main__ import main
from bench.cases import PASSES
from bench.clocks import Effort
from bench.codegen.catalogue import FAMILY as FAMILY_KERNELS
from bench.family_calls import FamilyCase, verify
from bench.members import LEAST_ELEMENTS, MEMBERS, Member
from bench.providers import COMPILED, OURS, TORCH
from bench.results import COLD, FAMILY, WALL, Measurement, Results
from bench.rivals import Op
from bench.verify import WrongResultError
from tests.bench.test_measuring import CudaOnPaper

CPU = torch.device("cpu")
LEAST_EFFORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3)
SILU = next(member for member in MEMBERS if member.name == "silu")
SWIGLU = next(member for member in MEMBERS if member.name == "swiglu")


@pytest.fixture
def measured(fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Runs the command on the CPU, as short as can be; returns its exit code and its results file."""
    monkeypatch.setattr(family, "QUICK_EFFORT", LEAST_EFFORT)
    monkeypatch.setattr(clocks, "calls_per_wall_sample", lambda calls, synchronize: 1)

    def run(*options: str) -> tuple[int, Path]:
        return main(["--device", "cpu", "--quick", "--out", str(tmp_path), *options]), tmp_path / "results.json"

    return run


@pytest.mark.usefixtures("two_threads")
def test_every_op_is_measured_and_reported(
    measured: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All members, forward and with backward, every sample; the tables again from the file, also for a README."""
    code, path = measured("--ops", "all", "--dtypes", "float16")
    assert code == 0
    results = Results.load(path)
    assert (results.kind, results.status, results.failures) == (FAMILY, "complete", [])
    assert results.environment["torch_threads"] == 1
    assert [(m.case["member"], m.pass_, m.clock) for m in results.measurements] == [
        (member.name, pass_, WALL) for member in MEMBERS for pass_ in ("forward", "forward+backward")
    ]
    for m in results.measurements:
        assert {name: len(samples) for name, samples in m.samples_ns.items()} == {OURS: 3, TORCH: 3}
        assert m.route == "torch"
    printed = capsys.readouterr().out
    assert "fallback" in printed
    assert (tmp_path / "ratio-wall.png").stat().st_size > 10_000
    assert main(["report", str(path), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.partition("Results in")[0] == printed.partition("Results in")[0]
    assert main(["report", str(path), "--markdown"]) == 0
    assert "| swiglu, packed | float16 | not measured |" in capsys.readouterr().out


def test_ops_are_chosen_by_name_and_sizes_hold_whole_images(
    measured: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One op with all its kinds of input; a size that its shapes do not divide ends in one line and code 2."""
    code, path = measured("--ops", "glu", "--dtypes", "float32", "--sizes", str(2 * LEAST_ELEMENTS))
    assert code == 0
    assert {m.case["label"] for m in Results.load(path).measurements} == {"glu 2^19", "glu, dim=1 2^19"}
    capsys.readouterr()
    assert measured("--ops", "glu", "--sizes", "1000")[0] == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    with pytest.raises(SystemExit, match="2"):
        measured("--ops", "glu", "--cases", "recorded")


class OffByAThousandth(torch.autograd.Function):
    """silu with a wrong gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.NestedIOFunction, grad_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        grad_in: Tensor = 1.001 * grad_out * s * (1 + x * (1 - s))
        return grad_in


def test_a_wrong_gradient_is_reported_and_not_timed(
    measured: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, a line that says so, no sample of it in any pass, not even in forward, which is right."""
    monkeypatch.setattr(family, "MEMBERS", (replace(SILU, ours=OffByAThousandth.apply),))
    code, path = measured("--ops", "all", "--dtypes", "float32")
    assert code == 1
    for m in Results.load(path).measurements:
        assert set(m.samples_ns) == {TORCH}
    assert "FAILED float32 silu 2^18, sigmoid_op: WrongResultError: gradient of operand 0" in capsys.readouterr().out


def test_what_raises_is_reported_and_the_rest_goes_on(
    measured: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An op that fails costs its own figures: those of PyTorch and of the other ops are there."""

    def broken(gate: Tensor, up: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(family, "MEMBERS", (replace(SWIGLU, ours=broken), SILU))
    code, path = measured("--ops", "all", "--dtypes", "bfloat16")
    assert code == 1
    timed = {m.case["member"]: set(m.samples_ns) for m in Results.load(path).measurements}
    assert timed == {"swiglu": {TORCH}, "silu": {OURS, TORCH}}
    assert "swiglu 2^18, sigmoid_op: RuntimeError: no kernel for this" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_verification_tells_rounding_from_a_mistake(member: Member, dtype: torch.dtype) -> None:
    """Eager PyTorch passes in every dtype; its op on operands that are a little off does not."""
    case = FamilyCase(member, dtype, LEAST_ELEMENTS)
    verify(member.eager, case, CPU)

    def off(x: Tensor, *others: Tensor) -> Tensor:
        return member.eager(x + 0.5, *others)

    with pytest.raises(WrongResultError, match="eps from float64"):
        verify(off, case, CPU)


def _stand_ins() -> dict[str, ModuleType]:
    """The functions of Liger-Kernel and FlagGems that are timed, with the signatures they have there, by PyTorch."""

    def silu_backward(grad_output: Tensor, self: Tensor) -> Tensor:
        grad_input: Tensor = torch.ops.aten.silu_backward(grad_output, self)
        return grad_input

    def glu(self: Tensor, dim: int = -1) -> Tensor:
        return F.glu(self, dim)

    def glu_backward(grad_output: Tensor, self: Tensor, dim: int = -1) -> Tensor:
        grad_input: Tensor = torch.ops.aten.glu_backward(grad_output, self, dim)
        return grad_input

    def silu_and_mul(a: Tensor, b: Tensor) -> Tensor:
        return F.silu(a) * b

    liger = SimpleNamespace(apply=lambda a, b, gate_multiplier=1.0, down_multiplier=1.0: F.silu(a) * b)
    contents: dict[str, dict[str, Any]] = {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.swiglu": {"LigerSiLUMulFunction": liger},
        "flag_gems": {"silu": F.silu, "silu_backward": silu_backward, "glu": glu, "glu_backward": glu_backward},
        "flag_gems.fused": {"silu_and_mul": silu_and_mul},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, functions in contents.items():
        vars(modules[name]).update(functions)
    return modules


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.rivals], ids=lambda member: member.name)
def test_forms_of_other_packages_are_the_op(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed as theirs gives the op's result and gradients: functions and arguments are put together rightly."""
    for name, module in _stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)
    for make in member.rivals.values():
        verify(make(), FamilyCase(member, torch.float32, LEAST_ELEMENTS), CPU)


def _swiglu_with_a_wrong_gradient_of_up(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * (up.detach() + 1.001 * (up - up.detach()))


@pytest.mark.parametrize(
    ("what", "member", "wrong"),
    [
        ("forward", SILU, lambda x: F.silu(x) + 0.5),
        ("forward: nan", SILU, lambda x: F.silu(x) * torch.nan),
        ("forward: torch.float64", SILU, lambda x: F.silu(x).double()),
        ("gradient of operand 0", SILU, OffByAThousandth.apply),
        ("gradient of operand 1", SWIGLU, _swiglu_with_a_wrong_gradient_of_up),
    ],
)
def test_the_result_and_every_gradient_are_verified(what: str, member: Member, wrong: Op) -> None:
    """A mistake in one of them alone is enough, and NaN is one."""
    with pytest.raises(WrongResultError, match=f"^{what}"):
        verify(wrong, FamilyCase(member, torch.float32, LEAST_ELEMENTS), CPU)


def test_device_time_is_that_of_every_pass(fallback: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, torch.cuda replaced: each call of a replay has operands of its own; 2 ms are shared among them."""
    CudaOnPaper(monkeypatch)
    monkeypatch.setattr(clocks, "REPLAY_BYTES", 2**24)
    case = FamilyCase(SWIGLU, torch.float32, LEAST_ELEMENTS)
    right = {OURS: SWIGLU.ours, TORCH: SWIGLU.eager}
    for pass_, n_calls in zip(PASSES, (6, 4, 2), strict=True):
        m = family.device_time(case, pass_, CPU, right, {}, LEAST_EFFORT)
        assert (m.failures, m.clock, m.calls_per_sample) == ({}, COLD, n_calls)
        assert m.samples_ns == {name: [round(2e6 / n_calls, 1)] * 3 for name in right}


def _on_paper(member: str, n_elements: int, ratio: float, peak: int) -> list[Measurement]:
    case = {
        "label": member, "member": member, "dtype": "float32", "n_elements": n_elements, "goal": 1.6,
        "eager_bytes_moved": dict.fromkeys(PASSES, 20 * n_elements),
    }  # fmt: skip
    samples = {OURS: [100.0], TORCH: [100 * ratio], COMPILED: [99.0]}
    return [
        Measurement(case, "forward+backward", COLD, "kernel", 12 * n_elements, 1, samples),
        Measurement(case, "forward+backward", WALL, "kernel", 12 * n_elements, 1, samples, {OURS: peak, TORCH: 100}),
    ]


def test_goals_are_judged_by_the_worst_case(tmp_path: Path) -> None:
    """One size that misses a goal is enough for "missed"; smaller sizes than the goals speak of do not count."""
    won = _on_paper("won", 2**24, 1.7, 90) + _on_paper("won", 2**20, 0.5, 500)
    lost = _on_paper("lost", 2**24, 1.7, 90) + _on_paper("lost", 2**26, 1.5, 110)
    results = Results(tmp_path / "results.json", {"device_type": "cuda"}, won + lost, kind=FAMILY)
    console = Console(width=190, record=True, file=StringIO())
    *_, goals = family_report.tables(results)
    console.print(goals)
    rows = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row.strip("│").split("│")] for row in rows] == [
        ["won", "1.700 of 1.6: met", "0.990 of 1: missed", "0.900 of 1: met"],
        ["lost", "1.500 of 1.6: missed", "0.990 of 1: missed", "1.100 of 1: missed"],
    ]


def test_rates_are_of_the_bytes_that_moved(tmp_path: Path) -> None:
    """Of 12 bytes an element where the kernel ran, of PyTorch's 20 where its operators ran for the library, too."""
    by_kernel, _ = _on_paper("op", 1000, 2.0, 90)
    both = [by_kernel, replace(by_kernel, route="torch")]
    table, *_ = family_report.tables(Results(tmp_path / "results.json", {"device_type": "cpu"}, both, kind=FAMILY))
    console = Console(width=250, record=True, file=StringIO())
    console.print(table)
    rows = [line.strip("│").split("│") for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[-3:]] for row in rows] == [
        ["12, 20 (1.67×)", "120, 100", "kernel"],
        ["12, 20 (1.67×)", "200, 100", "torch"],
    ]


KERNELS = {
    "sigmoid_gate": "gate",
    "sigmoid_gate, SE": "channel gate",
    "sigmoid_gate, SE channels_last": "channel gate NHWC",
    "silu": "silu",
    "swiglu": "swiglu",
    "swiglu, packed": "packed swiglu",
    "glu": "glu",
    "glu, dim=1": "glu",
    "logsigmoid": "logsigmoid",
    "bce_with_logits": "BCE",
    "bce_with_logits, pos_weight": "BCE",
    "sigmoid_focal_loss": "focal",
}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_bytes_are_those_of_the_kernels(member: Member) -> None:
    """What is counted for an op is what the operands of its two kernels come to; a channel's gate is not counted."""
    by_name = {kernel.name: kernel for kernel in FAMILY_KERNELS}
    names = (KERNELS[member.name], f"{KERNELS[member.name]} backward")
    moved = [round(by_name[name].bytes_per_element(torch.float32) / 4, 2) for name in names]
    assert moved == [member.traffic.forward, member.traffic.backward]


def test_every_use_of_the_compiled_op_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward is a kernel, forward and backward are two: an eager one of them is told."""
    proven: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(family_calls, "assert_compiled", lambda call, n_kernels: proven.append(n_kernels))
    family_calls.compiled(FamilyCase(SILU, torch.float32, LEAST_ELEMENTS), CPU)
    assert proven == [1, 2]


@pytest.mark.gpu
def test_every_op_is_measured_on_cuda(tmp_path: Path) -> None:
    """Wall and device time of every pass on the kernels, and peak memory: no failure, so every capture worked."""
    assert main(["--ops", "all", "--quick", "--sizes", "2^24", "--dtypes", "bfloat16", "--out", str(tmp_path)]) == 0
    results = Results.load(tmp_path / "results.json")
    assert [(m.case["member"], m.clock, m.pass_) for m in results.measurements] == [
        (member.name, clock, pass_)
        for member in MEMBERS
        for clock, passes in ((WALL, family.WALL_PASSES), (COLD, PASSES))
        for pass_ in passes
    ]
    for m in results.measurements:
        assert m.route == "kernel"
        assert {OURS, TORCH} <= set(m.samples_ns)
        assert m.clock == COLD or m.peak_bytes[OURS] > 0


@pytest.mark.gpu
def test_the_compiled_op_is_measured_on_cuda(tmp_path: Path) -> None:
    """torch.compile is timed in every pass but backward alone, which it refuses to repeat."""
    options = ["--quick", "--compile", "--sizes", "2^24", "--dtypes", "bfloat16", "--out", str(tmp_path)]
    assert main(["--ops", "sigmoid_focal_loss", *options]) == 0
    timed = {(m.clock, m.pass_): COMPILED in m.samples_ns for m in Results.load(tmp_path / "results.json").measurements}
    assert timed == {
        **{(WALL, pass_): True for pass_ in family.WALL_PASSES},
        **{(COLD, pass_): pass_ != "backward" for pass_ in PASSES},
    }
