"""Measure the host time of every op: without gradients, forward with them, and forward and backward, at 16 elements.

In units of torch.sigmoid on 16 CPU elements, each sample over one of the same round, beside PyTorch's eager form. On
CUDA the launches are real, and the device is faster than the host at this size. On a CPU Triton's real runtime compiles
and launches, by a driver whose launches cost nothing ("kernel"); and the same calls are timed as they are there, where
PyTorch's operators run ("wrapper"). Then sigmoid by each way to use the library. About a minute, and another one for
the compiler when run for the first time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.benchmark import Timer

from bench.environment import ROOT, environment
from bench.ops import OPS, Form, Operands, kernels_from
from bench.options import add_device_and_out, choose_device, elements, output_folder, positive
from bench.results import load, write
from bench.tables import output_console, print_files
from bench.timing import Effort, Sampler, interleave
from sigmoid_op import convert, dispatch, enable, sigmoid

ELEMENTS, ROUNDS = 16, 60
SAMPLE_NS = {"cpu": 2e5, "cuda": 1e6}  # of which the synchronization at its end, some 10 µs, is a hundredth
MODES = "no grad", "forward with grad", "forward + backward"
UNIT = "torch.sigmoid on 16 CPU elements"
WAYS = "sigmoid, by way"
Groups = list[dict[str, Any]]  # of each op and mode the samples, in nanoseconds a call


def sampler(form: Form, operands: Operands, n_gradients: int, mode: str) -> Sampler:
    """Calls of ``form`` in a loop, for some tenths of a millisecond. ``torch.utils.benchmark`` synchronizes a GPU."""
    leaves = [x.detach().requires_grad_(mode != MODES[0]) for x in operands[:n_gradients]]
    names = {f"x{i}": x for i, x in enumerate((*leaves, *operands[n_gradients:]))}
    statement = f"form({', '.join(names)})"
    scope: dict[str, Any] = {"form": form, **names}
    if mode == MODES[2]:
        scope |= {"grad": torch.autograd.grad, "leaves": leaves, "grad_out": torch.ones_like(form(*names.values()))}
        statement = f"grad({statement}, leaves, grad_out)"
    timer = Timer(statement, globals=scope)
    timer.timeit(20)
    n_calls = max(3, round(SAMPLE_NS[operands[0].device.type] / (timer.timeit(20).mean * 1e9)))
    return lambda: timer.timeit(n_calls).mean * 1e9


def measure(groups: Groups, route: str, device: torch.device, n_elements: int, rounds: int) -> None:
    """Add the samples of every op and mode to ``groups``, one after the other, until interrupted."""
    unit = sampler(torch.sigmoid, (torch.randn(ELEMENTS),), 1, MODES[0])
    for row in OPS:
        operands = row.operands(n_elements, torch.float32, device)
        for mode in MODES:
            forms = {"ours": row.ours, "torch": row.pytorch}
            samplers = {name: sampler(form, operands, row.n_gradients, mode) for name, form in forms.items()}
            samples = interleave({"unit": unit, **samplers}, Effort(0, rounds, rounds))
            groups.append({"op": row.name, "mode": mode, "route": route, "samples_ns": samples})


def measure_ways(groups: Groups, device: torch.device, n_elements: int, rounds: int) -> None:
    """The same of ``sigmoid`` below its threshold, by each way to use the library: what asking costs."""
    converted = nn.Sigmoid()
    convert(converted)
    ways: dict[str, tuple[Form, bool]] = {
        "torch.sigmoid": (torch.sigmoid, False),
        "sigmoid": (sigmoid, False),
        "torch.sigmoid under enable()": (torch.sigmoid, True),
        "nn.Sigmoid": (nn.Sigmoid(), False),
        "nn.Sigmoid after convert()": (converted, False),
    }
    x = (torch.randn(n_elements, device=device),)

    def under(enabled: bool, sample: Sampler) -> Sampler:
        def sample_as_claimed() -> float:
            with enable() if enabled else nullcontext():
                if ("override.py" in torch._C._dispatch_dump("aten::sigmoid")) is not enabled:
                    raise RuntimeError("PyTorch's operator table is not what is to be timed")
                return sample()

        return sample_as_claimed

    for mode in MODES:
        samplers = {name: under(enabled, sampler(form, x, 1, mode)) for name, (form, enabled) in ways.items()}
        with kernels_from(n_elements + 1):
            samples = interleave(samplers, Effort(0, rounds, rounds))
        groups.append({"op": WAYS, "mode": mode, "route": "kernel", "samples_ns": samples})


def on_kernels(device: torch.device, n_elements: int, rounds: int) -> tuple[Groups, bool]:
    """The groups that run our kernels, and whether all of them are there: an interrupt keeps those that are done."""
    groups: Groups = []
    try:
        with kernels_from(1):
            measure(groups, "kernel", device, n_elements, rounds)
            measure_ways(groups, device, n_elements, rounds)
    except KeyboardInterrupt:
        return groups, False
    return groups, True


def with_free_launches(n_elements: int, rounds: int) -> tuple[Groups, bool]:
    """:func:`on_kernels` in a process whose launches cost nothing."""
    program = (
        "from bench import free_launches; free_launches.install(); import json, torch; from bench import host; "
        f"print(json.dumps(host.on_kernels(torch.device('cpu'), {n_elements}, {rounds})))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate()[0]
        except KeyboardInterrupt:  # which the other process got, too, and prints what it has
            printed = process.communicate()[0]
    if not printed:
        return [], False
    groups, complete = json.loads(printed.splitlines()[-1])
    return groups, complete


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--elements", type=elements, default=ELEMENTS, help="such as 16 or 2^20 (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help="samples of each (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 130 when interrupted. Without Triton the kernels are left out."""
    device = choose_device(args.device)
    path = output_folder(args.out, device) / "host.json"
    groups: Groups = []
    complete = False
    with suppress(KeyboardInterrupt):
        if device.type == "cuda":
            groups, complete = on_kernels(device, args.elements, args.rounds)
        else:
            measure(groups, "wrapper", device, args.elements, args.rounds)
            complete = not dispatch.HAS_TRITON
            if dispatch.HAS_TRITON:
                of_kernels, complete = with_free_launches(args.elements, args.rounds)
                groups = of_kernels + groups
    status = "complete" if complete else "interrupted"
    write(path, "host", environment(device), status=status, n_elements=args.elements, groups=groups)
    print_files(path.parent, status, [path, *show(load(path), path.parent)])
    return 0 if complete else 130


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the tables of a host.json. It has no picture."""
    console = output_console()
    groups = record["groups"]
    unit_ns = statistics.median([ns for g in groups for ns in g["samples_ns"].get("unit", ())] or [0.0])
    for route in dict.fromkeys(group["route"] for group in groups):
        launches = "real" if record["environment"]["device_type"] == "cuda" else "free"
        title = {"kernel": f"kernels, launches {launches}", "wrapper": "plain CPU tensors, PyTorch's operators"}[route]
        table = Table(
            title=f"Host time of a call of {record['n_elements']} elements: {title}", title_justify="left",
            caption=f"ours / PyTorch's, in units of {UNIT}: {unit_ns / 1e3:.2f} µs", caption_justify="left",
        )  # fmt: skip
        table.add_column("op")
        for mode in MODES:
            table.add_column(mode, justify="right")
        of_route = {(g["op"], g["mode"]): g["samples_ns"] for g in groups if g["route"] == route and g["op"] != WAYS}
        for op in dict.fromkeys(op for op, _ in of_route):
            table.add_row(op, *(_cell(of_route.get((op, mode))) for mode in MODES))
        console.print(table)
    ways = {group["mode"]: group["samples_ns"] for group in groups if group["op"] == WAYS}
    if ways:
        table = Table(title="sigmoid below its threshold, by way: time over PyTorch's own", title_justify="left")
        for heading in ("way", *ways):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        for name in next(iter(ways.values())):
            base = "nn.Sigmoid" if name.startswith("nn.") else "torch.sigmoid"
            table.add_row(name, *(f"{ratio(of_mode[name], of_mode[base]):.2f}" for of_mode in ways.values()))
        console.print(table)
    return []


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the quotients, taken round by round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _cell(samples: dict[str, list[float]] | None) -> str:
    if samples is None:
        return ""
    return " / ".join(f"{ratio(samples[name], samples['unit']):.1f}" for name in ("ours", "torch"))
