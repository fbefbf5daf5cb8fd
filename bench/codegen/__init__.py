"""Compile every kernel for GPUs that need not be there, and tell what the compiler made of it.

The prediction is a bound from data sheets, not a measurement: bytes, issued instructions, special-function and
double-precision operations each at the GPU's best rate, the slowest of them setting the pace.
"""

import argparse
import textwrap
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.cases import dtype_name
from bench.environment import environment
from bench.gpus import GPUS, MULTIPROCESSORS, Prediction
from bench.options import add_out, output_folder
from bench.report import output_console
from bench.results import write

if TYPE_CHECKING:  # Triton itself is imported by ``run``, so that the other commands do without it
    from bench.codegen.catalogue import Kernel, TiledKernel

DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Of the sigmoid's own kernels. Those of the family have the same template, or the tiled one.
# Misaligned are the inputs, and the outputs.
ALIGNMENTS: dict[str, tuple[bool, bool]] = {
    "aligned": (False, False),
    "misaligned inputs": (True, False),
    "all misaligned": (True, True),
}


@dataclass(frozen=True)
class Facts:
    """One compiled kernel. Widths in bits, with the number of accesses a thread makes; counts are per element.

    For AMD, whose machine code is not followed, the widths are those of the whole kernel.
    """

    kernel: str
    dtype: str
    target: str
    alignment: str
    bytes_per_element: float
    loads: dict[int, int]
    stores: dict[int, int]
    shared_bytes: int
    instructions: float | None = None
    mufu: float | None = None
    registers: int | None = None
    stack_bytes: int | None = None
    local_accesses: int | None = None
    control_flow: dict[str, int] = field(default_factory=dict)
    occupancy: float | None = None
    predictions: dict[str, Prediction] = field(default_factory=dict)


def collect(kernel: "Kernel | TiledKernel", dtype: torch.dtype, target: str, alignment: str = "aligned") -> Facts:
    """Compile one kernel and read it. ``alignment`` says how its operands lie, and changes nothing here."""
    from bench.codegen.compile import TARGETS, compile_kernel
    from bench.codegen.machine_code import amd_access_bits, read_machine_code

    compiled = compile_kernel(kernel, dtype, TARGETS[target])
    bytes_per_element = kernel.bytes_per_element(dtype)
    name = dtype_name(dtype)
    if TARGETS[target].backend != "cuda":
        loads, stores = amd_access_bits(compiled, "load"), amd_access_bits(compiled, "store")
        shared = compiled.metadata.shared
        return Facts(kernel.name, name, target, alignment, bytes_per_element, dict(loads), dict(stores), shared)
    code = read_machine_code(compiled)
    return Facts(
        kernel=kernel.name,
        dtype=name,
        target=target,
        alignment=alignment,
        bytes_per_element=bytes_per_element,
        loads=dict(code.access_bits("load")),
        stores=dict(code.access_bits("store")),
        shared_bytes=code.shared_bytes,
        instructions=code.instructions_per_element,
        mufu=code.count("MUFU") / code.elements,
        registers=code.registers,
        stack_bytes=code.stack_bytes,
        local_accesses=code.local_accesses,
        control_flow=dict(code.control_flow),
        occupancy=MULTIPROCESSORS[target].occupancy(code, compiled.metadata.num_warps),
        predictions={gpu.name: gpu.predict(code, bytes_per_element) for gpu in GPUS if gpu.target == target},
    )


def table_of(rows: list[Facts], title: str) -> Table:
    """The facts, one compiled kernel a row."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("kernel", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("B", "instr", "MUFU", "loads", "stores", "regs", "local", "shared", "branch", "occ."):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for row in rows:
        table.add_row(
            row.kernel,
            row.dtype,
            f"{row.bytes_per_element:.3g}",
            _number(row.instructions),
            _number(row.mufu),
            _widths(row.loads),
            _widths(row.stores),
            _number(row.registers),
            _number(row.stack_bytes),
            str(row.shared_bytes),
            "" if row.instructions is None else str(sum(row.control_flow.values())),
            "" if row.occupancy is None else f"{row.occupancy:.0%}",
            _bounds(row.predictions),
        )
    return table


CAPTION = (
    "Full-block path, per element: B bytes moved, instr instructions, MUFU special-function operations; branch: its "
    "branches, calls and barriers. loads, stores: bits × accesses of a thread (gfx942: in the whole kernel). local, "
    "shared: bytes. bound by: the resource that takes longest, and the predicted share of the speed of a copy; "
    "the load/store units are not modelled, so that for misaligned pointers the share is an upper bound. "
    "issue: 128 thread instructions of any kind per clock and SM, although FP32 runs at 64 on the A100, and integer "
    "instructions at 64 on 8.x and 9.0. "
    "sm_120, float64: half to three quarters of instr are NOPs that wait for one of the SM's 2 double-precision units."
)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _widths(widths: dict[int, int]) -> str:
    return ", ".join(f"{bits}×{count}" for bits, count in sorted(widths.items(), reverse=True))


def _bounds(predictions: dict[str, Prediction]) -> str:
    gpus: dict[str, list[str]] = {}
    for gpu, prediction in predictions.items():
        gpus.setdefault(f"{prediction.binds} {prediction.copy_fraction:.0%}", []).append(gpu)
    return "; ".join(f"{bound}: {', '.join(names)}" for bound, names in gpus.items())


def draw(rows: list[Facts]) -> Figure:
    """A panel for each GPU, a column for each kernel: the rate of its arithmetic, over the line of the memory's."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle("Predicted compute rate of each kernel; above the black line memory is the limit")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    kernels, dtypes = (list(dict.fromkeys(names)) for names in ([r.kernel for r in rows], [r.dtype for r in rows]))
    for gpu, panel in zip(GPUS, panels.flat, strict=True):
        for i, dtype in enumerate(dtypes):
            rates = {
                kernels.index(row.kernel): row.predictions[gpu.name].compute_bytes_per_second / 1e12
                for row in rows
                if row.dtype == dtype and gpu.name in row.predictions
            }
            beside = 0.2 * (i - (len(dtypes) - 1) / 2)
            panel.plot([column + beside for column in rates], list(rates.values()), "o", label=dtype)
        panel.axhline(gpu.bytes_per_second / 1e12, color="black", label="memory (data sheet)")
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.set_title(f"{gpu.name} ({gpu.target}), {gpu.bytes_per_second / 1e12:.2f} TB/s", fontsize="medium")
        panel.set_xticks(range(len(kernels)), [textwrap.fill(name, 10) for name in kernels])
        panel.grid(axis="y", alpha=0.3)
        for column in range(1, len(kernels)):
            panel.axvline(column - 0.5, color="0.85", linewidth=0.8, zorder=0)
    for panel in panels[:, 0]:
        panel.set_ylabel("TB/s, bytes read and written")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="+", metavar="TARGET", help="such as sm_90 and gfx942 (default: all)")
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """Compile, print the tables, write ``codegen.json`` and ``codegen.png``; return the exit code. Needs Triton."""
    from bench.codegen.catalogue import FAMILY, SIGMOID
    from bench.codegen.compile import TARGETS
    from sigmoid_op.kernels.launch import INTERPRETED

    console, errors = output_console(), Console(stderr=True, soft_wrap=True)
    targets: list[str] = args.targets or list(TARGETS)
    if INTERPRETED:
        errors.print("python -m bench codegen: TRITON_INTERPRET is set, so that nothing is compiled: unset it")
        return 2
    if unknown := set(targets) - set(TARGETS):
        errors.print(f"python -m bench codegen: no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
        return 2
    groups = [(target, "aligned") for target in targets]
    misaligned = "sm_90" if "sm_90" in targets else targets[0]
    groups += [(misaligned, alignment) for alignment in ALIGNMENTS if alignment != "aligned"]
    kernels: dict[str, list[Kernel | TiledKernel]] = {
        name: [replace(kernel, misaligned_inputs=inputs, misaligned_outputs=outputs) for kernel in SIGMOID]
        for name, (inputs, outputs) in ALIGNMENTS.items()
    }
    kernels["aligned"] += FAMILY
    jobs = [(kernel, dtype, *group) for group in groups for dtype in DTYPES for kernel in kernels[group[1]]]
    rows = [collect(*job) for job in track(jobs, "Compiling", transient=True, console=errors)]
    for target, alignment in groups:
        group = [row for row in rows if (row.target, row.alignment) == (target, alignment)]
        console.print(table_of(group, f"{target}, {alignment}"))
    console.print(CAPTION)
    cpu = torch.device("cpu")
    folder = output_folder(args.out, cpu)
    facts = [asdict(row) for row in rows]
    write(folder / "codegen.json", "codegen", environment(cpu), gpus=[asdict(gpu) for gpu in GPUS], kernels=facts)
    drawn = {kernel.name for kernel in SIGMOID}  # with the family's a panel would be crowded
    figure = draw([row for row in rows if row.alignment == "aligned" and row.kernel in drawn])
    figure.savefig(folder / "codegen.png", dpi=120)
    console.print(f"Results in {folder}: codegen.json, codegen.png", soft_wrap=True, highlight=False)
    return 0
