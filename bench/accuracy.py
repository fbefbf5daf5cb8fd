"""Compare every 16-bit input, a dense float32 sample and a float64 sample with the truth, beside PyTorch.

On CUDA float32 is taken at all 2^32 inputs. On a CPU the real kernels run in Triton's interpreter, where 2^x and the
reciprocal are NumPy's: that shows the formulas' error, to which a GPU's instructions add theirs. By how much at most
in 16-bit results, a second table bounds from the PTX manual; for float32 ``python -m bench proof`` covers it.
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
from rich.progress import Progress
from rich.table import Table

from bench import interpreter
from bench.bounded import Bound, bound
from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.report import output_console
from bench.results import write
from bench.sweep import (
    CURVE_INTERVALS,
    CURVE_REACH,
    EXACT,
    GRAD_OUTS,
    NEIGHBOURS,
    OURS,
    TORCH,
    Nans,
    Sweep,
    Tally,
    sweep,
    sweep_float64,
)
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
    if (code := interpreter.exit_code(args, device)) is not None:
        return code
    stride: int = args.stride or (1 if device.type == "cuda" else CPU_STRIDE)
    bounds = [bound(dtype) for dtype in (torch.bfloat16, torch.float16)]
    folder = output_folder(args.out, device)
    where = environment(device)
    sweeps: list[Sweep] = []
    status = "interrupted"
    # Where a GPU overflows to infinity without a word, NumPy warns.
    quiet = np.errstate(all="ignore") if dispatch.INTERPRETED else contextlib.nullcontext()
    progress = Progress(console=Console(stderr=True), transient=True)
    with quiet, torch.no_grad(), progress, contextlib.suppress(KeyboardInterrupt):
        planned = plan(device, stride)
        bar = progress.add_task("sweep", total=len(planned))
        for measure in planned:
            sweeps = sorted([*sweeps, measure()], key=_bytes_of_a_number)
            _save(folder / "accuracy.json", where, "running", stride, sweeps, bounds)
            progress.advance(bar)
        status = "complete"
    _save(folder / "accuracy.json", where, status, stride, sweeps, bounds)
    if not sweeps:
        return 130
    ran_in = "Triton's interpreter" if dispatch.INTERPRETED else where["device"]
    draw(_curves(sweeps), f"kernels in {ran_in}", folder / "accuracy.png")
    _print(output_console(), sweeps, bounds, ran_in)
    print(f"Results in {folder} ({status}): accuracy.json, accuracy.png")
    return 0 if status == "complete" else 130


def plan(device: torch.device, stride: int) -> list[Callable[[], Sweep]]:
    """One sweep per dtype, the longest one last."""
    of_every_number = partial(sweep, device=device, chunk=CHUNKS[device.type])
    return [
        partial(of_every_number, torch.bfloat16, stride=1),
        partial(of_every_number, torch.float16, stride=1),
        partial(sweep_float64, device),
        partial(of_every_number, torch.float32, stride=stride),
    ]


def _bytes_of_a_number(found: Sweep) -> int:
    dtype: torch.dtype = getattr(torch, found.tallies[0].dtype)
    return dtype.itemsize


def _save(
    path: Path, where: dict[str, Any], status: str, stride: int, sweeps: list[Sweep], bounds: list[Bound]
) -> None:
    write(
        path,
        "accuracy",
        where,
        status=status,
        float32_stride=stride,
        tallies=[asdict(tally) for found in sweeps for tally in found.tallies],
        nans=[asdict(found.nans) for found in sweeps if found.nans],
        curves=_curves(sweeps),
        bounded=[asdict(b) for b in bounds],
    )


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


def _curves(sweeps: list[Sweep]) -> dict[str, dict[str, list[float]]]:
    """By dtype and implementation, to three digits, enough for drawing."""
    return {
        found.tallies[0].dtype: {name: [float(f"{value:.3g}") for value in line] for name, line in found.curves.items()}
        for found in sweeps
        if found.curves
    }


def _print(console: Console, sweeps: list[Sweep], bounds: list[Bound], where: str) -> None:
    console.print(_table([tally for found in sweeps for tally in found.tallies], f"Measured, kernels in {where}"))
    console.print(
        "misses: results that are not the number nearest to the true value; flushed: those among them that are 0 where "
        "it is subnormal, not counted in max ulp. σ'(x) counts where it is a normal number, with grad_out = 1; dead "
        "from: the smallest positive x whose gradient is exactly 0. grad_out·out·(1 - out): every 16-bit out from 0 to "
        f"1 with {GRAD_OUTS} values of grad_out. decreases: σ of a number below σ of its predecessor; for float64 in "
        f"{NEIGHBOURS:,} pairs of neighbours."
    )
    for nans in (found.nans for found in sweeps):
        if nans:
            console.print(_nan_line(nans))
    if dispatch.INTERPRETED:
        console.print(
            "The interpreter computes 2^x and the reciprocal as NumPy does: this is the formulas' error, without that "
            "of a GPU's ex2.approx and rcp.approx. The backward kernels use neither; the kernels round bfloat16 to "
            "nearest even here as on a GPU. torch is PyTorch's CPU kernel."
        )
    table = Table(title="Bounded, not measured: 16-bit kernels on any NVIDIA GPU", title_justify="left")
    for heading in ("dtype", "inputs", "certainly nearest", "σ(x): max ulp", "exact_grad: max ulp"):
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for b in bounds:
        table.add_row(
            b.dtype, f"{b.inputs:,}", f"{b.certainly_nearest:,}", f"{b.max_ulp:.4f}", f"{b.gradient_max_ulp:.3f}"
        )
    console.print(table)
    console.print("Over every result that the PTX manual's error bounds permit: see bench/ACCURACY.md.")


def _table(tallies: list[Tally], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("dtype", "against", "implementation"):
        table.add_column(heading)
    for heading in ("inputs", "max ulp", "at x or out", "nearest", "misses", "flushed", "decreases", "dead from"):
        table.add_column(heading, justify="right", no_wrap=True)
    group = ("", "")
    for t in tallies:
        if group[0] not in ("", t.dtype):
            table.add_section()
        decreases = "" if t.decreases is None else f"{t.decreases:,}"
        cells = [f"{1 - t.misses / t.inputs:.3%}", f"{t.misses:,}", f"{t.flushed:,}", decreases]
        at = "" if t.max_ulp_at is None else f"{t.max_ulp_at:.6g}"
        dead = "" if t.first_dead is None else f"{t.first_dead:.6g}"
        repeated = (t.dtype, t.quantity) == group
        labels = ("", "") if repeated else (t.dtype, t.quantity)
        group = (t.dtype, t.quantity)
        table.add_row(*labels, t.implementation, f"{t.inputs:,}", _ulps(t.max_ulp), at, *cells, dead)
    return table


def _ulps(value: float) -> str:
    return f"{value:.5g}" if value < 1e4 else f"{value:.1e}"


def _nan_line(nans: Nans) -> str:
    return (
        f"{nans.dtype}: {nans.kept:,} of {nans.inputs:,} NaNs stay NaN; "
        f"{nans.same_bits:,} have the bits of PyTorch's result."
    )
