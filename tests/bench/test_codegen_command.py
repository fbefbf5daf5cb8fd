"""``python -m bench codegen`` and ``pytorch``: what is compiled is told, and PyTorch's kernels are counted alike."""

import argparse
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
from bench.codegen import pytorch
from bench.codegen.gpus import GPUS
from bench.environment import ROOT
from bench.options import UsageError
from tests.conftest import compiling_environment

# In a process of its own, as nothing is compiled where TRITON_INTERPRET is set; two kernels in one dtype are enough.
CODEGEN = """
import sys
from bench import codegen
from bench.__main__ import main
from bench.codegen import catalogue
codegen.DTYPES = codegen.DTYPES[:1]
catalogue.SIGMOID, catalogue.FAMILY = catalogue.SIGMOID[:2], ()
if "--interrupted" in sys.argv:
    sys.argv.remove("--interrupted")
    collect, jobs = codegen.collect, []
    def interrupted(*job):
        jobs.append(job)
        if len(jobs) == 2:
            raise KeyboardInterrupt
        return collect(*job)
    codegen.collect = interrupted
sys.exit(main(sys.argv[1:]))
"""


def _codegen(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", CODEGEN, "codegen", "--targets", "sm_90", "--out", str(folder), *options]
    return subprocess.run(line, cwd=ROOT, env=compiling_environment(), capture_output=True, text=True, check=False)


def test_codegen_compiles_and_tells(tmp_path: Path) -> None:
    """Every kernel at each alignment: in the file, with its environment, and in the tables; and the picture."""
    pytest.importorskip("triton")
    done = _codegen(tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "codegen.json").read_text())
    assert (record["kind"], record["status"]) == ("codegen", "complete")
    assert record["environment"]["argv"] == ["codegen", "--targets", "sm_90"]
    names = [(kernel["kernel"], kernel["alignment"]) for kernel in record["kernels"]]
    assert names == [(name, alignment) for alignment in codegen.ALIGNMENTS for name in ("forward", "backward")]
    forward = record["kernels"][0]
    assert (forward["bytes_per_element"], forward["mufu"], forward["loads"]) == (4, 2, {"128": 2})
    assert 5 < forward["instructions"] < 15
    assert all(f"sm_90, {alignment}" in done.stdout for alignment in codegen.ALIGNMENTS)
    assert f"{forward['instructions']:.2f}" in done.stdout
    assert (tmp_path / "codegen.png").stat().st_size > 10_000


def test_an_interrupt_keeps_what_is_compiled(tmp_path: Path) -> None:
    """Code 130; the first kernel is in the file and in the table."""
    pytest.importorskip("triton")
    done = _codegen(tmp_path, "--interrupted")
    assert done.returncode == 130, done.stderr
    record = json.loads((tmp_path / "codegen.json").read_text())
    assert (record["status"], [kernel["kernel"] for kernel in record["kernels"]]) == ("interrupted", ["forward"])
    assert f"Results in {tmp_path} (interrupted): codegen.json, codegen.png" in done.stdout


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


@pytest.mark.parametrize(("dtype", "elements"), [(torch.bfloat16, 8), (torch.float32, 4)], ids=str)
def test_counts_from_the_first_load_to_the_exit(dtype: torch.dtype, elements: int) -> None:
    """Of the full-block path, per element: 4 instructions, of which one is a special function."""
    facts = pytorch.count(SASS, dtype)
    assert facts == {"dtype": str(dtype)[6:], "instructions": 4 / elements, "mufu": 1 / elements}


def test_a_uniform_branch_may_fall_through() -> None:
    """BRA.U has its condition among the operands, not before it: what stands behind it belongs to the path."""
    facts = pytorch.count(SASS.replace("MUFU.EX2 R9, R8", "BRA.U UP0, 0x50"), torch.float32)
    assert facts is not None
    assert facts["instructions"] == 3 / 4  # the load, the branch and the store


def test_instances_with_narrower_accesses_are_left_out() -> None:
    """PyTorch has instances for misaligned operands, too."""
    assert pytorch.count(SASS.replace(".128", ".64"), torch.float32) is None


def test_a_pytorch_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build for the CPU has no library to look into."""
    monkeypatch.setattr(pytorch, "LIBRARY", tmp_path / "libtorch_cuda.so")
    with pytest.raises(UsageError, match="not built for CUDA"):
        pytorch.run(argparse.Namespace(out=tmp_path))
