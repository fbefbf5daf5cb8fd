"""python -m bench codegen, ways_in and figure; and where a command that runs the kernels runs them."""

import json
import subprocess
import sys
import threading
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from bench import codegen, ways_in
from bench.__main__ import main, make_parser
from bench.clocks import Effort
from bench.codegen import Facts
from bench.environment import ROOT
from bench.gpus import GPUS, Prediction
from bench.verify import WrongResultError
from sigmoid_op import dispatch, enable
from tests.conftest import Route, compiling_environment

COMMANDS = ("grid", "train", "codegen", "host", "ways_in", "accuracy", "proof", "revive", "tune")
WITH_KERNELS = ("accuracy", "tune", "ways_in")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_makes_a_folder_of_its_own(command: str) -> None:
    """Without --out none writes into the current folder, nor where an earlier run did."""
    assert make_parser().parse_args([command]).out is None


@pytest.mark.parametrize("command", WITH_KERNELS)
def test_a_command_runs_itself_in_the_interpreter(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU without TRITON_INTERPRET it is run again with it, with the same options, and says so."""
    calls = []

    def record(line: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[bytes]:
        calls.append((line, env["TRITON_INTERPRET"]))
        return subprocess.CompletedProcess(line, 3)

    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setattr(subprocess, "run", record)
    options = [command, "--device", "cpu", "--out", str(tmp_path)]
    assert main(options) == 3
    assert calls == [([sys.executable, "-m", "bench", *options], "1")]
    assert "interpreter" in capsys.readouterr().out


@pytest.mark.parametrize("command", WITH_KERNELS)
def test_without_triton_it_says_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the command and the package; exit code 2."""
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert main([command, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"python -m bench {command}: error: Triton is not installed (pip install triton)"


@pytest.fixture
def shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_in, "EFFORT", Effort(seconds=0.0, min_rounds=3, max_rounds=3))


@pytest.fixture
def restorable_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own. Here ``disable()`` sees the pool of Inductor, idle, and leaves the table as it is."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    enable().disable()


@pytest.mark.usefixtures("shortest", "restorable_table")
def test_ways_in_times_every_way(kernel_route: Route, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both passes, all samples of each way; a table; thread and threshold are as they were."""
    before = torch.get_num_threads(), dispatch.MIN_ELEMENTS
    assert main(["ways_in", "--device", kernel_route.device, "--elements", "64", "--out", str(tmp_path)]) == 0
    assert before == (torch.get_num_threads(), dispatch.MIN_ELEMENTS)
    record = json.loads((tmp_path / "ways_in.json").read_text())
    assert (record["schema"], record["kind"], record["n_elements"]) == (1, "ways_in", 64)
    assert record["environment"]["torch_threads"] == 1
    assert kernel_route.device != "cpu" or record["environment"]["min_elements"] == 65
    assert list(record["samples_ns"]) == ["forward", "forward+backward"]
    printed = capsys.readouterr().out
    for samples in record["samples_ns"].values():
        assert list(samples) == list(ways_in.ways())
        assert all(len(times) == 3 and min(times) > 0 for times in samples.values())
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if "│" in line]
    assert rows == ["forward", *ways_in.ways(), "forward+backward", *ways_in.ways()]


@pytest.mark.usefixtures("shortest", "restorable_table")
def test_ways_in_times_only_what_is_right_and_as_claimed(
    kernel_route: Route, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function off by a thousandth, and an ``enable()`` that does nothing, end the command before it measures."""
    line = ["ways_in", "--device", kernel_route.device, "--out", str(tmp_path)]

    def slightly_off(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * 1.001

    with monkeypatch.context() as patched:
        patched.setattr(ways_in, "sigmoid", slightly_off)
        with pytest.raises(WrongResultError):
            main(line)
    monkeypatch.setattr(ways_in, "enable", nullcontext)
    with pytest.raises(RuntimeError, match="operator table"):
        main(line)
    assert list(tmp_path.iterdir()) == []


# In a process of its own, as nothing is compiled where TRITON_INTERPRET is set; two kernels in one dtype are enough.
CODEGEN = """
import sys
import threading
from bench import codegen
from bench.__main__ import main
from bench.codegen import catalogue
codegen.DTYPES = codegen.DTYPES[:1]
catalogue.SIGMOID, catalogue.FAMILY = catalogue.SIGMOID[:2], []
sys.exit(main(sys.argv[1:]))
"""


def test_codegen_compiles_and_tells(tmp_path: Path) -> None:
    """Every kernel at each alignment: in the file, with its environment, and in the tables; and the picture."""
    pytest.importorskip("triton")
    environment = compiling_environment()
    line = [sys.executable, "-c", CODEGEN, "codegen", "--targets", "sm_90", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "codegen.json").read_text())
    assert (record["schema"], record["kind"]) == (1, "codegen")
    assert record["environment"]["argv"] == ["codegen", "--targets", "sm_90"]
    assert record["environment"]["triton"]
    names = [(kernel["kernel"], kernel["alignment"]) for kernel in record["kernels"]]
    assert names == [(name, alignment) for alignment in codegen.ALIGNMENTS for name in ("forward", "backward")]
    forward = record["kernels"][0]
    assert (forward["bytes_per_element"], forward["mufu"], forward["loads"]) == (4, 2, {"128": 2})
    assert 5 < forward["instructions"] < 15
    for alignment in codegen.ALIGNMENTS:
        assert f"sm_90, {alignment}" in done.stdout
    assert done.stdout.count(f"{forward['instructions']:.2f}") >= 1
    assert (tmp_path / "codegen.png").stat().st_size > 10_000


def _facts(kernel: str, dtype: str, terabytes: float) -> Facts:
    predictions = {gpu.name: Prediction("memory", 0.97, terabytes * 1e12) for gpu in GPUS if gpu.target == "sm_90"}
    return Facts(
        kernel, dtype, "sm_90", "aligned", 6, {128: 4, 16: 1}, {128: 2}, shared_bytes=32, instructions=8.19, mufu=0.5,
        registers=56, stack_bytes=0, control_flow={"BRA": 2, "BAR": 1}, occupancy=0.5625, predictions=predictions,
    )  # fmt: skip


def test_the_table_shows_what_was_read() -> None:
    """One kernel, cell by cell: GPUs with the same bound share a place; what AMD's code does not tell stays empty."""
    amd = Facts("forward", "float32", "gfx942", "aligned", 8, {128: 4}, {128: 4}, shared_bytes=0)
    console = Console(width=200, record=True, file=StringIO())
    console.print(codegen.table_of([_facts("backward", "bfloat16", 25), amd], "title"))
    title, heading, _, first, second = (line.split() for line in console.export_text().splitlines() if line.strip())
    assert title == ["title"]
    assert heading[:5] == ["kernel", "dtype", "B", "instr", "MUFU"]
    counts = ["6", "8.19", "0.50", "128×4,", "16×1", "128×2", "56", "0", "32", "3", "56%"]
    assert first == ["backward", "bfloat16", *counts, "memory", "97%:", "H100,", "H200"]
    assert second == ["forward", "float32", "8", "128×4", "128×4", "0"]


def test_the_picture_shows_the_predictions() -> None:
    """A point for each kernel and dtype on the GPUs it was compiled for, at its rate; the line is the data sheet's."""
    rates = {"bfloat16": [8.0, 25.0], "float32": [11.0, 130.0]}
    rows = [_facts(name, dtype, rate) for dtype, of in rates.items() for name, rate in zip("ab", of, strict=True)]
    lines = {
        gpu.name: {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in axes.lines}
        for gpu, axes in zip(GPUS, codegen.draw(rows).axes, strict=True)
    }
    h200, a100 = lines["H200"], lines["A100"]
    assert {dtype: h200[dtype][1] for dtype in rates} == rates
    assert h200["memory (data sheet)"][1] == [4.8, 4.8]
    assert len({x for dtype in rates for x in h200[dtype][0]}) == 4  # no point over another
    assert [a100[dtype] for dtype in rates] == [[[], []], [[], []]]


def test_the_readme_s_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the file asked for, whose folder need not be there; the committed one stays as it is."""
    committed = (ROOT / "docs" / "sigmoid.png").read_bytes()
    path = tmp_path / "folder" / "sigmoid.png"
    assert main(["figure", "--out", str(path)]) == 0
    assert path.stat().st_size > 10_000
    assert str(path) in capsys.readouterr().out
    assert (ROOT / "docs" / "sigmoid.png").read_bytes() == committed
