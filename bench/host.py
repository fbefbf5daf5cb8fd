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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import timing
from bench.cases import Case, Operands
from bench.environment import ROOT, environment
from bench.ops import BOTH, FORWARD, OPS, Form, kernels_from
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.results import write
from bench.tables import left_table, output_console, present
from bench.timing import Call, Effort, Sampler
from sigmoid_op import convert, dispatch, enable, sigmoid
from sigmoid_op.ops.shared import EagerFunction

ELEMENTS, ROUNDS = 16, 60
SAMPLE_NS = {"cpu": 2e5, "cuda": 1e6}  # of which the synchronization at its end, some 10 µs, is a hundredth
NO_GRAD, WITH_GRAD, WITH_BACKWARD = MODES = "no grad", "forward with grad", "forward + backward"
UNIT = "torch.sigmoid on 16 CPU elements"
WAYS, LEAST = "sigmoid, by way", "a Function that allocates, no more"
Groups = list[dict[str, Any]]  # of each op and mode the samples, in nanoseconds a call


def call(form: Form, operands: Operands, mode: str) -> Call:
    if mode == WITH_GRAD:
        return partial(form, *operands.leaves()[1])
    return operands.call(form, FORWARD if mode == NO_GRAD else BOTH)


def sampler(call: Call, device: torch.device) -> Sampler:
    """A loop for some tenths of a millisecond."""
    timing.wall_sampler(call, 20)()
    return timing.wall_sampler(call, timing.calls_per_wall_sample([call], SAMPLE_NS[device.type]))


def measure(groups: Groups, route: str, device: torch.device, n_elements: int, rounds: int) -> None:
    """Add the samples of every op and mode to ``groups``, one after the other, until interrupted."""
    unit = sampler(partial(torch.sigmoid, torch.randn(ELEMENTS)), torch.device("cpu"))
    for row in OPS:
        operands = Case.of_size(row, torch.float32, n_elements).operands(device)
        for mode in MODES:
            forms = {"ours": row.ours, "torch": row.pytorch}
            samplers = {name: sampler(call(form, operands, mode), device) for name, form in forms.items()}
            samples = timing.interleave({"unit": unit, **samplers}, Effort(0, rounds, rounds))
            groups.append({"op": row.name, "mode": mode, "route": route, "samples_ns": samples})


class _Least(EagerFunction):
    """What any op costs that is written in Python, whatever it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.empty_like(x)


def measure_least(groups: Groups, device: torch.device, n_elements: int, rounds: int) -> None:
    """The same of a Function that launches nothing, and of its allocation alone."""
    operands = Case.of_size(OPS[0], torch.float32, n_elements).operands(device)
    unit = sampler(partial(torch.sigmoid, torch.randn(ELEMENTS)), torch.device("cpu"))
    for mode in MODES:
        form: Form = torch.empty_like if mode == NO_GRAD else _Least.apply
        samplers = {"unit": unit, "ours": sampler(call(form, operands, mode), device)}
        samples = timing.interleave(samplers, Effort(0, rounds, rounds))
        groups.append({"op": LEAST, "mode": mode, "route": "kernel", "samples_ns": samples})


def measure_ways(groups: Groups, device: torch.device, n_elements: int, rounds: int) -> None:
    """The same of ``sigmoid`` below its threshold, by each way to use the library: what dispatch costs."""
    operands = Case.of_size(OPS[0], torch.float32, n_elements).operands(device)
    converted = nn.Sigmoid()
    convert(converted)
    forms: dict[str, Form] = {"torch.sigmoid": torch.sigmoid, "sigmoid": sigmoid}
    forms |= {"nn.Sigmoid": nn.Sigmoid(), "nn.Sigmoid after convert()": converted}
    for mode in MODES:
        with kernels_from(n_elements + 1):
            samplers = {name: sampler(call(form, operands, mode), device) for name, form in forms.items()}
            samplers["torch.sigmoid under enable()"] = _enabled(samplers["torch.sigmoid"])
            samples = timing.interleave(samplers, Effort(0, rounds, rounds))
        groups.append({"op": WAYS, "mode": mode, "route": "kernel", "samples_ns": samples})


def _enabled(sample: Sampler) -> Sampler:
    def sample_enabled() -> float:
        with enable():
            if "override.py" not in torch._C._dispatch_dump("aten::sigmoid"):
                raise RuntimeError("enable() left PyTorch's operator table as it was")
            return sample()

    return sample_enabled


def on_kernels(device: torch.device, n_elements: int, rounds: int) -> tuple[Groups, bool]:
    """The groups that run our kernels, and whether all of them are there: an interrupt keeps those that are done."""
    groups: Groups = []
    try:
        with kernels_from(1):
            measure(groups, "kernel", device, n_elements, rounds)
            measure_least(groups, device, n_elements, rounds)
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
    parser.add_argument("--elements", type=positive, default=ELEMENTS, help="such as 16 or 2^20 (default: %(default)s)")
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
    present(path, show)
    return 0 if complete else 130


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the tables of a host.json. It has no picture."""
    groups = [group for group in record["groups"] if group["op"] != WAYS]
    unit_ns = statistics.median([ns for group in groups for ns in group["samples_ns"]["unit"]] or [0.0])
    for route in dict.fromkeys(group["route"] for group in groups):
        launches = "real" if record["environment"]["device_type"] == "cuda" else "free"
        title = {"kernel": f"kernels, launches {launches}", "wrapper": "plain CPU tensors, PyTorch's operators"}[route]
        table = left_table(
            f"Host time of a call of {record['n_elements']} elements: {title}", ["op"], MODES,
            caption=f"ours / PyTorch's, in units of {UNIT}: {unit_ns / 1e3:.2f} µs", caption_justify="left",
        )  # fmt: skip
        cells = {(g["op"], g["mode"]): _cell(g["samples_ns"]) for g in groups if g["route"] == route}
        for op in dict.fromkeys(op for op, _ in cells):
            table.add_row(op, *(cells.get((op, mode), "") for mode in MODES))
        output_console().print(table)
    ways = {group["mode"]: group["samples_ns"] for group in record["groups"] if group["op"] == WAYS}
    if ways:
        table = left_table("sigmoid below its threshold, by way: time over PyTorch's own", ["way"], list(ways))
        for name in next(iter(ways.values())):
            base = "nn.Sigmoid" if name.startswith("nn.") else "torch.sigmoid"
            table.add_row(name, *(f"{ratio(of_mode[name], of_mode[base]):.2f}" for of_mode in ways.values()))
        output_console().print(table)
    return []


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the quotients, taken round by round."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _cell(samples: dict[str, list[float]]) -> str:
    return " / ".join(f"{ratio(samples[name], samples['unit']):.1f}" for name in ("ours", "torch") if name in samples)
