"""python -m bench: what its commands promise, and that its checks can fail."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import clocks, plot, providers, report, runner
from bench.__main__ import PACKAGES, main
from bench.cases import PASSES
from bench.clocks import Effort
from bench.environment import ROOT
from bench.providers import COPY, OURS, TORCH, Provider
from bench.results import COLD, WALL, WARM, Measurement, Results
from sigmoid_op import dispatch
from tests.conftest import Route

LEAST_EFFORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3)


@pytest.fixture
def grid(fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Runs the default command on the CPU, as short as can be; returns its exit code and its results file."""
    monkeypatch.setattr(runner, "QUICK_EFFORT", LEAST_EFFORT)
    monkeypatch.setattr(clocks, "WALL_SAMPLE_NS", 1)

    def run(*options: str) -> tuple[int, Path]:
        return main(["--device", "cpu", "--quick", "--out", str(tmp_path), *options]), tmp_path / "results.json"

    return run


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
        (["--dtypes", "int8"], "int8"),
        (["--sizes", "2^x"], "2^x"),
        (["--max-elements", "0"], "at least 1"),
        (["train", "--steps", "-1"], "-1"),
        (["report"], "FILE.json"),
    ],
)
def test_a_wrong_option_ends_with_one_line_and_code_2(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names what was wrong; nothing is measured."""
    with pytest.raises(SystemExit) as stopped:
        main(options)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_a_file_without_results_ends_with_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``report`` refuses a missing file, another program's JSON and what is no JSON."""
    for content in (None, "{}", "not JSON"):
        path = tmp_path / "file.json"
        if content is not None:
            path.write_text(content)
        assert main(["report", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_tells_every_command_and_the_options_of_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """One ``--help`` is enough to use the program."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in (
        "train",
        "report",
        "codegen",
        "ways_in",
        "--cases",
        "--dtypes",
        "--sizes",
        "--quick",
        "--compile",
        "--out",
    ):
        assert word in text
    assert "``python -m bench" not in text.partition("Without a command")[0]  # each command by what it does


@pytest.mark.parametrize("module", PACKAGES)
def test_a_missing_library_is_named_in_one_line(module: str, tmp_path: Path) -> None:
    """What to install, and code 2, not a traceback."""
    program = (
        f"import sys; sys.modules['{module}'] = None; from bench.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", program, "train", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    package = PACKAGES[module]
    assert done.stderr.splitlines() == [f"python -m bench needs {package}: pip install {package}"]


def test_every_package_of_the_extra_can_be_named() -> None:
    """What pyproject.toml lists for the benchmarks, and no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(PACKAGES.values()) == sorted(project["optional-dependencies"]["bench"])


def test_timing_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of TRITON_INTERPRET=1 would be mistaken for the kernels'."""
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    assert main(["--device", "cpu"]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.usefixtures("two_threads")
def test_results_hold_all_samples_and_the_environment(
    grid: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Per dtype and pass: every sample of every provider; where it ran; tables, plots, and that it was a CPU."""
    code, path = grid("--sizes", "1", "2^12", "--dtypes", "bfloat16")
    assert code == 0
    results = Results.load(path)
    assert results.status == "complete"
    assert {(m.case["label"], m.pass_, m.clock) for m in results.measurements} == {
        (label, pass_, WALL) for label in ("2^0", "2^12", "2^12 + 1", "2^12 [1:]") for pass_ in PASSES
    }
    for m in results.measurements:
        assert {name: len(samples) for name, samples in m.samples_ns.items()} == {OURS: 3, TORCH: 3, COPY: 3}
        assert all(ns > 0 for samples in m.samples_ns.values() for ns in samples)
    for key in ("date", "argv", "commit", "dirty", "device", "cpu", "torch", "triton", "python", "os", "min_elements"):
        assert key in results.environment
    assert results.environment["torch_threads"] == 1  # more disturb each other at these sizes
    text = capsys.readouterr().out
    assert "Both sides ran PyTorch's own kernel" in text
    assert "% of copy" in text
    for name in ("ratio-wall.png", "bandwidth-wall.png"):
        assert name in text
        assert (path.parent / name).stat().st_size > 10_000


def _measured(route: str, torch_ns: list[float]) -> Measurement:
    case = {"label": "2^10", "kind": "size", "dtype": "float32", "n_elements": 2**10, "count": 1}
    return Measurement(case, "forward", WALL, route, 2**13, 1, {OURS: [1.0] * len(torch_ns), TORCH: torch_ns})


@pytest.mark.parametrize(("routes", "told"), [(("torch", "torch"), True), (("torch", "kernel"), False)])
def test_only_where_no_kernel_ran_the_ratios_are_called_noise(
    routes: tuple[str, ...], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One measurement of ours is enough to leave the sentence out, whatever the device."""
    environment = {"device": "a device", "device_type": "cuda"}
    measurements = [_measured(route, [2.0, 2.0]) for route in routes]
    report.present(Results(tmp_path / "results.json", environment, measurements), tmp_path)
    assert ("Both sides ran PyTorch's own kernel" in capsys.readouterr().out) is told


def _rows(table: Table) -> list[list[str]]:
    """The cells of what is printed, row by row."""
    console = Console(width=250, record=True, file=StringIO())
    console.print(table)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def _against_torch(label: str, ratio: float) -> Measurement:
    """Ours takes 1 µs for 8192 bytes, PyTorch ``ratio`` times as long, a copy half as long."""
    case = {"label": label, "kind": "size", "dtype": "float32", "n_elements": 2**10, "count": 1}
    samples = {OURS: [1000.0] * 3, TORCH: [1000.0 * ratio] * 3, COPY: [500.0] * 3}
    return Measurement(case, "forward", WALL, "kernel", 2**13, 1, samples)


def test_wins_and_losses_are_told_as_they_are(tmp_path: Path) -> None:
    """By hand: a ratio above 1 is ours being faster; the lowest ratio is named, and every loss is counted."""
    measured = [_against_torch(label, ratio) for label, ratio in (("2^0", 2.0), ("2^10", 0.5), ("2^16", 0.98))]
    where = {"device": "a GPU", "torch": "2", "triton": "3", "python": "3", "commit": 40 * "a", "dirty": True}
    results = Results(tmp_path / "results.json", {**where, "date": "2025-01-01T00:00"}, measured)
    times, summary = report.tables(results)
    assert [row[4:7] for row in _rows(times)] == [
        ["2.000 (2.00–2.00)", "8.19", "50"],
        ["0.500 (0.50–0.50)", "8.19", "50"],
        ["0.980 (0.98–0.98)", "8.19", "50"],
    ]
    assert _rows(summary) == [["wall", "forward", "float32", "3", "0.993", "0.500 at 2^10", "2"]]
    text = report.markdown(results)
    assert f"commit {12 * 'a'} with changes" in text
    assert "| wall | forward | 2^10 | 0.50 (50 %) |" in text
    assert "- wall: below 1 in 2 of 3 cases, lowest 0.50 (forward, float32, 2^10)." in text


def test_outliers_do_not_flatten_the_plot() -> None:
    """A p80 of 90 beside medians of 1 and 3 leaves the axis as it is without it."""
    steady, noisy = _measured("kernel", [3.0] * 5), _measured("kernel", [1.0, 1.0, 1.0, 90.0, 90.0])
    (ratio,) = [noisy.ratio(TORCH, OURS)]
    assert ratio is not None
    assert (ratio.median, ratio.p80) == (1.0, 90.0)
    low, high = plot._ratios([steady, noisy]).axes[0].get_ylim()
    assert (low, high) == pytest.approx((1 / 1.5, 3 * 1.5))


def test_report_repeats_the_tables_from_the_file(
    grid: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same tables from the raw data, a short one in Markdown, and no new measurement."""
    _, path = grid("--sizes", "2^10", "--dtypes", "float32")
    tables = capsys.readouterr().out.partition("Results in")[0]
    before = path.read_bytes()
    assert main(["report", str(path), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.partition("Results in")[0] == tables
    assert (tmp_path / "again" / "ratio-wall.png").exists()
    assert main(["report", str(path), "--markdown"]) == 0
    assert "| wall | backward | 2^10 |" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_wrong_result_is_reported_and_not_timed(
    grid: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider off by a thousandth: exit code 1, a line that says so, no sample of it; the others are timed."""

    def slightly_off(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * 1.001

    right = providers.pytorch()
    broken = Provider(slightly_off, right.backward, slightly_off)
    monkeypatch.setattr(providers, "ours", lambda: broken)
    code, path = grid("--sizes", "1000", "--dtypes", "float32")
    assert code == 1
    for m in Results.load(path).measurements:
        assert set(m.samples_ns) == {TORCH, COPY}
        assert "ulp" in m.failures[OURS]
    assert "FAILED float32 1000, sigmoid_op: WrongResultError" in capsys.readouterr().out


def test_interrupting_keeps_what_was_measured(
    grid: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during the third measurement: the first two are in the file and in the table; exit code 130."""
    interleave, calls = clocks.interleave, iter(range(100))

    def interrupted(*arguments: Any) -> dict[str, list[float]]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return interleave(*arguments)

    monkeypatch.setattr(clocks, "interleave", interrupted)
    code, path = grid("--sizes", "1000", "--dtypes", "float32", "float64")
    assert code == 130
    results = Results.load(path)
    assert results.status == "interrupted"
    assert [(m.case["dtype"], m.pass_) for m in results.measurements] == [
        ("float32", "forward"),
        ("float32", "backward"),
    ]
    text = capsys.readouterr().out
    assert "Interrupted" in text
    assert "results.json" in text


@pytest.mark.gpu
def test_the_default_command_measures_every_clock_and_provider(tmp_path: Path) -> None:
    """On CUDA: wall, cold and warm; the library, torch, the copy, torch.compile and the tutorial; no failure."""
    assert main(["--quick", "--compile", "--sizes", "2^20", "--dtypes", "bfloat16", "--out", str(tmp_path)]) == 0
    results = Results.load(tmp_path / "results.json")
    assert {m.clock for m in results.measurements} == {WALL, COLD, WARM}
    for m in results.measurements:
        assert set(m.samples_ns) == {OURS, TORCH, COPY, providers.COMPILED, providers.TUTORIAL}
        assert m.clock != WALL or m.peak_bytes[OURS] >= 2**21


@pytest.mark.usefixtures("two_threads")
def test_training_on_a_cpu_agrees_bit_for_bit(
    fallback: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One seed, the same batches: equal losses and accuracy, shown as a table, a plot and JSON."""
    assert main(["train", "--device", "cpu", "--steps", "60", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "train.json").read_text())
    assert written["environment"]["torch_threads"] == 1
    history = written["history"]
    ours, torchs = history["losses"]["sigmoid_op.Sigmoid"], history["losses"]["nn.Sigmoid"]
    assert ours == torchs
    assert len(ours) == 60
    assert ours[-1] < 0.8 * ours[0]  # it learns
    assert history["route"] == "torch"
    assert "PyTorch's own kernels" in capsys.readouterr().out
    assert (tmp_path / "train.png").stat().st_size > 10_000


def test_training_through_the_kernels_stays_within_the_tolerance(kernel_route: Route, tmp_path: Path) -> None:
    """The same through the Triton kernels: the first steps differ by rounding alone."""
    assert main(["train", "--device", kernel_route.device, "--steps", "3", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "train.json").read_text())["history"]["route"] == "kernel"


def test_a_training_that_differs_is_noticed(
    fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that is off by one part in 10^5 ends in exit code 1."""

    class Off(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(x) * 1.00001

    monkeypatch.setattr("bench.digits.Sigmoid", Off)
    assert main(["train", "--device", "cpu", "--steps", "3", "--out", str(tmp_path)]) == 1
    assert "DIFFER" in capsys.readouterr().out
