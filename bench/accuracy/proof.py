"""Prove the error of the float32 σ at all 2^32 inputs, in C, whatever the GPU's reciprocal rounds to.

The kernel uses IEEE operations, which every device rounds alike, and one reciprocal, for which NVIDIA's manual allows
1 ulp. So each input is taken three times, with the reciprocal off by -1, 0 and +1 ulp. The reference is double
precision, good to 1e-8 ulp. Takes about three minutes; an interrupt keeps what is done, from -inf upwards. Needs a C
compiler (cc). tests/bench/test_accuracy.py compares the C code with the kernel bit for bit.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import results
from bench.environment import environment
from bench.options import CPU, UsageError, add_out, output_folder, positive
from bench.tables import output_console, print_files

SOURCE = Path(__file__).with_name("float32.c")
# No contraction: the formula says itself where a multiply and an add are fused.
COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=off", "-std=c11")
LARGEST_STRIDE = 2**20  # beyond it there are too few inputs for a finding to mean anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stride", type=positive, default=1, help="take every STRIDE-th float32 (default: 1, all 2^32)"
    )
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """The command: 0; 1 if an error exceeds 1 ulp, σ decreases, or a NaN is lost; 130 when interrupted."""
    if args.stride > LARGEST_STRIDE:
        raise UsageError(f"a stride is at most {LARGEST_STRIDE}, not {args.stride}")
    path = output_folder(args.out) / "proof.json"
    with tempfile.TemporaryDirectory() as folder:
        found = sweep(build(Path(folder)), args.stride)
    status = "complete" if found["complete"] else "interrupted"
    results.write(path, "proof", environment(CPU), status=status, found={"float32": found})
    print_files(path.parent, status, [path, *show(results.load(path), path.parent)])
    fails = any(of["nan_lost"] or of["max_ulp"] > 1 or of["decreases"] for of in found["reciprocal_off"].values())
    return 130 if status == "interrupted" else int(fails)


def build(folder: Path) -> str:
    """Compile the formula; the path of the program, whose usage stands at its head."""
    program = folder / "float32"
    try:
        subprocess.run([*COMPILE, "-o", program, SOURCE, "-lm"], check=True)
    except FileNotFoundError:
        raise UsageError("no C compiler (cc) is installed") from None
    return str(program)


def sweep(program: str, stride: int) -> dict[str, Any]:
    with subprocess.Popen([program, str(stride)], stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate()[0]
        except KeyboardInterrupt:  # which the program got, too, and prints what it has
            printed = process.communicate()[0]
    found: dict[str, Any] = json.loads(printed)
    return found


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of a proof.json. It has no picture."""
    found = record["found"]["float32"]
    table = Table(title=f"float32 σ, {found['inputs']:,} inputs and {found['nans']:,} NaNs", title_justify="left")
    table.add_column("reciprocal off by")
    for heading in ("max ulp", "at x", "correctly rounded", "decreases", "exact gradient: max ulp", "at x"):
        table.add_column(heading, justify="right")
    for off, of in found["reciprocal_off"].items():
        rounded = f"{of['correctly_rounded'] / found['inputs']:.4%}" if found["inputs"] else ""
        gradient = f"{of['gradient_max_ulp']:.4f}", f"{of['gradient_max_ulp_at']:.9g}"
        cells = f"{of['max_ulp']:.4f}", f"{of['max_ulp_at']:.9g}", rounded, str(of["decreases"]), *gradient
        table.add_row(f"{off} ulp", *cells)
    output_console().print(table)
    output_console().print(
        f"{found['mixed_decreases']} neighbours could be out of order if the reciprocal's error changed from one input "
        "to the next in the worst way."
    )
    return []
