"""Compare every 16-bit input, a dense float32 sample and a float64 sample with the truth, beside PyTorch.

On CUDA float32 is taken at all 2^32 inputs, in about a minute. On a CPU the kernels run in Triton's interpreter, in
some three minutes; 2^x and the reciprocal are NumPy's there: that shows the formulas' error, to which a GPU's
instructions add theirs. By how much at most in 16-bit results, a second table bounds from the PTX manual; for float32
``python -m bench proof`` covers it.
"""

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import interpreter, results
from bench.accuracy.bounded import bound
from bench.accuracy.sweeps import (
    CURVE_INTERVALS,
    CURVE_REACH,
    EXACT,
    GRAD_OUTS,
    NEIGHBOURS,
    OURS,
    TORCH,
    Sweep,
    sweep,
    sweep_float64,
)
from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.tables import output_console, print_files
from sigmoid_op import dispatch

CPU_STRIDE = 1021  # prime, so that it does not keep step with the exponent: 4.2 million float32 inputs
CHUNKS = {"cpu": 2**18, "cuda": 2**24}
STYLES: dict[str, dict[str, Any]] = {
    TORCH: {"color": "tab:blue", "linewidth": 5, "alpha": 0.35},
    OURS: {"color": "tab:orange", "linewidth": 1.8},
    EXACT: {"color": "tab:red", "linewidth": 1.8},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument(
        "--stride",
        type=positive,
        help=f"take every STRIDE-th float32 (default: 1, all 2^32, on CUDA; {CPU_STRIDE} on a CPU)",
    )


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 where the kernels cannot run; 130 when interrupted. Needs Triton."""
    device = choose_device(args.device)
    folder = output_folder(args.out, device)
    if (code := interpreter.exit_code(args, device, folder)) is not None:
        return code
    stride: int = args.stride or (1 if device.type == "cuda" else CPU_STRIDE)
    path, where = folder / "accuracy.json", environment(device)
    bounds = [asdict(bound(dtype)) for dtype in (torch.bfloat16, torch.float16)]
    sweeps: list[Sweep] = []

    def save(status: str) -> None:
        tallies = [asdict(tally) for swept in sweeps for tally in swept.tallies]
        nans = [asdict(swept.nans) for swept in sweeps if swept.nans]
        curves = {swept.tallies[0].dtype: swept.curves for swept in sweeps if swept.curves}
        results.write(
            path, "accuracy", where,
            status=status, float32_stride=stride, tallies=tallies, nans=nans, curves=curves, bounded=bounds,
        )  # fmt: skip

    status = "interrupted"
    # Where a GPU overflows to infinity without a word, NumPy warns.
    quiet = np.errstate(all="ignore") if dispatch.INTERPRETED else contextlib.nullcontext()
    with quiet, torch.no_grad(), contextlib.suppress(KeyboardInterrupt):
        for measure in track(plan(device, stride), "Sweeping", transient=True, console=Console(stderr=True)):
            sweeps = sorted([*sweeps, measure()], key=lambda swept: getattr(torch, swept.tallies[0].dtype).itemsize)
            save("running")
        status = "complete"
    save(status)
    print_files(folder, status, [path, *show(results.load(path), folder)])
    return 0 if status == "complete" else 130


def plan(device: torch.device, stride: int) -> list[Callable[[], Sweep]]:
    """One sweep per dtype, the longest one last."""
    chunk = CHUNKS[device.type]
    return [
        partial(sweep, torch.bfloat16, device, 1, chunk),
        partial(sweep, torch.float16, device, 1, chunk),
        partial(sweep_float64, device),
        partial(sweep, torch.float32, device, stride, chunk),
    ]


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the tables of an accuracy.json, and draw its picture where it has one."""
    console, interpreted = output_console(), record["environment"]["interpreted"]
    where = "Triton's interpreter" if interpreted else record["environment"]["device"]
    console.print(_table(record["tallies"], f"Measured, kernels in {where}"))
    console.print(
        "misses: results that are not the number nearest to the true value; flushed: those among them that are 0 where "
        "it is subnormal, not counted in max ulp. σ'(x) counts where it is a normal number, with grad_out = 1; dead "
        "from: the smallest positive x whose gradient is exactly 0. grad_out·out·(1 - out): every 16-bit out from 0 to "
        f"1 with {GRAD_OUTS} values of grad_out. decreases: σ of a number below σ of its predecessor; for float64 in "
        f"{NEIGHBOURS:,} pairs of neighbours."
    )
    for nans in record["nans"]:
        kept, bits = f"{nans['kept']:,} of {nans['inputs']:,} NaNs stay NaN", f"{nans['same_bits']:,}"
        console.print(f"{nans['dtype']}: {kept}; {bits} have the bits of PyTorch's result.")
    if interpreted:
        console.print("2^x and 1/x are NumPy's here, not a GPU's approximations. torch is PyTorch's CPU kernel.")
    table = Table(title="Bounded, not measured: 16-bit kernels on any NVIDIA GPU", title_justify="left")
    for heading in ("dtype", "inputs", "certainly nearest", "σ(x): max ulp", "exact_grad: max ulp"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for b in record["bounded"]:
        errors = f"{b['max_ulp']:.4f}", f"{b['gradient_max_ulp']:.3f}"
        table.add_row(b["dtype"], f"{b['inputs']:,}", f"{b['certainly_nearest']:,}", *errors)
    console.print(table)
    console.print("Over every result that the PTX manual's error bounds permit: see docs/accuracy.md.")
    if not record["curves"]:
        return []
    draw(record["curves"], f"kernels in {where}", folder / "accuracy.png")
    return [folder / "accuracy.png"]


def draw(curves: dict[str, dict[str, list[float]]], where: str, path: Path) -> None:
    """A panel per dtype: the largest relative error of the gradient in each small interval of x."""
    width = 2 * CURVE_REACH / CURVE_INTERVALS
    x = [-CURVE_REACH + (i + 0.5) * width for i in range(CURVE_INTERVALS)]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle(f"Relative error of the gradient against σ'(x), {where} (1 = gradient is 0)")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (dtype, lines) in zip(panels, curves.items(), strict=True):
        for name, line in lines.items():
            axes.plot(x, line, label=name, **STYLES[name])
        axes.set(yscale="log", ylim=(1e-8, 5), xlabel="x", title=dtype)
        subnormal_from = -math.log(torch.finfo(getattr(torch, dtype)).tiny)
        if subnormal_from < CURVE_REACH:
            for start, side in ((-CURVE_REACH, "left"), (subnormal_from, "right")):
                axes.axvspan(start, start + CURVE_REACH - subnormal_from, color="0.92", zorder=0)
                axes.text(0.98 if side == "right" else 0.02, 0.03, "σ' subnormal", ha=side, transform=axes.transAxes)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"largest relative error per interval of {width:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def _table(tallies: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("dtype", "against", "implementation"):
        table.add_column(heading)
    for heading in ("inputs", "max ulp", "at x or out", "nearest", "misses", "flushed", "decreases", "dead from"):
        table.add_column(heading, justify="right", no_wrap=True)
    group = ("", "")
    for t in tallies:
        if group[0] not in ("", t["dtype"]):
            table.add_section()
        labels = ("", "") if (t["dtype"], t["quantity"]) == group else (t["dtype"], t["quantity"])
        group = (t["dtype"], t["quantity"])
        ulps = f"{t['max_ulp']:.5g}" if t["max_ulp"] < 1e4 else f"{t['max_ulp']:.1e}"
        at, dead = ("" if t[key] is None else f"{t[key]:.6g}" for key in ("max_ulp_at", "first_dead"))
        counts = [f"{t['misses']:,}", f"{t['flushed']:,}", "" if t["decreases"] is None else f"{t['decreases']:,}"]
        nearest = f"{1 - t['misses'] / t['inputs']:.3%}"
        table.add_row(*labels, t["implementation"], f"{t['inputs']:,}", ulps, at, nearest, *counts, dead)
    return table
