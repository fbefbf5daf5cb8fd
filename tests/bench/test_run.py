"""The default command: its table of ops, its cases, verification before timing, proved baselines, tables, pictures."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from bench import cases, plot, results, run, tables, timing
from bench.__main__ import main
from bench.cases import DTYPES, Case
from bench.codegen.catalogue import FAMILY, SIGMOID
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, PASSES, Op, kernels_from
from bench.reference import ulp_error
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, WALL, WARM, Measurement, Results, run_each
from bench.timing import Effort
from bench.verify import WrongResultError, reference, verify
from sigmoid_op import dispatch
from tests.bench.test_timing import CudaOnPaper
from tests.conftest import Route

CPU = torch.device("cpu")
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
    return Results.of(path, results.load(path))


@pytest.mark.usefixtures("two_threads")
def test_every_op_is_measured_and_reported(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows, both passes, every sample, the environment; no picture of noise; the tables again from the file."""
    code, path = measured("--ops", "all", "--dtypes", "float16", "--sizes", "2^12")
    assert code == 0
    found = _load(path)
    assert (found.status, found.failures, found.environment["torch_threads"]) == ("complete", [], 1)
    assert [(m.case["op"], m.pass_, m.clock, m.route) for m in found.measurements] == [
        (row.name, pass_, WALL, "torch") for row in OPS for pass_ in (FORWARD, BOTH)
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
    assert main(["report", str(path), "--markdown"]) == 0
    assert "nothing to compare" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_the_grid_has_odd_lengths_and_misaligned_views(measured: Measured) -> None:
    """Of sigmoid alone, at some of its sizes, in every dtype asked for."""
    code, path = measured("--sizes", "1", "2^12", "--dtypes", "bfloat16")
    assert code == 0
    labels = {m.case["label"]: m.case["kind"] for m in _load(path).measurements}
    assert labels == {
        "sigmoid 2^0": "size", "sigmoid 2^12": "size", "sigmoid 2^12 + 1": "odd", "sigmoid 2^12 [1:]": "misaligned"
    }  # fmt: skip


def test_a_size_that_no_row_takes_ends_in_one_line(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gate per channel needs whole pixels; other kinds of input of the same op are measured."""
    _, path = measured("--ops", "glu", "--dtypes", "float32", "--sizes", "1002")
    assert {m.case["op"] for m in _load(path).measurements} == {"glu"}
    _, path = measured("--ops", "glu", "--dtypes", "float32", "--sizes", "1000")
    assert {m.case["op"] for m in _load(path).measurements} == {"glu", "glu, dim=1"}
    monkeypatch.setattr(run, "OPS", (ROWS["glu, dim=1"],))
    assert measured("--ops", "glu", "--sizes", "1002")[0] == 2
    assert "a size is a multiple of 4, not 1002" in capsys.readouterr().err


@pytest.mark.parametrize("n_elements", [4, 16, 1000, 2**12, 2**18])
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
    "swiglu, gpt-oss": "interleaved swiglu", "glu": "glu", "glu, dim=1": "glu", "logsigmoid": "logsigmoid",
    "bce_with_logits": "BCE", "bce_with_logits, pos_weight": "BCE", "sigmoid_focal_loss": "focal",
    "sigmoid_focal_loss, classes": "focal of classes",
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in OPS if row.name in KERNELS], ids=lambda row: row.name)
def test_the_bytes_are_those_of_the_kernels(row: Op) -> None:
    """What the table says of an op is what the operands of its two kernels come to; a channel's gate is not counted."""
    by_name = {kernel.name: kernel for kernel in (*SIGMOID, *FAMILY)}
    names = (KERNELS[row.name] or "forward", f"{KERNELS[row.name]} backward".strip())
    assert tuple(round(by_name[name].bytes_per_element(torch.float32) / 4, 1) for name in names) == row.moved


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


def test_a_misaligned_view_is_one() -> None:
    """``[1:]`` begins one element into its allocation; the bytes of each pass are those read once and written once."""
    *_, case = cases.uneven(ROWS["sigmoid"], torch.bfloat16, 2**12)
    x = case.operands(CPU).inputs[0]
    assert (x.storage_offset(), x.numel(), x.is_contiguous()) == (1, 2**12, True)
    assert [case.bytes_moved(pass_) for pass_ in PASSES] == [2**14, 3 * 2**13, 5 * 2**13]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@every_row
def test_verification_tells_rounding_from_a_mistake(row: Op, dtype: torch.dtype) -> None:
    """PyTorch passes in every dtype; its op on operands that are a little off does not."""
    case = Case.of_size(row, dtype, 2**14)
    verify(row.pytorch, case, CPU)

    def off(x: Tensor, *others: Tensor) -> Tensor:
        return row.pytorch(x + 0.5, *others)

    with pytest.raises(WrongResultError, match="eps from float64"):
        verify(off, case, CPU)


class WrongGradient(torch.autograd.Function):
    """A σ whose gradient is off by a thousandth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.sigmoid(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        grad_in: Tensor = 1.001 * grad_out * out * (1 - out)
        return grad_in


def _off_at_the_end(x: Tensor) -> Tensor:
    out = torch.sigmoid(x)
    return torch.cat([out[:-1], out[-1:] + 1])


MISTAKES = [
    ("forward", lambda x: torch.sigmoid(x) * 1.001),
    ("forward", _off_at_the_end),
    ("forward: torch.float64", lambda x: torch.sigmoid(x).double()),
    ("forward", lambda x: torch.sigmoid(x).flatten()),
    ("forward", lambda x: torch.sigmoid(x) * torch.nan),
    ("forward with grad", lambda x: torch.sigmoid(x) * (1.001 if x.requires_grad else 1)),
    ("gradient of operand 0", WrongGradient.apply),
]


@pytest.mark.parametrize(("what", "wrong"), MISTAKES)
def test_each_call_that_is_timed_is_verified(
    what: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mistake in one of them, or in the last of several chunks, and the form is refused."""
    monkeypatch.setattr("bench.verify.CHUNK", 300)
    case = Case.of_size(ROWS["sigmoid"], torch.float32, 1000)
    with pytest.raises(WrongResultError, match=rf"^{what}"):
        verify(wrong, case, CPU)


@every_row
def test_the_reference_is_the_same_in_chunks(row: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by themselves, the mean of means, and shared weights: as if all were taken at once."""
    case = Case.of_size(row, torch.float64, 2**12)
    operands = case.operands(CPU)
    whole, gradients = reference(operands, row.pytorch)
    monkeypatch.setattr("bench.verify.CHUNK", 2**10)
    out, parts = reference(operands, row.pytorch)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(parts, gradients)


def test_verification_sees_a_result_that_was_never_written() -> None:
    """What an earlier form left in memory does not pass: every verification draws its own inputs."""
    remembered: list[Tensor] = []

    def unwritten(x: Tensor) -> Tensor:
        remembered.append(torch.sigmoid(x))
        return remembered[0]

    case = Case.of_size(ROWS["sigmoid"], torch.float32, 1000)
    unwritten(case.operands(CPU).inputs[0])
    with pytest.raises(WrongResultError, match=r"^forward"):
        verify(unwritten, case, CPU)


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


def test_the_reason_of_a_failure_is_told() -> None:
    """Inductor's first line names only itself: what follows is kept, in one line of bounded length."""

    def fail(message: str) -> None:
        raise RuntimeError(message)

    failures: dict[str, str] = {}
    sources = {"short": "backend='inductor' raised:\nTritonError: no\n\n  ptxas", "long": "x\n" * 1000}
    assert run_each(fail, sources, failures) == {}
    assert failures["short"] == "RuntimeError: backend='inductor' raised: TritonError: no ptxas"
    assert len(failures["long"]) == 300


def test_errors_are_counted_in_units_in_the_last_place() -> None:
    """By hand: around 1, at a power of two, in the subnormal range, for 0 and for NaN."""

    def error(got: float, want: float) -> float:
        exact = torch.tensor([want], dtype=torch.float64)
        return float(ulp_error(torch.tensor([got], dtype=torch.float16), exact))

    assert error(1 + 2**-10, 1.0) == 1.0
    assert error(1.0, 1 - 2**-12) == 0.5  # below 1 the ulp is 2^-11
    assert error(2**-24, 0.0) == 1.0
    assert error(3 * 2**-24, 2**-24) == 2.0
    assert error(0.0, 0.0) == 0.0
    assert not error(float("nan"), 1.0) <= 1e9


def test_an_eager_function_does_not_pass_for_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named torch.compile is no eager fallback, in no use of it, and does not compile again when timed."""
    x = torch.randn(16)
    with pytest.raises(run.NotCompiledError, match="eagerly"):
        run.assert_compiled(lambda: torch.sigmoid(x), n_kernels=1)
    sizes = itertools.count(2)
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with pytest.raises(RuntimeError, match="recompile"):
        run.assert_compiled(lambda: compiled(torch.zeros(next(sizes))), n_kernels=0)
    proved: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(run, "assert_compiled", lambda call, n_kernels: proved.append(n_kernels))
    run.compiled(Case.of_size(ROWS["silu"], torch.float32, 64), CPU)
    assert proved == [1, 2]


def _stand_ins() -> dict[str, ModuleType]:
    """The functions of Liger-Kernel and FlagGems that are timed, with the signatures they have there, by PyTorch."""

    def backward_of(op: Any) -> Any:
        return lambda grad_output, self, **options: op(grad_output, self, *options.values())

    liger = SimpleNamespace(apply=lambda a, b, gate_multiplier=1.0, down_multiplier=1.0: F.silu(a) * b)
    contents: dict[str, dict[str, Any]] = {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.swiglu": {"LigerSiLUMulFunction": liger},
        "flag_gems": {
            "silu": F.silu, "silu_backward": backward_of(torch.ops.aten.silu_backward),
            "glu": F.glu, "glu_backward": backward_of(torch.ops.aten.glu_backward),
        },
        "flag_gems.fused": {"silu_and_mul": lambda a, b: F.silu(a) * b},
    }  # fmt: skip
    modules = {name: ModuleType(name) for name in contents}
    for name, functions in contents.items():
        vars(modules[name]).update(functions)
    return modules


OTHERS = [(row, label) for row in OPS for label in row.others]


@pytest.mark.parametrize(("row", "label"), OTHERS, ids=lambda one: getattr(one, "name", one))
def test_forms_of_other_libraries_are_the_op(row: Op, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed as theirs gives the op's result and gradients: functions and arguments are put together rightly."""
    for name, module in _stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)
    verify(row.others[label](), Case.of_size(row, torch.float32, 2**12), CPU)


@pytest.mark.parametrize("name", ["sigmoid", "swiglu"])
def test_device_time_is_of_calls_on_operands_of_their_own(
    name: str, fallback: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, torch.cuda replaced: cold, one set of operands a call; warm, one; 2 ms shared among the calls."""
    CudaOnPaper(monkeypatch)
    monkeypatch.setattr(timing, "REPLAY_BYTES", 2**18)
    row = ROWS[name]
    case = Case.of_size(row, torch.float32, 2**14)
    draw, drawn = Op.operands, []

    def count(*args: Any) -> tuple[Tensor, ...]:
        drawn.append(args)
        return draw(*args)

    monkeypatch.setattr(Op, "operands", count)
    right: dict[str, run.Maker] = {
        form: partial(lambda form, operands, pass_: operands.call(form, pass_), getattr(row, attribute))
        for form, attribute in ((OURS, "ours"), (TORCH, "pytorch"))
    }
    for pass_ in PASSES:
        n_calls = timing.calls_per_replay(case.bytes_moved(pass_))
        for clock, sets in ((COLD, n_calls), (WARM, 1)):
            drawn.clear()
            m = run.device_time(case, pass_, clock, CPU, right, {}, LEAST_EFFORT)
            assert (m.failures, m.clock, m.calls_per_sample) == ({}, clock, n_calls)
            assert m.samples_ns == {form: [round(2e6 / n_calls, 1)] * 3 for form in right}
            assert len(drawn) == 2 * sets + 1  # and one for the route


@every_row
def test_the_route_is_told_by_the_gradient(row: Op, kernel_route: Route) -> None:
    """A kernel of ours, or PyTorch's operators below the threshold."""
    case, device = Case.of_size(row, torch.float32, 64), torch.device(kernel_route.device)
    assert run.route(case, device) == "kernel"
    with kernels_from(2**20):
        assert run.route(case, device) == "torch"


def test_time_drops_the_tail(fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five cases that take 4 seconds each of 10, the last two are counted as left out; each is told its share."""
    now, efforts = 0.0, []

    def measure(case: Case, device: torch.device, effort: Effort, compiles: bool | None) -> list[Measurement]:
        nonlocal now
        now += 4
        efforts.append(effort.seconds)
        return []

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(run, "measure", measure)
    chosen = [Case.of_size(ROWS["silu"], torch.float32, n) for n in (1, 2, 3, 4, 5)]
    found = Results(tmp_path / "results.json", {})
    run.measure_all(chosen, CPU, found, Effort(1e9, 1, 1), seconds=10)
    assert (found.status, found.environment["cases_left_out"]) == ("out of time", 2)
    assert efforts == [10 / 5 / 16, 6 / 4 / 16, 2 / 3 / 16]  # half of it for at most eight measurements


def test_sizes_come_in_priority_order_and_each_in_all_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: the short table's sizes first, uneven ones last; of several ops all at one size before the next."""
    monkeypatch.setattr(run, "free_bytes", lambda device: 2**50)
    parsed = SimpleNamespace(cases="grid", ops=["sigmoid"], sizes=None, dtypes=None, quick=False)
    chosen, left_out = run.select(parsed, torch.device("cuda"))  # type: ignore[arg-type]
    assert left_out == []
    sizes = [case.n_elements for case in chosen if case.kind == "size"]
    assert {chosen[i].dtype for i in range(4)} == set(DTYPES.values())
    assert set(sizes[: 4 * len(tables.MARKDOWN_SIZES)]) == set(tables.MARKDOWN_SIZES)
    assert [case.kind for case in chosen] == sorted((case.kind for case in chosen), key="size".__ne__)
    parsed.ops = ["silu", "swiglu"]
    chosen, _ = run.select(parsed, torch.device("cuda"))  # type: ignore[arg-type]
    assert [case.row.name for case in chosen[:3]] == ["silu", "swiglu", "swiglu, packed"]
    assert len({(case.dtype, case.n_elements) for case in chosen[:3]}) == 1


def test_the_kernels_are_what_is_verified_and_has_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the thresholds, too; wall time is a user's, with the thresholds as they are."""
    seen: dict[str, set[int]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.setdefault(name, set()).update(dispatch.MIN_ELEMENTS.values())

    for name in ("verify", "wall_time", "device_time"):
        monkeypatch.setattr(run, name, note(name))
    monkeypatch.setattr(timing, "fits_in_l2", lambda *_: True)
    with kernels_from(2**20):
        list(run.measure(Case.of_size(ROWS["sigmoid"], torch.float32, 64), torch.device("cuda"), LEAST_EFFORT, False))
    assert seen == {"verify": {1}, "wall_time": {2**20}, "device_time": {1}}


def test_thresholds_are_set_for_all_ops_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number for all, or one for each op."""
    thresholds = {"sigmoid": 5, "bce": 1}
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", thresholds)
    with kernels_from(7):
        assert thresholds == {"sigmoid": 7, "bce": 7}
    assert thresholds == {"sigmoid": 5, "bce": 1}


def _on_paper(op: str, n_elements: int, ratio: float, clock: str = COLD, copy: float = 0.9) -> Measurement:
    """Ours takes 1 µs for 8 bytes an element, PyTorch ``ratio`` times as long, a copy ``copy`` times."""
    case = {
        "op": op, "label": f"{op} {n_elements}", "kind": "size", "dtype": "float32", "n_elements": n_elements,
        "goal": 1.6, "count": 1, "pytorch_bytes": dict.fromkeys(PASSES, 20 * n_elements),
    }  # fmt: skip
    samples = {OURS: [1000.0] * 3, TORCH: [1000.0 * ratio] * 3, COPY: [1000.0 * copy] * 3}
    return Measurement(case, BOTH, clock, "kernel", 8 * n_elements, 1, samples)


def _results(tmp_path: Path, *measurements: Measurement) -> Results:
    where = {"device": "a GPU", "torch": "2", "triton": "3", "python": "3", "commit": 40 * "a", "dirty": True}
    return Results(tmp_path / "results.json", {**where, "date": "2025-01-01T00:00"}, list(measurements), "complete")


def _rows(table: Table) -> list[list[str]]:
    """The cells of what is printed, row by row."""
    console = Console(width=250, record=True, file=StringIO())
    console.print(table)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_wins_and_losses_are_told_as_they_are(tmp_path: Path) -> None:
    """By hand: a ratio above 1 is ours being faster; the lowest is named, every loss counted, a goal judged by it."""
    won = [_on_paper("won", n, ratio) for n, ratio in ((2**24, 1.7), (2**20, 0.5), (2**26, 2.0))]
    lost = [_on_paper("lost", n, ratio) for n, ratio in ((2**24, 1.7), (2**26, 1.5))]
    found = _results(tmp_path, *won, *lost)
    times, *_ = tables.all_measurements(found)
    assert [row[4:8] for row in _rows(times)][:2] == [
        ["1.700 (1.70–1.70)", "8, 20", "134218, 197379", "90"],
        ["0.500 (0.50–0.50)", "8, 20", "8389, 41943", "90"],
    ]
    assert _rows(tables.summary(found)) == [
        ["won", COLD, BOTH, "3", "1.193", "0.500 at float32 2^20", "1", "1.6: met"],
        ["lost", COLD, BOTH, "2", "1.597", "1.500 at float32 2^26", "0", "1.6: missed"],
    ]
    text = tables.markdown(found)
    assert f"commit {12 * 'a'} with changes" in text
    assert [line for line in text.splitlines() if line.startswith(("| won", "| lost"))] == [
        f"| won | {BOTH} | 1.70 (90 %) |", f"| lost | {BOTH} | 1.50 (90 %) |"
    ]  # fmt: skip
    assert "| 2^20 | forward+backward | 0.50 (90 %) |" in tables.markdown(_results(tmp_path, *won))


def test_a_picture_is_of_one_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a cold and of a warm cache never share one."""
    drawn: list[list[str]] = []
    of_op = plot.ratios_by_op

    def note(measurements: list[Measurement]) -> Figure:
        drawn.append([m.clock for m in measurements])
        return of_op(measurements)

    monkeypatch.setattr(plot, "ratios_by_op", note)
    both = [_on_paper("op", 2**20, 2.0, clock) for clock in (COLD, WARM)]
    assert len(list(plot.draw(both, {"device": "a GPU"}, tmp_path))) == 2
    assert drawn == [[COLD], [WARM]]


def test_pictures_have_ticks_and_are_not_flattened_by_outliers(tmp_path: Path) -> None:
    """A p80 of 90 beside medians of 1 and 3 leaves the axis as it is without it; two or more ticks, none like 0.09."""
    steady, noisy = _on_paper("op", 2**20, 3.0), _on_paper("op", 2**22, 1.0)
    noisy.samples_ns[TORCH] = [1000.0, 1000.0, 1000.0, 90_000.0, 90_000.0]
    noisy.samples_ns[OURS] = [1000.0] * 5
    for measured in ([steady, noisy], [steady], [_on_paper("op", 2**20, 1.004)], [_on_paper("op", 2**20, 0.03)]):
        for figure in (plot.ratios_by_size(measured), plot.ratios_by_op(measured)):
            axis = figure.axes[0].yaxis if figure.axes[0].get_yscale() == "log" else figure.axes[0].xaxis
            low, high = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_locator().tick_values(low, high) if low <= tick <= high]
            assert 2 <= len(ticks) <= 8
            assert all(tick == float(f"{tick:.2g}") for tick in ticks)
            assert high < 6
    names = [path.name for path in plot.draw([steady, noisy], {"device": "a GPU"}, tmp_path)]
    assert names == ["ratio-device-cold-l2.png", "bandwidth-device-cold-l2.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)


@pytest.mark.gpu
def test_every_op_is_measured_on_cuda(tmp_path: Path) -> None:
    """Wall and device time of every pass on the kernels, and peak memory: no failure, so every capture worked."""
    options = ["--ops", "all", "--quick", "--no-compile", "--sizes", "2^24", "--dtypes", "bfloat16"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    found = _load(tmp_path / "results.json")
    assert [(m.case["op"], m.clock, m.pass_) for m in found.measurements] == [
        (row.name, clock, pass_)
        for row in OPS
        for clock, passes in ((WALL, (FORWARD, BOTH)), (COLD, PASSES))
        for pass_ in passes
    ]
    for m in found.measurements:
        assert {OURS, TORCH} <= set(m.samples_ns)
        assert m.clock == WALL or m.route == "kernel"
        assert m.clock == COLD or m.peak_bytes[OURS] > 0


@pytest.mark.gpu
def test_all_forms_and_clocks_are_measured_on_cuda(tmp_path: Path) -> None:
    """σ at a size that fits in L2: wall, cold and warm; torch.compile in every pass but backward."""
    options = ["--quick", "--compile", "--sizes", "2^20", "--dtypes", "bfloat16", "--out", str(tmp_path)]
    assert main(options) == 0
    found = _load(tmp_path / "results.json")
    assert {m.clock for m in found.measurements} == {WALL, COLD, WARM}
    for m in found.measurements:
        compiled = {COMPILED} if m.pass_ != BACKWARD else set()
        assert set(m.samples_ns) == {OURS, TORCH, COPY, *compiled}
