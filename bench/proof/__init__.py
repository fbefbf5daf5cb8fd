"""Prove the error of the float32 σ: its formula in C, at all 2^32 inputs, whatever the GPU's reciprocal rounds to.

The float32 kernel uses IEEE operations, which every device rounds alike, and one reciprocal, for which NVIDIA's manual
allows 1 ulp. So the sweep is made three times, with the reciprocal off by -1, 0 and +1 ulp. The reference is double
precision, good to 1e-8 ulp of float32. Needs a C compiler (cc); tests/test_accuracy_bench.py compares the C code with
the kernel bit for bit.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench.environment import environment
from bench.options import DEFAULT_FOLDER, positive
from bench.report import output_console

SOURCE = Path(__file__).with_name("float32.c")
# No contraction: the formula says itself where a multiply and an add are fused.
COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-std=c11")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stride", type=positive, default=1, help="take every STRIDE-th input (default: 1, all 2^32, in minutes)"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder for proof.json (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 1 if the error exceeds 1 ulp, σ decreases somewhere, or a NaN is lost."""
    console = output_console()
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run([build(Path(folder)), str(args.stride)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout)
    console.print(_table(found))
    console.print(
        f"{found['mixed_decreases']} neighbours could be out of order if the reciprocal's error changed from one "
        "input to the next in the worst way."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"schema": 1, "kind": "proof", "environment": environment(torch.device("cpu")), "found": found}
    (args.out / "proof.json").write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"Results in {args.out}: proof.json", soft_wrap=True, highlight=False)
    sweeps = found["reciprocal_off"].values()
    return int(any(s["max_ulp"] > 1 or s["decreases"] or s["nan_lost"] for s in sweeps))


def build(folder: Path) -> str:
    """Compile the formula; the path of the program, whose usage stands at its head."""
    program = folder / "float32"
    subprocess.run([*COMPILE, "-o", program, SOURCE, "-lm"], check=True)
    return str(program)


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"float32 σ, {found['inputs']:,} inputs and {found['nans']:,} NaNs", title_justify="left")
    table.add_column("reciprocal off by")
    for heading in ("max ulp", "at x", "correctly rounded", "decreases", "exact gradient: max ulp", "at x"):
        table.add_column(heading, justify="right")
    for off, sweep in found["reciprocal_off"].items():
        table.add_row(
            f"{off} ulp",
            f"{sweep['max_ulp']:.4f}",
            f"{sweep['max_ulp_at']:.9g}",
            f"{sweep['correctly_rounded'] / found['inputs']:.4%}",
            str(sweep["decreases"]),
            f"{sweep['gradient_max_ulp']:.4f}",
            f"{sweep['gradient_max_ulp_at']:.9g}",
        )
    return table
