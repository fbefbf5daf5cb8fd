"""Compile every kernel for GPUs that need not be there, and tell what the compiler made of it.

The prediction is a bound from data sheets, not a measurement: bytes, issued instructions, special-function and
double-precision operations each at the GPU's best rate, the slowest of them setting the pace. About four minutes on two
cores; an interrupt keeps what is compiled. ``python -m bench pytorch`` counts PyTorch's own kernels for the picture.
"""

import argparse
import textwrap
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import results
from bench.cases import dtype_name
from bench.codegen.gpus import GPUS, MULTIPROCESSORS
from bench.environment import environment
from bench.options import CPU, UsageError, add_out, output_folder
from bench.plot import DTYPE_COLOURS
from bench.tables import output_console, print_files

if TYPE_CHECKING:  # Triton itself is imported by ``run``, so that the other commands do without it
    from bench.codegen.catalogue import Kernel

DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
PYTORCH = Path(__file__).parents[1] / "results" / "codegen" / "pytorch.json"
# Of the picture; with all the family's a panel would be crowded.
DRAWN = ("forward", "backward", "exact forward", "swiglu", "swiglu backward", "BCE", "BCE backward", "focal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", metavar="TARGET", help="such as sm_90 and gfx942 (default: all)")
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """The command: 0, 2 where nothing can be compiled, 130 when interrupted. Needs Triton."""
    from bench.codegen.catalogue import FAMILY, SIGMOID
    from bench.codegen.compile import TARGETS
    from sigmoid_op.kernels.launch import INTERPRETED

    targets: list[str] = args.targets or list(TARGETS)
    if INTERPRETED:
        raise UsageError("TRITON_INTERPRET is set, so that nothing is compiled: unset it")
    if unknown := set(targets) - set(TARGETS):
        raise UsageError(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    path = output_folder(args.out) / "codegen.json"
    jobs = [(kernel, dtype, target) for target in targets for dtype in DTYPES for kernel in (*SIGMOID, *FAMILY)]
    # The sigmoid's own alone: those of the family have the same template, or the tiled one.
    of_misaligned = "sm_90" if "sm_90" in targets else targets[0]
    jobs += [(replace(kernel, misaligned=True), dtype, of_misaligned) for dtype in DTYPES for kernel in SIGMOID]
    rows: list[dict[str, Any]] = []
    status = "interrupted"
    with suppress(KeyboardInterrupt):
        for job in track(jobs, "Compiling", transient=True, console=Console(stderr=True)):
            rows.append(collect(*job))
        status = "complete"
    results.write(path, "codegen", environment(CPU), status=status, gpus=[*map(asdict, GPUS)], kernels=rows)
    print_files(path.parent, status, [path, *show(results.load(path), path.parent)])
    return 0 if status == "complete" else 130


def collect(kernel: "Kernel", dtype: torch.dtype, target: str) -> dict[str, Any]:
    """Compile one kernel and read it.

    Widths of accesses in bits, with the number that a thread makes; for AMD, whose machine code is not followed, those
    of the whole kernel. Counts are per element.
    """
    from bench.codegen.compile import TARGETS, compile_kernel
    from bench.codegen.machine_code import amd_access_bits, read_machine_code

    compiled = compile_kernel(kernel, dtype, TARGETS[target])
    n_bytes = kernel.bytes_per_element(dtype)
    facts: dict[str, Any] = {
        "kernel": kernel.name, "dtype": dtype_name(dtype), "target": target,
        "alignment": "misaligned" if kernel.misaligned else "aligned",
        "bytes_per_element": n_bytes, "shared_bytes": compiled.metadata.shared,
    }  # fmt: skip
    if TARGETS[target].backend != "cuda":
        return facts | {"loads": amd_access_bits(compiled, "load"), "stores": amd_access_bits(compiled, "store")}
    code = read_machine_code(compiled)
    mufu = code.count("MUFU") / code.elements
    fp64 = code.count("DADD", "DMUL", "DFMA", "DSETP", "DMNMX") / code.elements
    occupancy = MULTIPROCESSORS[target].occupancy(code.registers, code.shared_bytes, compiled.metadata.num_warps)
    return facts | {
        "loads": code.access_bits("load"),
        "stores": code.access_bits("store"),
        "instructions": code.instructions_per_element,
        "mufu": mufu,
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "local_accesses": code.local_accesses,
        "control_flow": code.control_flow,
        "occupancy": occupancy,
        "predictions": {
            gpu.name: gpu.predict(n_bytes, code.instructions_per_element, mufu, fp64)
            for gpu in GPUS
            if gpu.target == target
        },
    }


CAPTION = (
    "Full-block path, per element: B bytes moved, instr instructions, MUFU special-function operations; branch: its "
    "branches, calls and barriers. loads, stores: bits × accesses of a thread (gfx942: in the whole kernel). local, "
    "shared: bytes. bound by: the resource that takes longest, and the predicted share of the speed of a copy; "
    "the load/store units are not modelled, so that for misaligned pointers the share is an upper bound. "
    "issue: 128 thread instructions of any kind per clock and SM, although FP32 runs at 64 on the A100, and integer "
    "instructions at 64 on 8.x and 9.0. "
    "sm_120, float64: half to three quarters of instr are NOPs that wait for one of the SM's 2 double-precision units."
)


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the tables of a codegen.json, and draw its picture."""
    console, rows = output_console(), record["kernels"]
    for target, alignment in dict.fromkeys((row["target"], row["alignment"]) for row in rows):
        group = [row for row in rows if (row["target"], row["alignment"]) == (target, alignment)]
        console.print(table_of(group, f"{target}, {alignment}"))
    console.print(CAPTION)
    drawn = [row for row in rows if row["alignment"] == "aligned" and row["kernel"] in DRAWN and "predictions" in row]
    if not drawn:
        return []
    draw(drawn, results.load(PYTORCH)["kernels"]).savefig(folder / "codegen.png", dpi=120)
    return [folder / "codegen.png"]


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """The facts, one compiled kernel a row."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("kernel", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("B", "instr", "MUFU", "loads", "stores", "regs", "local", "shared", "branch", "occ."):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for row in rows:
        instructions, mufu, registers, local, branches, occupancy, bounds = [""] * 7
        if row.get("instructions") is not None:
            instructions, mufu = f"{row['instructions']:.2f}", f"{row['mufu']:.2f}"
            registers, local, branches = (
                str(row["registers"]),
                str(row["stack_bytes"]),
                str(sum(row["control_flow"].values())),
            )
            occupancy, bounds = f"{row['occupancy']:.0%}", _bounds(row["predictions"])
        widths = _widths(row["loads"]), _widths(row["stores"])
        table.add_row(
            row["kernel"], row["dtype"], f"{row['bytes_per_element']:.3g}", instructions, mufu, *widths,
            registers, local, str(row["shared_bytes"]), branches, occupancy, bounds,
        )  # fmt: skip
    return table


def _widths(widths: dict[Any, int]) -> str:
    return ", ".join(f"{bits}×{count}" for bits, count in sorted(widths.items(), key=lambda item: -int(item[0])))


def _bounds(predictions: dict[str, dict[str, Any]]) -> str:
    gpus: dict[str, list[str]] = {}
    for gpu, prediction in predictions.items():
        gpus.setdefault(f"{prediction['binds']} {prediction['copy_fraction']:.0%}", []).append(gpu)
    return "; ".join(f"{bound}: {', '.join(names)}" for bound, names in gpus.items())


def draw(rows: list[dict[str, Any]], pytorch: list[dict[str, Any]]) -> Figure:
    """A panel for each GPU, a column for each kernel: the rate of its arithmetic, over the line of the memory's.

    PyTorch's σ, as rings, by its instructions for sm_90.
    """
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(
        "Predicted from instruction counts and data sheets, not measured: how fast a kernel's arithmetic could move "
        "its bytes.\nBelow the black line a kernel is slower than a copy; above it memory is the limit."
    )
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    kernels = [name for name in DRAWN if any(row["kernel"] == name for row in rows)]
    dtypes = [name for name in DTYPE_COLOURS if any(row["dtype"] == name for row in rows)]
    theirs = [{**row, "predictions": _of_pytorch(row)} for row in pytorch if row["dtype"] != "float64"]
    rings = {"fillstyle": "none", "markersize": 9}  # around a point of ours at the same place
    for gpu, panel in zip(GPUS, panels.flat, strict=True):
        for (who, group, style), (i, dtype) in product(
            (("", rows, {}), ("PyTorch's ", theirs, rings)), enumerate(dtypes)
        ):
            shown = [row for row in group if row["dtype"] == dtype and gpu.name in row["predictions"]]
            at = [kernels.index(row["kernel"]) + 0.2 * (i - (len(dtypes) - 1) / 2) for row in shown]
            rates = [row["predictions"][gpu.name]["compute_bytes_per_second"] / 1e12 for row in shown]
            panel.plot(at, rates, "o", color=DTYPE_COLOURS[dtype], label=who + dtype if shown else None, **style)
        panel.axhline(gpu.bytes_per_second / 1e12, color="black", label="memory (data sheet)")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set_title(f"{gpu.name} ({gpu.target}), {gpu.bytes_per_second / 1e12:.2f} TB/s", fontsize="medium")
        panel.set_xticks(range(len(kernels)), [textwrap.fill(name, 10) for name in kernels])
        panel.grid(axis="y", alpha=0.3)
        for column in range(1, len(kernels)):
            panel.axvline(column - 0.5, color="0.85", linewidth=0.8, zorder=0)
    for panel in panels[:, 0]:
        panel.set_ylabel("TB/s, bytes read and written")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _of_pytorch(row: dict[str, Any]) -> dict[str, Any]:
    """What each GPU would make of one of PyTorch's kernels."""
    n_bytes = getattr(torch, row["dtype"]).itemsize * (2 if row["kernel"] == "forward" else 3)
    return {gpu.name: gpu.predict(n_bytes, row["instructions"], row["mufu"]) for gpu in GPUS}
