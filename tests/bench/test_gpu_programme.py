"""python -m bench gpu and tune: every line that a rented GPU will run has run before, and time ends it cleanly."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cases, crossover, family, gpu, gpu_tests, pace, report, revive, runner, tune
from bench.__main__ import main, make_parser
from bench.cases import Case, Layout
from bench.clocks import Effort
from bench.environment import ROOT
from bench.family_calls import FamilyCase
from bench.gpu import PARTS, Part, command
from bench.providers import COPY, OURS, TORCH
from bench.race import race
from bench.results import COLD, WALL, Measurement, Results
from tests.conftest import Route

CPU = torch.device("cpu")
LEAST_EFFORT = Effort(seconds=0.0, min_rounds=3, max_rounds=3)


@pytest.mark.parametrize("rehearse", [False, True], ids=["measured", "rehearsed"])
@pytest.mark.parametrize("part", [part for part in PARTS if part.command[0] == "bench"], ids=lambda part: part.name)
def test_every_part_is_a_command_that_its_parser_takes(part: Part, rehearse: bool, tmp_path: Path) -> None:
    """A misspelt option would end a part on the GPU before it began. Its files go to a folder of its own."""
    line = command(part, tmp_path, 60, rehearse=rehearse)
    assert line[:3] == [sys.executable, "-m", "bench"]
    parsed = make_parser().parse_args(line[3:])
    assert parsed.out == tmp_path / part.name
    # Of the 60 seconds 25 are for starting, the last case, tables and plots.
    assert not part.paced or parsed.minutes == pytest.approx(35 / 60, abs=1e-3)


def test_tests_accuracy_grid_and_family_always_fit() -> None:
    """Were each of them to take all it may, there would be time for them, whatever else is left out."""
    first = PARTS[:4]
    assert [part.name for part in first] == ["tests", "accuracy", "grid", "family"]
    assert sum(part.limit for part in first) <= 60 * gpu.MINUTES


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_no_limit_is_too_short_to_start(part: Part) -> None:
    """Without its grace a part has as long as starting takes, and one that paces itself some time to measure, too."""
    paces = gpu.UNPACED_SECONDS if part.paced else 0
    assert part.limit - gpu.GRACE_SECONDS - paces >= gpu.LEAST_SECONDS


def test_reviving_is_cut_down_to_its_time() -> None:
    """At 4 ms a step, slower than is expected, the trainings of all variants end before they would be interrupted."""
    part = next(part for part in PARTS if part.name == "revive")
    parsed = make_parser().parse_args(part.command[1:])
    starting = 7.0
    assert starting + 0.004 * parsed.steps * parsed.seeds * len(revive.VARIANTS) <= part.limit - gpu.GRACE_SECONDS


@pytest.fixture
def programme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs parts of one's own in a rehearsal; returns the exit code and what was written, by part."""

    def run(*parts: Part, minutes: str = "9") -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu, "PARTS", parts)
        before = signal.getsignal(signal.SIGINT)
        try:
            code = main(["gpu", "--rehearse", "--minutes", minutes, "--out", str(tmp_path)])
        finally:
            signal.signal(signal.SIGINT, before)
        record = json.loads((tmp_path / gpu.SUMMARY).read_text())
        assert record["rehearsal"]
        return code, {outcome["part"]: outcome for outcome in record["parts"]}

    return run


def test_the_programme_runs_real_parts(
    programme: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU tests and the grid, as small as they get: done, with junit and results where the summary says."""
    tests, grid = (next(part for part in PARTS if part.name == name) for name in ("tests", "grid"))
    grid = Part("grid", ("bench", "grid", "--quick", "--sizes", "1", "--dtypes", "float32"), grid.limit, paced=True)
    code, outcomes = programme(tests, grid)
    assert code == 0, (tmp_path / "logs" / "tests.log").read_text()
    assert [outcome["status"] for outcome in outcomes.values()] == ["done", "done"]
    assert {f"tests/sigmoid-test_{name}.xml" for name in ("launch", "devices")} <= set(outcomes["tests"]["files"])
    assert "grid/results.json" in outcomes["grid"]["files"]
    assert str(tmp_path) not in (tmp_path / gpu.SUMMARY).read_text()  # no path of the machine
    assert Results.load(tmp_path / "grid" / "results.json").status == "complete"
    assert "seconds" in capsys.readouterr().out
    assert main(["gpu", "--rehearse", "--out", str(tmp_path)]) == 2  # a run is not overwritten


def test_a_failed_part_is_told_and_the_rest_still_runs(
    programme: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the failed test by its name, the end of the log; the next part is done."""
    test_file = tmp_path / "test_wrong.py"
    test_file.write_text("import pytest\n@pytest.mark.gpu\ndef test_wrong():\n    assert 1 == 2\n")
    code, outcomes = programme(
        Part("tests", ("bench.gpu_tests", str(test_file)), 60),
        Part("host", ("bench", "host", "--rounds", "3"), 60),
    )
    assert code == 1
    assert outcomes["tests"]["status"] == "failed"
    (failed,) = outcomes["tests"]["failed_tests"]
    assert failed.endswith("test_wrong::test_wrong")  # before it stand the folders below pytest's root
    assert outcomes["host"]["status"] == "done"
    text = capsys.readouterr().out
    assert f"FAILED {failed}" in text
    assert "assert 1 == 2" in text


def test_few_parts_share_all_the_time(
    programme: Callable[..., tuple[int, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of nine minutes a part alone may take all but its grace, whatever its limit beside others is."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "part_of_nothing.py").write_text("")
    assert programme(Part("tune", ("part_of_nothing",), 210))[0] == 0
    assert "(at most 525 s)" in capsys.readouterr().out


def test_interrupted_tests_keep_what_they_have(tmp_path: Path) -> None:
    """Every pytest at work is interrupted, and its junit file tells of the tests that were done."""
    started = tmp_path / "started"
    test_file = tmp_path / "test_slow.py"
    test_file.write_text(
        "import pathlib, pytest, time\n"
        "@pytest.mark.gpu\ndef test_quick(): pass\n"
        f"@pytest.mark.gpu\ndef test_slow(): pathlib.Path({str(started)!r}).touch(); time.sleep(60)\n"
    )
    line = [sys.executable, "-m", "bench.gpu_tests", str(test_file), "--out", str(tmp_path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert 'name="test_quick"' in (tmp_path / f"{tmp_path.name}-test_slow.xml").read_text()


def test_the_longest_files_are_there() -> None:
    """The files that come first are files of ours: one renamed would silently be left out."""
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in gpu_tests.LONGEST)


def test_time_interrupts_a_part_and_leaves_out_the_rest(
    programme: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlong part is interrupted and keeps what it has, which is no failure; one that ignores it is killed."""
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 2.0)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    waits = "import time, sys, pathlib\nfolder = pathlib.Path(sys.argv[-1])\n{}\n"
    keeps = "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    (folder / 'kept').touch(); sys.exit(130)"
    ignores = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    (tmp_path / "part_that_keeps.py").write_text(waits.format(keeps))
    (tmp_path / "part_that_ignores.py").write_text(waits.format(ignores))
    code, outcomes = programme(
        Part("grid", ("part_that_keeps",), 540 * 0.5),
        Part("tune", ("part_that_ignores",), 540),
        Part("host", ("never_started",), 540),
        minutes=str(12 / 60),
    )
    assert code == 0
    assert {name: (o["status"], o["exit_code"]) for name, o in outcomes.items()} == {
        "grid": ("cut", 130),
        "tune": ("cut", None),
        "host": ("left out", None),
    }
    assert outcomes["grid"]["files"] == ["grid/kept"]
    assert sum(o["seconds"] for o in outcomes.values()) < 15


def test_what_time_cuts_off_the_grid_are_sizes_and_no_dtype() -> None:
    """The sizes of the report's short table come first, uneven ones last but for the smallest; each in all dtypes."""
    chosen = cases.grid(cases.DTYPES.values(), [2**e for e in range(0, 31, 2)])
    ordered = sorted(chosen, key=cases.importance)
    labels = [case.label for case in ordered]
    groups = [ordered[i : i + len(cases.DTYPES)] for i in range(0, len(ordered), len(cases.DTYPES))]
    assert all({case.dtype for case in group} == set(cases.DTYPES.values()) for group in groups)
    assert all(len({case.label for case in group}) == 1 for group in groups)
    by_worth = list(dict.fromkeys(labels))
    assert set(by_worth[: len(report.MARKDOWN_SIZES)]) == set(report.MARKDOWN_SIZES)
    assert by_worth[0] == "2^26"
    assert by_worth[-6:-4] == ["2^12 + 1", "2^12 [1:]"]
    assert by_worth[-4:] == ["2^2", "2^4", "2^6", "2^8"]


def test_what_time_cuts_off_the_family_are_sizes_and_no_op(
    fallback: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ops in the first dtype at the first size, then in the other dtypes, then at the other sizes."""
    measured = []

    def remember(case: FamilyCase, device: torch.device, **options: object) -> Iterator[Measurement]:
        measured.append((case.n_elements, case.dtype_name, case.member.name))
        return iter(())

    monkeypatch.setattr(family, "measure", remember)
    options = ["--ops", "silu", "swiglu", "--sizes", "2^20", "2^18", "--dtypes", "bfloat16", "float32"]
    assert main(["--device", "cpu", *options, "--out", str(tmp_path)]) == 0
    ops = ("silu", "swiglu", "swiglu, packed")
    assert measured == [(size, dtype, op) for size in (2**20, 2**18) for dtype in ("bfloat16", "float32") for op in ops]


def test_the_grid_stops_cleanly(fallback: object, tmp_path: Path) -> None:
    """With no time left the rest is counted; the file is in the order of size, whatever was measured first."""
    chosen = list(cases.grid([torch.float32], [2**e for e in range(13)]))
    results = Results(tmp_path / "results.json", {"device_type": "cpu"})
    runner.measure_all(chosen, CPU, results, with_compile=False, effort=LEAST_EFFORT, seconds=1e-9)
    assert (results.status, results.environment["cases_left_out"]) == ("out of time", len(chosen))
    runner.measure_all(chosen[:5], CPU, results, with_compile=False, effort=LEAST_EFFORT)
    assert results.status == "complete"
    labels = [m.case["label"] for m in results.measurements]
    assert list(dict.fromkeys(labels)) == ["2^0", "2^1", "2^2", "2^3", "2^4"]


def test_time_that_runs_out_in_between_leaves_out_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five cases that take 4 seconds each of 10 the last two are counted as left out; each is told its share."""
    now = 0.0
    shares: list[float] = []

    def measure(case: Case, share: float) -> Iterator[Measurement]:
        nonlocal now
        now += 4
        shares.append(share)
        return iter(())

    monkeypatch.setattr("time.monotonic", lambda: now)
    chosen = list(cases.grid([torch.float32], [1, 2, 3, 4, 5]))
    results = Results(tmp_path / "results.json", {})
    pace.measure_in_turn(chosen, lambda case: case.n_elements, measure, CPU, results, seconds=10)
    assert (results.status, results.environment["cases_left_out"]) == ("out of time", 2)
    assert shares == [10 / 5, 6 / 4, 2 / 3]


def test_a_measurement_keeps_to_its_share() -> None:
    """Half of a case's seconds go to its nine measurements; none takes more than it would with all the time."""
    effort = Effort(seconds=0.3, min_rounds=9, max_rounds=51)
    assert runner._share(effort, 1.8).seconds == pytest.approx(0.1)
    assert runner._share(effort, 1e9) == effort


def _measured(ratios: dict[int, float]) -> list[Measurement]:
    return [
        Measurement(
            {"n_elements": n, "dtype": "float32"}, "forward", WALL, "kernel", 8 * n, 1, {OURS: [1.0], TORCH: [r]}
        )
        for n, r in ratios.items()
    ]


def test_the_crossover_counts_from_above() -> None:
    """One slower size in between raises the threshold over it; a slower largest size means there is none."""
    ratios = {2**10: 1.2, 2**12: 0.98, 2**14: 1.0, 2**16: 1.5}
    assert crossover.threshold(_measured(ratios), 1.0) == 2**14
    assert crossover.threshold(_measured(ratios), 1.03) == 2**10
    assert crossover.threshold(_measured({2**10: 1.2, 2**12: 0.9}), 1.0) is None


def test_tuning_rehearses_in_the_interpreter(tmp_path: Path) -> None:
    """Stopped by its time after the first measurement: the file is whole, and says so."""
    line = [sys.executable, "-m", "bench", "tune", "--device", "cpu", "--minutes", "0.0001", "--out", str(tmp_path)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    record = json.loads((tmp_path / "tune.json").read_text())
    assert (record["kind"], record["status"], record["races"]) == ("tune", "out of time", [])
    (measurement,) = record["crossover"]
    assert measurement["route"] == "kernel"
    assert set(measurement["samples_ns"]) == {OURS, TORCH}


@pytest.mark.parametrize("pass_", tune.PASSES)
def test_variants_are_verified_and_timed(kernel_route: Route, pass_: cases.Pass) -> None:
    """Every hint and the persistent grid give right results; the race holds every sample of every variant."""
    from bench.tune_kernels import Variant

    layout = Layout.contiguous([1000])
    case = Case("1000", "size", torch.float32, layout, layout)
    candidates = tune.hinted(Variant(512, 4))
    assert len({variant.name for variant in candidates}) == len(candidates) == 18
    found = race(case, pass_, candidates[::4], torch.device(kernel_route.device), LEAST_EFFORT)
    assert set(found.samples_ns) == {TORCH, COPY, OURS, *(variant.name for variant in candidates[::4])}
    assert all(len(samples) == 3 for samples in found.samples_ns.values())
    assert tune.best(candidates[::4], [found]).name == found.fastest


def test_a_wrong_variant_is_not_timed(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that no block writes: the variant is left out, with the reason; the others are timed."""
    from bench import tune_kernels
    from bench.tune_kernels import Variant

    launch = tune_kernels.launch

    def shorter(variant: Variant, formula: Any, inputs: Any, output: torch.Tensor, **options: Any) -> None:
        missing = int(variant.num_warps == 8)
        launch(variant, formula, inputs, output[: len(output) - missing], **options)

    monkeypatch.setattr(tune_kernels, "launch", shorter)
    layout = Layout.contiguous([1000])
    case = Case("1000", "size", torch.float32, layout, layout)
    candidates = [Variant(512, 4), Variant(512, 8)]
    found = race(case, "forward", candidates, torch.device(kernel_route.device), LEAST_EFFORT)
    assert set(found.variants) == {"512 elements, 4 warps"}
    assert found.failures["512 elements, 8 warps"].endswith("inf ulp, 5 allowed")
    assert tune.best(candidates, [found]) == candidates[0]


def test_a_variant_without_its_last_block_is_not_timed(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the race, what is verified leaves an incomplete block."""
    from bench import tune_kernels
    from bench.tune_kernels import Variant

    launch = tune_kernels.launch

    def full_blocks(variant: Variant, formula: Any, inputs: Any, output: torch.Tensor, **options: Any) -> None:
        launch(variant, formula, inputs, output[: len(output) // 512 * 512], **options)

    monkeypatch.setattr(tune_kernels, "launch", full_blocks)
    layout = Layout.contiguous([1024])
    case = Case("1024", "size", torch.float32, layout, layout)
    assert not race(case, "forward", [Variant(512, 4)], torch.device(kernel_route.device), LEAST_EFFORT).variants


@pytest.mark.gpu
def test_the_tuning_captures_what_it_times(tmp_path: Path) -> None:
    """On CUDA: one small race of the rehearsal on the device clock."""
    assert main(["tune", "--rehearse", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["status"] == "complete"
    assert {m["clock"] for m in record["crossover"]} >= {WALL, COLD}
    assert len(record["races"]) == 2 * len(tune.PASSES) * len(cases.DTYPES)
    assert all(ns > 0 for race in record["races"] for samples in race["samples_ns"].values() for ns in samples)
