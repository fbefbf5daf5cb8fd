"""``python -m bench codegen``: what the compiler makes of every kernel, for GPUs that need not be there.

The prediction is a bound from data sheets, not a measurement: bytes, issued instructions, special-function and
double-precision operations each at the GPU's best rate, the slowest of them setting the pace.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.gpus import GPUS, MULTIPROCESSORS, Prediction

if TYPE_CHECKING:  # Triton itself is imported by ``run``, so that the other commands do without it
    from sigmoid_op.kernels.catalogue import Kernel, TiledKernel

DEFAULT_FOLDER = Path("bench/out/codegen")
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
    from sigmoid_op.kernels.codegen import TARGETS, compile_kernel
    from sigmoid_op.kernels.machine_code import amd_access_bits, read_machine_code

    compiled = compile_kernel(kernel, dtype, TARGETS[target])
    bytes_per_element = kernel.bytes_per_element(dtype)
    name = str(dtype).removeprefix("torch.")
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


def draw_roofline(rows: list[Facts], path: Path) -> None:
    """One panel per GPU: the speed at which each kernel would compute, over the line of what memory can deliver."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 9), sharex=True, sharey=True, layout="constrained")
    kernels, dtypes = dict.fromkeys(row.kernel for row in rows), dict.fromkeys(row.dtype for row in rows)
    shapes = dict(zip(kernels, "osD^vPX", strict=False))
    colors = dict(zip(dtypes, ("C0", "C1", "C2", "C3"), strict=True))
    for gpu, panel in zip(GPUS, panels.flat, strict=True):
        ends = [0.15, 20.0]
        issue_rate = gpu.rates()["issue"]
        panel.loglog(ends, [issue_rate / x / 1e12 for x in ends], "--", color="0.5")
        panel.axhline(gpu.bytes_per_second / 1e12, color="black")
        for row in rows:
            if row.instructions is not None and (prediction := row.predictions.get(gpu.name)):
                x, y = row.instructions / row.bytes_per_element, prediction.compute_bytes_per_second / 1e12
                style = {"marker": shapes[row.kernel], "color": colors[row.dtype], "markeredgecolor": "white"}
                panel.plot(x, y, linestyle="", markersize=9, alpha=0.85, **style)
        panel.set_title(f"{gpu.name} ({gpu.target}), {gpu.bytes_per_second / 1e12:.2f} TB/s", fontsize=11)
        panel.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16], ["¼", "½", "1", "2", "4", "8", "16"])
        panel.set_yticks([2, 4, 8, 16, 32, 64, 128], ["2", "4", "8", "16", "32", "64", "128"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("instructions per byte moved")
    for panel in panels[:, 0]:
        panel.set_ylabel("TB/s, bytes read and written")
    figure.suptitle(
        "Predicted: the speed of sigmoid's kernels if memory cost nothing. Above the memory line it is that of a copy"
    )
    marks = [Line2D([], [], color="0.4", marker=shape, linestyle="", label=name) for name, shape in shapes.items()]
    marks += [Line2D([], [], color=color, marker="o", linestyle="", label=name) for name, color in colors.items()]
    marks.append(Line2D([], [], color="black", label="memory (data sheet)"))
    marks.append(Line2D([], [], color="0.5", linestyle="--", label="issue rate"))
    figure.legend(handles=marks, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m bench codegen``."""
    parser.add_argument("--target", action="append", help="sm_90, gfx942, ...; may be repeated (default: all)")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder for the files (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Compile, print the tables, write ``codegen.json`` and ``codegen.png``; return the exit code. Needs Triton."""
    from sigmoid_op.kernels.catalogue import FAMILY, SIGMOID
    from sigmoid_op.kernels.codegen import TARGETS
    from sigmoid_op.kernels.prepared import INTERPRETED

    console, errors = Console(), Console(stderr=True, soft_wrap=True)
    console.width = max(console.width, 140)  # a pipe's 80 columns would cut figures off
    targets: list[str] = args.target or list(TARGETS)
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
    args.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "triton": version("triton")},
        "gpus": [asdict(gpu) for gpu in GPUS],
        "kernels": [asdict(row) for row in rows],
    }
    (args.out / "codegen.json").write_text(json.dumps(document, indent=1) + "\n")
    drawn = {kernel.name for kernel in SIGMOID}  # with the family's a panel would be crowded
    draw_roofline([row for row in rows if row.alignment == "aligned" and row.kernel in drawn], args.out / "codegen.png")
    console.print(f"wrote codegen.json and codegen.png to {args.out}")
    return 0


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m bench.codegen", description=__doc__)
    add_arguments(_parser)
    raise SystemExit(run(_parser.parse_args()))
