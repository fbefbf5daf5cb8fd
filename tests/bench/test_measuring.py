"""The default command: which cases it measures, all forms of each, proved baselines; time and Ctrl-C end it cleanly."""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import cases, compiled, measure, others, results, run, timing
from bench.__main__ import main
from bench.cases import DTYPES, Case, Operands
from bench.codegen.catalogue import FAMILY, SIGMOID
from bench.measure import Race
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, PASSES, Op, kernels_from
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, WALL, WARM, Measurement, Results
from bench.timing import Effort
from bench.verify import verify
from sigmoid_op import dispatch
from tests.bench.test_timing import CudaOnPaper
from tests.bench.test_verification import WrongGradient
from tests.conftest import Route

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LEAST_EFFORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3)
ROWS = {row.name: row for row in OPS}
Measured = Callable[..., tuple[int, Path]]
every_row = pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)


@pytest.fixture
def measured(fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Runs the default command on the CPU, as short as can be; returns its exit code and its results file."""
    monkeypatch.setattr(run, "QUICK_EFFORT", LEAST_EFFORT)
    monkeypatch.setattr(timing, "WALL_SAMPLE_NS", 1)

    def command(*options: str) -> tuple[int, Path]:
        return main(["--device", "cpu", "--quick", "--out", str(tmp_path), *options]), tmp_path / "results.json"

    return command


def _load(path: Path) -> Results:
    record = results.load(path)
    found = results.load_measurements(record)
    return Results(path, record["environment"], measurements=found, status=record["status"])


def test_every_op_is_measured_and_reported(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows, both passes, every sample, the environment; no picture of noise; the tables again from the file."""
    code, path = measured("--ops", "all", "--dtypes", "float16", "--sizes", "2^12")
    assert code == 0
    found = _load(path)
    assert (found.status, found.environment["device_type"]) == ("complete", "cpu")
    assert [(m.case["op"], m.pass_, m.clock, m.route, m.failures) for m in found.measurements] == [
        (row.name, pass_, WALL, "torch", {}) for row in OPS for pass_ in (FORWARD, BOTH)
    ]
    for m in found.measurements:
        has_copy = m.case["op"] in ("sigmoid", "silu", "quick_gelu", "logsigmoid")
        forms = {OURS, TORCH, COPY} if has_copy else {OURS, TORCH}
        assert {name: len(samples) for name, samples in m.samples_ns.items()} == dict.fromkeys(forms, 3)
    printed = capsys.readouterr().out
    assert "no picture is drawn" in printed
    assert not list(tmp_path.glob("*.png"))
    before = path.read_bytes()
    assert main(["report", str(path), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.partition("Results in")[0] == printed.partition("Results in")[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ("--sizes 1 2^12", ["sigmoid 2^0", "sigmoid 2^12", "sigmoid 2^12 + 1", "sigmoid 2^12 [1:]"]),
        ("--sizes 1000 --ops glu", ["glu 1000", "glu, dim=1 1000"]),
        ("--sizes 1002 --ops glu", ["glu 1002"]),
    ],
)
def test_cases_are_those_asked_for(options: str, labels: list[str], measured: Measured) -> None:
    """Of sigmoid alone odd lengths and misaligned views, at some sizes; a gate per channel needs whole pixels."""
    _, path = measured("--dtypes", "bfloat16", *options.split())
    assert list(dict.fromkeys(m.case["label"] for m in _load(path).measurements)) == labels


def test_a_size_that_no_row_takes_ends_in_one_line(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it is to be a multiple of, and code 2."""
    monkeypatch.setattr(run, "OPS", (ROWS["glu, dim=1"],))
    assert measured("--ops", "glu", "--sizes", "1002")[0] == 2
    assert "a size is a multiple of 4, not 1002" in capsys.readouterr().err


@pytest.mark.parametrize("n_elements", [4, 1000, 2**18])
@every_row
def test_inputs_fit_any_size(row: Op, n_elements: int) -> None:
    """The result, for a loss the logits, has the elements asked for, and forms agree on it."""
    operands = Case.of_size(row, torch.float32, n_elements).operands(CPU)
    out = row.pytorch(*operands.inputs)
    assert (operands.inputs[0] if out.dim() == 0 else out).numel() == n_elements
    torch.testing.assert_close(row.ours(*operands.inputs), out)


KERNELS = {
    "sigmoid": "", "sigmoid_gate": "gate", "sigmoid_gate, SE": "channel gate",
    "sigmoid_gate, SE channels_last": "channel gate NHWC", "sigmoid_gate, heads": "channel gate", "silu": "silu",
    "quick_gelu": "quick_gelu", "swiglu": "swiglu", "swiglu, packed": "packed swiglu",
    "swiglu, gpt-oss": "interleaved swiglu", "glu": "glu", "logsigmoid": "logsigmoid", "bce_with_logits": "BCE",
    "sigmoid_focal_loss": "focal", "sigmoid_focal_loss, classes": "focal of classes",
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_the_bytes_are_those_of_the_kernels(name: str) -> None:
    """What the table says of an op is what the operands of its two kernels come to; a channel's gate is not counted."""
    by_name = {kernel.name: kernel for kernel in (*SIGMOID, *FAMILY)}
    kernels = by_name[KERNELS[name] or "forward"], by_name[f"{KERNELS[name]} backward".strip()]
    assert tuple(round(kernel.bytes_per_element(torch.float32) / 4, 1) for kernel in kernels) == ROWS[name].moved


def test_recorded_cases_carry_strides_and_counts(fallback: object) -> None:
    """The recorded file names its source; a strided x and a stride-0 gradient come out as recorded, and are right."""
    source = json.loads(cases.RECORDED_CALLS.read_text())
    assert ("tritonbench" in source["source"], source["license"]) == (True, "BSD-3-Clause")
    recorded = list(cases.recorded())
    assert sum(case.count for case in recorded) == 592
    assert len({(case.x, case.grad_out, case.passes, case.dtype) for case in recorded}) == len(recorded) == 88
    strided = next(case for case in recorded if case.x and case.x.stride == (619520, 123904, 352, 1))
    expanded = next(case for case in recorded if case.grad_out and case.grad_out.stride == (0, 0))
    assert strided.operands(CPU).inputs[0].stride() == (619520, 123904, 352, 1)
    assert expanded.operands(CPU).grad_out.stride() == (0, 0)
    assert expanded.bytes_moved(BACKWARD) == 2 * (1 + 2 * 96 * 65)
    for case in (strided, expanded):
        verify(torch.sigmoid, case, CPU)


def test_uneven_cases_are_what_they_are_called() -> None:
    """One element more; ``[1:]`` begins one into its allocation. Of both the bytes that are read once, written once."""
    odd, case = cases.uneven(ROWS["sigmoid"], torch.bfloat16, 2**12)
    assert (odd.n_elements, odd.operands(CPU).inputs[0].numel()) == (2**12 + 1, 2**12 + 1)
    x = case.operands(CPU).inputs[0]
    assert (x.storage_offset(), x.numel(), x.is_contiguous()) == (1, 2**12, True)
    assert [case.bytes_moved(pass_) for pass_ in PASSES] == [2**14, 3 * 2**13, 5 * 2**13]
    of_pytorch = Case.of_size(ROWS["swiglu"], torch.bfloat16, 2**12).to_json()["pytorch_bytes"]
    assert of_pytorch == {FORWARD: 5 * 2**13, BACKWARD: 9 * 2**13, BOTH: 14 * 2**13}


def test_what_is_wrong_or_raises_is_reported_and_the_rest_is_timed(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, a line for each; no sample of it in any pass, and all of PyTorch's and the other ops'."""

    def broken(gate: Tensor, up: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")

    wrong = replace(ROWS["sigmoid"], ours=WrongGradient.apply)
    monkeypatch.setattr(run, "OPS", (wrong, replace(ROWS["swiglu"], ours=broken), ROWS["silu"]))
    code, path = measured("--ops", "all", "--dtypes", "float32", "--sizes", "2^12")
    assert code == 1
    timed = {m.case["op"]: set(m.samples_ns) for m in _load(path).measurements}
    assert timed == {"sigmoid": {TORCH, COPY}, "swiglu": {TORCH}, "silu": {OURS, TORCH, COPY}}
    text = capsys.readouterr().out
    assert "FAILED float32 sigmoid 2^12, sigmoid_op: WrongResultError: gradient of operand 0" in text
    assert "swiglu 2^12, sigmoid_op: RuntimeError: no kernel for this" in text


def test_interrupting_keeps_what_was_measured(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during the third measurement: the first two are in the file and in the table; exit code 130."""
    interleave, calls = timing.interleave, itertools.count()

    def interrupted(*arguments: Any) -> dict[str, list[float]]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return interleave(*arguments)

    monkeypatch.setattr(timing, "interleave", interrupted)
    code, path = measured("--sizes", "1000", "--dtypes", "float32", "float64")
    assert code == 130
    found = _load(path)
    assert [(m.case["dtype"], m.pass_) for m in found.measurements] == [("float32", FORWARD), ("float32", BOTH)]
    assert f"Results in {path.parent} (interrupted): results.json" in capsys.readouterr().out


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
    compiled.compiled(Case.of_size(ROWS["silu"], torch.float32, 64), CPU)
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


@pytest.mark.parametrize("name", ["sigmoid", "swiglu"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("clock", [COLD, WARM])
def test_device_time_is_of_calls_on_operands_of_their_own(
    name: str, pass_: str, clock: str, fallback: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, torch.cuda replaced: cold, one set of operands a call; warm, one; 2 ms shared among the calls."""
    CudaOnPaper(monkeypatch)
    monkeypatch.setattr(timing, "REPLAY_BYTES", 2**18)
    case = Case.of_size(ROWS[name], torch.float32, 2**14)
    race = Race.of(case, CPU, LEAST_EFFORT, measure.pair(case))
    draw, drawn = Op.operands, []

    def count(*args: Any) -> tuple[Tensor, ...]:
        drawn.append(args)
        return draw(*args)

    monkeypatch.setattr(Op, "operands", count)
    n_calls = timing.calls_per_replay(case.bytes_moved(pass_))
    m = race.device_time(pass_, clock)
    assert (m.failures, m.clock, m.calls_per_sample) == ({}, clock, n_calls)
    assert m.samples_ns == {form: [round(2e6 / n_calls, 1)] * 3 for form in race.makers}
    assert len(drawn) == len(race.makers) * (n_calls if clock == COLD else 1) + 1  # and one for the route


@every_row
def test_the_route_is_told_by_the_gradient(row: Op, kernel_route: Route) -> None:
    """A kernel of ours, or PyTorch's operators below the threshold."""
    case, device = Case.of_size(row, torch.float32, 64), torch.device(kernel_route.device)
    assert measure.route(case, device) == "kernel"
    with kernels_from(2**20):
        assert measure.route(case, device) == "torch"


def test_time_drops_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five cases that take 4 seconds each of 10, the last two are counted as left out; each is told its share."""
    now, efforts = 0.0, []

    def four_seconds(case: Case, device: torch.device, effort: Effort, compiles: bool | None) -> list[Measurement]:
        nonlocal now
        now += 4
        efforts.append(effort.seconds)
        return []

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(run, "measure", four_seconds)
    chosen = [Case.of_size(ROWS["silu"], torch.float32, n) for n in (1, 2, 3, 4, 5)]
    found = Results(tmp_path / "results.json")
    run.measure_all(chosen, CPU, found, Effort(1e9, 1, 1), seconds=10)
    assert (found.status, found.environment["cases_left_out"]) == ("out of time", 2)
    assert efforts == [10 / 5 / 16, 6 / 4 / 16, 2 / 3 / 16]  # half of it for at most eight measurements


def test_sizes_come_in_priority_order_and_each_in_all_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: the largest tensors' sizes first, uneven ones last; of several ops all at one size before the next."""
    monkeypatch.setattr(run, "free_bytes", lambda device: 2**50)
    parsed = argparse.Namespace(cases="grid", ops=["sigmoid"], sizes=None, dtypes=None, quick=False)
    chosen, left_out = run.select(parsed, CUDA)
    assert left_out == []
    assert [(case.n_elements, case.dtype) for case in chosen[:8]] == [
        (n, dtype) for n in (2**26, 2**30) for dtype in DTYPES.values()
    ]
    assert [case.kind for case in chosen] == sorted((case.kind for case in chosen), key="size".__ne__)
    parsed.ops = ["silu", "swiglu"]
    chosen, _ = run.select(parsed, CUDA)
    assert [case.row.name for case in chosen[:3]] == ["silu", "swiglu", "swiglu, packed"]
    assert len({(case.dtype, case.n_elements) for case in chosen[:3]}) == 1


def test_compiled_code_is_timed_where_it_was_asked_for() -> None:
    """By default on CUDA, at two sizes: of σ in every dtype, of other ops in bfloat16. No backward of it alone."""
    everywhere = [
        (name, n, dtype)
        for name in ("sigmoid", "silu")
        for n in (2**12, 2**20)
        for dtype in DTYPES.values()
        if COMPILED in measure.forms(Case.of_size(ROWS[name], dtype, n), CUDA, None)
    ]
    assert everywhere == [*(("sigmoid", 2**12, dtype) for dtype in DTYPES.values()), ("silu", 2**12, torch.bfloat16)]
    case = Case.of_size(ROWS["silu"], torch.float32, 64)
    assert [COMPILED in measure.forms(case, CPU, compiles) for compiles in (None, False, True)] == [False, False, True]
    race = Race(case, CPU, LEAST_EFFORT, {TORCH: Operands.copy, COMPILED: Operands.copy}, {})
    assert {pass_: list(race.wall_time(pass_).samples_ns) for pass_ in PASSES} == {
        FORWARD: [TORCH, COMPILED], BACKWARD: [TORCH], BOTH: [TORCH, COMPILED]
    }  # fmt: skip


def test_the_kernels_are_what_is_verified_and_has_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the thresholds, too; wall time is a user's, with the thresholds as they are."""
    seen: dict[str, set[int]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.setdefault(name, set()).update(dispatch.MIN_ELEMENTS.values())

    monkeypatch.setattr(measure, "verify", note("verify"))
    for name in ("wall_time", "device_time"):
        monkeypatch.setattr(Race, name, note(name))
    monkeypatch.setattr(timing, "fits_in_l2", lambda *_: True)
    with kernels_from(2**20):
        list(measure.measure(Case.of_size(ROWS["sigmoid"], torch.float32, 64), CUDA, LEAST_EFFORT, False))
    assert seen == {"verify": {1}, "wall_time": {2**20}, "device_time": {1}}


def test_thresholds_are_set_for_all_ops_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number for all, then those of before."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", {"sigmoid": 5, "bce": 1})
    with kernels_from(7):
        assert dispatch.MIN_ELEMENTS == {"sigmoid": 7, "bce": 7}
    assert dispatch.MIN_ELEMENTS == {"sigmoid": 5, "bce": 1}


@pytest.mark.gpu
def test_every_op_is_measured_on_cuda(tmp_path: Path) -> None:
    """Wall and device time of every pass on the kernels, and peak memory: no failure, so every capture worked."""
    options = ["--ops", "all", "--quick", "--no-compile", "--sizes", "2^24", "--dtypes", "bfloat16"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    clocks = [*product([WALL], (FORWARD, BOTH)), *product([COLD], PASSES)]
    found = _load(tmp_path / "results.json").measurements
    assert [(m.case["op"], (m.clock, m.pass_)) for m in found] == [(row.name, each) for row in OPS for each in clocks]
    for m in found:
        assert {OURS, TORCH} <= set(m.samples_ns)
        assert m.peak_bytes[OURS] > 0 if m.clock == WALL else m.route == "kernel"


@pytest.mark.gpu
def test_all_forms_and_clocks_are_measured_on_cuda(tmp_path: Path) -> None:
    """σ at a size that fits in L2: wall, cold and warm; torch.compile in every pass but backward."""
    options = ["--quick", "--compile", "--sizes", "2^20", "--dtypes", "bfloat16", "--out", str(tmp_path)]
    assert main(options) == 0
    found = _load(tmp_path / "results.json").measurements
    assert {m.clock for m in found} == {WALL, COLD, WARM}
    for m in found:
        assert set(m.samples_ns) == {OURS, TORCH, COPY, *([COMPILED] if m.pass_ != BACKWARD else [])}
