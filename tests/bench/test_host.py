"""``python -m bench host``: every op is timed by each route, as it claims, and what is done survives an interrupt."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import host
from bench.__main__ import main
from bench.cases import Case
from bench.environment import ROOT
from bench.ops import OPS
from tests.conftest import compiling_environment


def test_every_op_is_timed_on_kernels_and_behind_the_wrapper(tmp_path: Path) -> None:
    """All rows, modes and samples; kernels are launched for real but for the launch, as the fallback is no kernel."""
    line = [sys.executable, "-m", "bench", "host", "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=compiling_environment(), capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "host.json").read_text())
    assert (record["kind"], record["status"], record["n_elements"]) == ("host", "complete", 16)
    assert [(g["op"], g["mode"], g["route"]) for g in record["groups"]] == [
        *((row.name, mode, "kernel") for row in OPS for mode in host.MODES),
        *((op, mode, "kernel") for op in (host.LEAST, host.WAYS) for mode in host.MODES),
        *((row.name, mode, "wrapper") for row in OPS for mode in host.MODES),
    ]
    assert all(len(samples) == 2 and min(samples) > 0 for g in record["groups"] for samples in g["samples_ns"].values())
    assert all(row.name in done.stdout for row in OPS)


FREE = """
from bench import free_launches
free_launches.install()
import torch
from bench.ops import OPS
launched = []
free_launches._Launcher.__call__ = lambda self, *args: launched.append(args[0])
for row in OPS:
    launched.clear()
    row.ours(*row.operands(16, torch.float32, torch.device("cpu")))
    assert launched, row.name
print("every op launched")
"""


def test_free_launches_are_launches_of_compiled_kernels() -> None:
    """Every op's kernel is compiled and comes to the driver's launcher on CPU tensors, and nowhere else."""
    line = [sys.executable, "-c", FREE]
    done = subprocess.run(line, cwd=ROOT, env=compiling_environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "every op launched\n", done.stderr


def test_an_interrupt_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 130, the groups until then in the file and the table, and where they are in the last line."""

    def interrupted(groups: list[Any], *args: object) -> None:
        samples = {"unit": [1000.0], "ours": [7000.0], "torch": [2000.0]}
        groups.append({"op": "silu", "mode": host.MODES[0], "route": "wrapper", "samples_ns": samples})
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "measure", interrupted)
    assert main(["host", "--device", "cpu", "--out", str(tmp_path)]) == 130
    record = json.loads((tmp_path / "host.json").read_text())
    assert (record["status"], len(record["groups"])) == ("interrupted", 1)
    printed = capsys.readouterr().out
    assert "7.0 / 2.0" in printed
    assert printed.endswith(f"Results in {tmp_path} (interrupted): host.json\n")


def test_times_are_in_units_of_the_same_round() -> None:
    """A machine that slows down tenfold halfway changes no figure."""
    assert host.ratio([20.0, 20.0, 200.0], [10.0, 10.0, 100.0]) == 2.0


def test_modes_are_what_they_are_called() -> None:
    """Without gradients no graph; with them one; and the gradient itself."""
    operands = Case.of_size(OPS[0], torch.float32, 16).operands(torch.device("cpu"))
    plain, with_grad, gradients = (host.call(torch.sigmoid, operands, mode)() for mode in host.MODES)
    assert (plain.requires_grad, with_grad.requires_grad) == (False, True)
    torch.testing.assert_close(gradients[0], operands.grad_out * plain * (1 - plain))


def test_ways_are_timed_as_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ``enable()`` that does nothing ends the command before it measures."""
    monkeypatch.setattr(host, "enable", nullcontext)
    with pytest.raises(RuntimeError, match="operator table"):
        host.measure_ways([], torch.device("cpu"), 16, 2)
