"""Prove the error of the float32 σ at all 2^32 inputs: in C, whatever the GPU's reciprocal rounds to.

The kernel uses IEEE operations, which every device rounds alike, and one reciprocal, for which NVIDIA's manual allows
1 ulp. So each input is taken three times, with the reciprocal off by -1, 0 and +1 ulp. The reference is double
precision, good to 1e-8 ulp. Needs a C compiler (cc). tests/bench/test_accuracy.py compares the C code with the kernel
bit for bit.
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
from bench.options import add_out, output_folder, positive
from bench.report import output_console
from bench.results import write

SOURCE = Path(__file__).with_name("float32.c")
# No contraction: the formula says itself where a multiply and an add are fused.
COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-std=c11")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stride", type=positive, default=1, help="take every STRIDE-th float32 (default: 1, all 2^32, in minutes)"
    )
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 1 if an error exceeds 1 ulp, σ decreases somewhere, or a NaN is lost."""
    console = output_console()
    with tempfile.TemporaryDirectory() as folder:
        found = _sweep(build(Path(folder)), args.stride)
    console.print(_table(found))
    console.print(
        f"{found['mixed_decreases']} neighbours could be out of order if the reciprocal's error changed from one "
        "input to the next in the worst way."
    )
    cpu = torch.device("cpu")
    output = output_folder(args.out, cpu)
    write(output / "proof.json", "proof", environment(cpu), found={"float32": found})
    console.print(f"Results in {output}: proof.json", soft_wrap=True, highlight=False)
    sweeps = found["reciprocal_off"].values()
    return int(any(sweep["max_ulp"] > 1 or sweep["decreases"] or sweep["nan_lost"] for sweep in sweeps))


def build(folder: Path) -> str:
    """Compile the formula; the path of the program, whose usage stands at its head."""
    program = folder / "float32"
    subprocess.run([*COMPILE, "-o", program, SOURCE, "-lm"], check=True)
    return str(program)


def _sweep(program: str, size: int) -> dict[str, Any]:
    finished = subprocess.run([program, str(size)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


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
