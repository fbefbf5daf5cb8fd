"""The default command: all forms of every case on the clocks that it claims; time and Ctrl-C end it cleanly."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import measure, results, run, timing
from bench.__main__ import main
from bench.cases import Case
from bench.measure import Race
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, PASSES, Op, kernels_from
from bench.results import COLD, COMPILED, COPY, OURS, TORCH, WALL, WARM, Measurement, Results
from bench.timing import Effort
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
