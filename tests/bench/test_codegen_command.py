"""``python -m bench codegen`` and ``pytorch``: what is compiled is told, and PyTorch's kernels are counted alike."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import codegen
from bench.__main__ import main
from bench.codegen import pytorch
from bench.codegen.gpus import GPUS
from bench.environment import ROOT
from tests.conftest import compiling_environment

# In a process of its own, as nothing is compiled where TRITON_INTERPRET is set; two kernels in one dtype are enough.
CODEGEN = """
import sys
from bench import codegen
from bench.__main__ import main
from bench.__main__ import main
from bench.codegen import catalogue
codegen.DTYPES = codegen.DTYPES[:1]
catalogue.SIGMOID, catalogue.FAMILY = catalogue.SIGMOID[:2], ()
collect, compiled, limit = codegen.collect, [], int(sys.argv.pop())
def collect_some(*job):
    if len(compiled) == limit:
        raise KeyboardInterrupt
    compiled.append(job)
    return collect(*job)
codegen.collect = collect_some
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("limit", "code", "status"), [(3, 130, "interrupted"), (4, 0, "complete")])
def test_codegen_compiles_and_tells(limit: int, code: int, status: str, tmp_path: Path) -> None:
    """What is compiled until Ctrl-C, or all, is in the file, with its environment, in the tables and the picture."""
    pytest.importorskip("triton")
    line = [sys.executable, "-c", CODEGEN, "codegen", "--targets", "sm_90", "--out", str(tmp_path), str(limit)]
    done = subprocess.run(line, cwd=ROOT, env=compiling_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    record = json.loads((tmp_path / "codegen.json").read_text())
    assert (record["kind"], record["status"]) == ("codegen", status)
    assert record["environment"]["argv"] == ["codegen", "--targets", "sm_90"]
    names = [(kernel["kernel"], kernel["alignment"]) for kernel in record["kernels"]]
    assert names == [(name, lie) for lie in ("aligned", "misaligned") for name in ("forward", "backward")][:limit]
    forward, _, misaligned, *_ = record["kernels"]
    assert (forward["bytes_per_element"], forward["mufu"], forward["loads"]) == (4, 2, {"128": 2})
    assert misaligned["loads"] == {"16": 16}
    assert 5 < forward["instructions"] < 15
    assert all(
        word in done.stdout for word in ("sm_90, aligned", "sm_90, misaligned", f"{forward['instructions']:.2f}")
    )
    assert f"Results in {tmp_path} ({status}): codegen.json, codegen.png" in done.stdout
    assert (tmp_path / "codegen.png").stat().st_size > 10_000


def test_the_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Under TRITON_INTERPRET the command is refused, and says why."""
    monkeypatch.setattr("sigmoid_op.kernels.launch.INTERPRETED", True)
    assert main(["codegen"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


_SET_LATER = """
import os
import torch
from bench.codegen.catalogue import SIGMOID
from bench.codegen.compile import TARGETS, compile_kernel
os.environ["TRITON_INTERPRET"] = "1"
print(compile_kernel(SIGMOID[0], torch.bfloat16, TARGETS["sm_90"]).asm["ptx"])
"""


def test_code_does_not_follow_the_environment(tmp_path: Path) -> None:
    """Set after the import, TRITON_INTERPRET changes nothing that is compiled: Triton would keep it for all to come."""
    environment = compiling_environment() | {"TRITON_CACHE_DIR": str(tmp_path)}
    line = [sys.executable, "-c", _SET_LATER]
    ptx = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "cvt.rn.bf16" in ptx
    assert "f64" not in ptx


def _facts(kernel: str, dtype: str, terabytes: float) -> dict[str, Any]:
    prediction = {"binds": "memory", "copy_fraction": 0.97, "compute_bytes_per_second": terabytes * 1e12}
    return {
        "kernel": kernel, "dtype": dtype, "target": "sm_90", "alignment": "aligned", "bytes_per_element": 6,
        "loads": {"128": 4, "16": 1}, "stores": {"128": 2}, "shared_bytes": 32, "instructions": 8.19, "mufu": 0.5,
        "registers": 56, "stack_bytes": 0, "control_flow": {"BRA": 2, "BAR": 1}, "occupancy": 0.5625,
        "predictions": {gpu.name: prediction for gpu in GPUS if gpu.target == "sm_90"},
    }  # fmt: skip


def test_the_table_shows_what_was_read() -> None:
    """One kernel, cell by cell: GPUs with the same bound share a place; what AMD's code does not tell stays empty."""
    amd = {"kernel": "forward", "dtype": "float32", "bytes_per_element": 8, "shared_bytes": 0}
    amd |= {"loads": {"128": 4}, "stores": {"128": 4}}
    console = Console(width=200, record=True, file=StringIO())
    console.print(codegen.table_of([_facts("backward", "bfloat16", 25), amd], "title"))
    title, heading, _, first, second = (line.split() for line in console.export_text().splitlines() if line.strip())
    assert (title, heading[:5]) == (["title"], ["kernel", "dtype", "B", "instr", "MUFU"])
    counts = ["6", "8.19", "0.50", "128×4,", "16×1", "128×2", "56", "0", "32", "3", "56%"]
    assert first == ["backward", "bfloat16", *counts, "memory", "97%:", "H100,", "H200"]
    assert second == ["forward", "float32", "8", "128×4", "128×4", "0"]


def test_the_picture_shows_ours_and_pytorch_s() -> None:
    """A point for each kernel and dtype on the GPUs it was compiled for, PyTorch's on all; the title says so."""
    rates = {"bfloat16": [8.0, 25.0], "float32": [11.0, 130.0]}
    kernels = ("forward", "backward")
    rows = [_facts(name, dtype, rate) for dtype, of in rates.items() for name, rate in zip(kernels, of, strict=True)]
    theirs = [{"kernel": "forward", "dtype": "bfloat16", "instructions": 26.8, "mufu": 2.0}]
    figure = codegen.draw(rows, theirs)
    assert "Predicted" in figure.get_suptitle()
    lines = {
        gpu.name: {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in axes.lines}
        for gpu, axes in zip(GPUS, figure.axes, strict=True)
    }
    h200, b200 = lines["H200"], lines["B200"]
    assert {dtype: h200[dtype][1] for dtype in rates} == rates
    assert h200["memory (data sheet)"][1] == [4.8, 4.8]
    assert len({x for dtype in rates for x in h200[dtype][0]}) == 4  # no point over another
    assert h200["PyTorch's bfloat16"][1] == pytest.approx([4.99], abs=0.01)
    assert b200["PyTorch's bfloat16"][1] == pytest.approx([5.56], abs=0.01)  # below its memory's 7.7
    assert "bfloat16" not in b200


# Of a kernel with 128-bit accesses for whole blocks and masked ones for the rest, as cuobjdump prints it.
SASS = """
        /*0000*/                   S2R R2, SR_CTAID.X ;
        /*0010*/              @!P0 BRA 0x60 ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R4.64] ;
        /*0030*/                   MUFU.EX2 R9, R8 ;
        /*0040*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*0050*/                   EXIT ;
        /*0060*/              @!P1 LDG.E.U16 R8, desc[UR4][R4.64] ;
        /*0070*/              @!P1 STG.E.U16 desc[UR4][R2.64], R8 ;
        /*0080*/                   EXIT ;
"""


def test_counts_from_the_first_load_to_the_exit() -> None:
    """Of the full-block path, per element: 4 instructions, of which one is a special function.

    BRA.U has its condition among the operands, not before it: what stands behind it belongs to the path, too. PyTorch's
    instances for misaligned operands, whose accesses are narrower, are left out.
    """
    assert pytorch.count(SASS, torch.bfloat16) == {"dtype": "bfloat16", "instructions": 4 / 8, "mufu": 1 / 8}
    assert pytorch.count(SASS, torch.float32) == {"dtype": "float32", "instructions": 4 / 4, "mufu": 1 / 4}
    branching = pytorch.count(SASS.replace("MUFU.EX2 R9, R8", "BRA.U UP0, 0x50"), torch.float32)
    assert branching == {"dtype": "float32", "instructions": 3 / 4, "mufu": 0}
    assert pytorch.count(SASS.replace(".128", ".64"), torch.float32) is None


def test_a_pytorch_without_kernels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build for the CPU has no library to look into."""
    monkeypatch.setattr(pytorch, "LIBRARY", tmp_path / "libtorch_cuda.so")
    assert main(["pytorch", "--out", str(tmp_path)]) == 2
    assert "not built for CUDA" in capsys.readouterr().err
