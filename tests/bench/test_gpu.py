"""``python -m bench gpu`` and ``tune``: every line that a GPU will run has run before, and time ends it cleanly."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, tune
from bench.__main__ import main, make_parser
from bench.cases import Case
from bench.environment import ROOT
from bench.gpu import PARTS, Part, part_limit
from bench.ops import OPS
from bench.results import COLD, COPY, OURS, TORCH, WALL, Measurement
from bench.verify import WrongResultError
from sigmoid_op import dispatch
from tests.conftest import Route

Programme = Callable[..., tuple[int, dict[str, Any]]]
BY_NAME = {part.name: part for part in PARTS}


@pytest.mark.parametrize("dry", [False, True], ids=["measured", "dry run"])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_a_command_that_its_parser_takes(part: Part, dry: bool) -> None:
    """A misspelt option would end a part on the GPU before it began. test_examples.py runs the examples."""
    line = f"{part.command} {part.dry_run if dry else ''}".format(out="folder", minutes="1").split()
    if line[:2] == ["-m", "bench"]:
        assert make_parser().parse_args(line[2:]).out == Path("folder")
    else:
        assert line[:2] == ["-m", "pytest"] or (ROOT / line[0]).exists()


@pytest.mark.parametrize("left", [26.0, 60.0, 240.0, 540.0])
def test_no_part_is_left_out_while_time_is_left(left: float) -> None:
    """Whatever is left, and however early the parts before ended: the next one gets time to start, up to the end."""
    for i, part in enumerate(PARTS):
        limit = part_limit(part, list(PARTS[i:]), left)
        assert gpu.LEAST_SECONDS <= limit <= left - gpu.GRACE_SECONDS
    assert part_limit(PARTS[-1], [PARTS[-1]], left) == left - gpu.GRACE_SECONDS  # the last may take all


@pytest.fixture
def programme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programme:
    """Runs parts of one's own as a dry run; returns the exit code and what was written, by part."""

    def run(*parts: Part, minutes: str = "9") -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(gpu, "PARTS", parts)
        before = signal.getsignal(signal.SIGINT)
        try:
            code = main(["gpu", "--dry-run", "--minutes", minutes, "--out", str(tmp_path)])
        finally:
            signal.signal(signal.SIGINT, before)
        record = json.loads((tmp_path / gpu.SUMMARY).read_text())
        assert (record["status"], record["dry_run"]) == ("complete", True)
        return code, {outcome["part"]: outcome for outcome in record["parts"]}

    return run


def test_real_parts_run_and_a_failed_one_is_told(
    programme: Programme, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the failed test by its name and the end of its log; the other parts are done, their files named."""
    test_file = tmp_path / "test_wrong.py"
    test_file.write_text("import pytest\n@pytest.mark.gpu\ndef test_wrong():\n    assert 1 == 2\n")
    tests = replace(BY_NAME["tests"], dry_run=str(test_file))
    code, outcomes = programme(tests, replace(BY_NAME["sigmoid"], dry_run="--quick --sizes 1"), BY_NAME["digits"])
    assert code == 1
    text = capsys.readouterr().out
    assert [outcome["status"] for outcome in outcomes.values()] == ["failed", "done", "done"], text
    (failed,) = outcomes["tests"]["failures"]
    assert failed.endswith("test_wrong.py::test_wrong")  # before it stand the folders below pytest's root
    files = [outcome["files"] for outcome in outcomes.values()]
    assert files == [[], ["sigmoid/results.json"], ["digits/digits.json"]]
    record = (tmp_path / gpu.SUMMARY).read_text().replace(str(test_file), "").replace(failed, "")
    assert str(tmp_path) not in record  # no path of the machine but the test's own
    assert f"  | {failed}" in text
    assert "assert 1 == 2" in text
    assert "--minutes" in outcomes["sigmoid"]["command"]
    assert main(["gpu", "--dry-run", "--out", str(tmp_path)]) == 2  # a run is not overwritten


def test_time_interrupts_a_part_and_leaves_out_the_rest(
    programme: Programme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlong part is interrupted and keeps what it has, which is no failure; one that ignores it is killed."""
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 2.0)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1.0)
    (tmp_path / "keeps.py").write_text(
        "import pathlib, sys, time\nfolder = pathlib.Path(sys.argv[1])\nfolder.mkdir()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    (folder / 'kept').touch(); sys.exit(130)"
    )
    (tmp_path / "ignores.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    )
    code, outcomes = programme(
        Part("keeps", 1, f"{tmp_path}/keeps.py {{out}}"),
        Part("ignores", 1, f"{tmp_path}/ignores.py"),
        Part("never started", 0.01, "-c print()"),
        minutes=str(12 / 60),
    )
    assert code == 0
    assert {name: (o["status"], o.get("exit_code")) for name, o in outcomes.items()} == {
        "keeps": ("cut", 130),
        "ignores": ("cut", None),
        "never started": ("left out", None),
    }
    assert outcomes["keeps"]["files"] == ["keeps/kept"]


def _measured(op: str, ratios: dict[int, float]) -> list[Measurement]:
    return [
        Measurement(
            {"op": op, "label": op, "n_elements": n, "dtype": "float32"}, "forward", WALL, "kernel", 8 * n,
            samples_ns={OURS: [1.0], TORCH: [ratio]},
        )
        for n, ratio in ratios.items()
    ]  # fmt: skip


def test_the_crossover_counts_from_above() -> None:
    """One slower size in between raises the threshold over it; a slower largest size means there is none."""
    assert tune.threshold(_measured("silu", {2**10: 1.2, 2**12: 0.96, 2**14: 0.98, 2**16: 1.5})) == 2**14
    assert tune.threshold(_measured("silu", {2**10: 1.2, 2**12: 0.9})) == math.inf


def test_the_thresholds_are_printed_as_dispatch_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each key, the largest of its rows'; the text is Python, and every key is one of dispatch."""
    rows = {
        "silu": {16: 0.5, 2**16: 1.0},
        "swiglu": {16: 1.0},
        "swiglu, packed": {16: 0.5, 2**10: 1.0},
        "glu": {16: 0.5},
    }
    measured = [m for op, ratios in rows.items() for m in _measured(op, ratios)]
    tune.show({"measurements": [vars(m) for m in measured], "dry_run": False}, tmp_path)
    scope: dict[str, Any] = {"NEVER": None}
    exec(capsys.readouterr().out.partition("}")[0] + "}", scope)
    assert scope["MIN_ELEMENTS"] == {"silu": 2**16, "swiglu": 2**10, "glu": None}
    assert {row.key for row in OPS} <= set(dispatch.MIN_ELEMENTS)


def test_tuning_keeps_what_time_leaves(tmp_path: Path) -> None:
    """Stopped after the first measurement, in the interpreter: the file is whole, and says so; kernels ran."""
    line = [sys.executable, "-m", "bench", "tune", "--device", "cpu", "--minutes", "0.0001", "--out", str(tmp_path)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    record = json.loads((tmp_path / "tune.json").read_text())
    (measurement,) = record["measurements"]
    assert (record["kind"], record["status"], measurement["route"]) == ("tune", "out of time", "kernel")
    assert set(measurement["samples_ns"]) == {OURS, TORCH}


def test_variants_are_raced_beside_the_library(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant gives the library's bits and is timed; one that leaves elements unwritten is not."""
    wrong = tune.Variant(1024, 8, None)
    launch = tune.Variant.launch

    def launch_all_but_one(self: tune.Variant, formula: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        launch(self, formula, inputs, out[:-1] if self == wrong else out)
        return out

    monkeypatch.setattr(tune.Variant, "launch", launch_all_but_one)
    right = [tune.Variant(512, 4, None), tune.Variant(1024, 4, 56)]
    monkeypatch.setattr(tune, "variants", lambda dtype: [right[0], wrong] if dtype == torch.float32 else right)
    found = list(tune.races(torch.device(kernel_route.device), dry=True))
    assert [(m.pass_, m.case["dtype"]) for m in found] == [
        (pass_, dtype) for pass_ in ("forward", "backward") for dtype in ("float16", "bfloat16", "float32", "float64")
    ]
    for m in found:
        names = {right[0].name} if m.case["dtype"] == "float32" else {variant.name for variant in right}
        assert set(m.samples_ns) == {OURS, TORCH, COPY, *names}
    with pytest.raises(WrongResultError):
        tune.verified(wrong, torch.float32, torch.device(kernel_route.device))


@pytest.mark.gpu
def test_the_tuning_captures_what_it_times(tmp_path: Path) -> None:
    """On CUDA: the dry run on both clocks, complete."""
    assert main(["tune", "--dry-run", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "tune.json").read_text())
    assert record["status"] == "complete"
    assert {m["clock"] for m in record["measurements"]} == {WALL, COLD}
    case = Case.of_size(OPS[0], torch.float32, 2**12)
    assert case.label in {m["case"]["label"] for m in record["measurements"]}
