"""Prove the error of the float32 σ at all 2^32 inputs, sample float64's: in C, whatever the GPU's reciprocal rounds to.

Both kernels use IEEE operations, which every device rounds alike, and one float32 reciprocal, for which NVIDIA's manual
allows 1 ulp. So each input is taken three times, with the reciprocal off by -1, 0 and +1 ulp. The reference for float32
is double precision, good to 1e-8 ulp; for float64 it is extended precision, good to 0.003 ulp. The float64 sample is
windows of 4096 neighbours, at random and where a rounding changes. Needs a C compiler (cc) whose long double is wider
than double. tests/bench/test_accuracy.py compares the C code with the kernels bit for bit.
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

SOURCES = {dtype: Path(__file__).with_name(f"{dtype}.c") for dtype in ("float32", "float64")}
# No contraction: the formula says itself where a multiply and an add are fused.
COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-std=c11")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stride", type=positive, default=1, help="take every STRIDE-th float32 (default: 1, all 2^32, in minutes)"
    )
    parser.add_argument(
        "--windows", type=positive, default=500_000, help="float64: windows of 4096 neighbours (default: %(default)s)"
    )
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 1 if an error exceeds 1 ulp, σ decreases somewhere, or a NaN is lost."""
    console = output_console()
    with tempfile.TemporaryDirectory() as folder:
        float32 = _sweep(build("float32", Path(folder)), args.stride)
        float64 = _sweep(build("float64", Path(folder)), args.windows)
    console.print(_float32_table(float32))
    console.print(
        f"{float32['mixed_decreases']} neighbours could be out of order if the reciprocal's error changed from one "
        "input to the next in the worst way."
    )
    console.print(_float64_table(float64))
    console.print(
        f"{float64['mixed_decreases']} of the {float64['reciprocal_changes']:,} neighbours with different reciprocals "
        "could be out of order if these erred in the worst way."
    )
    cpu = torch.device("cpu")
    output = output_folder(args.out, cpu)
    found = {"float32": float32, "float64": float64}
    write(output / "proof.json", "proof", environment(cpu), found=found)
    console.print(f"Results in {output}: proof.json", soft_wrap=True, highlight=False)
    of_float32 = list(float32["reciprocal_off"].values())
    of_float64 = [sweep for sweeps in float64["reciprocal_off"].values() for sweep in sweeps.values()]
    nan_lost = float64["nan_lost"] + sum(sweep["nan_lost"] for sweep in of_float32)
    return int(nan_lost > 0 or any(sweep["max_ulp"] > 1 or sweep["decreases"] for sweep in of_float32 + of_float64))


def build(dtype: str, folder: Path) -> str:
    """Compile the formula for ``dtype``; the path of the program, whose usage stands at its head."""
    program = folder / dtype
    subprocess.run([*COMPILE, "-o", program, SOURCES[dtype], "-lm"], check=True)
    return str(program)


def _sweep(program: str, size: int) -> dict[str, Any]:
    finished = subprocess.run([program, str(size)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def _float32_table(found: dict[str, Any]) -> Table:
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


def _float64_table(found: dict[str, Any]) -> Table:
    """A row for each kind of window: the worst of the three reciprocals."""
    title = f"float64 σ, {found['neighbours']:,} pairs of neighbours and {found['compared']:,} inputs compared"
    table = Table(title=title, title_justify="left")
    table.add_column("where")
    for heading in ("max ulp", "at x", "correctly rounded", "decreases", "exact gradient: max ulp"):
        table.add_column(heading, justify="right")
    for where, sweeps in found["reciprocal_off"].items():
        worst = max(sweeps.values(), key=lambda sweep: float(sweep["max_ulp"]))
        table.add_row(
            where,
            f"{worst['max_ulp']:.4f}",
            f"{worst['max_ulp_at']:.17g}",
            f"{min(sweep['correctly_rounded'] / sweep['compared'] for sweep in sweeps.values()):.2%}",
            str(sum(sweep["decreases"] for sweep in sweeps.values())),
            f"{max(sweep['gradient_max_ulp'] for sweep in sweeps.values()):.4f}",
        )
    return table
