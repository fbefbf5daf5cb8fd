"""Measure the host time of a call, by each of the three ways to use the library.

Function, module after ``convert()``, and ``torch.sigmoid`` under ``enable()``, beside PyTorch's own; by default on 16
elements, which PyTorch's kernel computes in every case: what differs is the way there. On a machine without CUDA the
same Python runs on CPU tensors: in Triton's interpreter the library asks about them what it asks about CUDA tensors,
and a size threshold above theirs keeps them from the kernels.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from rich.table import Table
from torch import Tensor, nn

from bench import interpreter
from bench.cases import Case, Layout, Pass, size_label
from bench.clocks import Effort, Sampler, calls_per_wall_sample, interleave, wall_sampler
from bench.environment import environment
from bench.options import add_device_and_out, choose_device, elements, output_folder
from bench.providers import Call, Provider, kernels_from, pytorch, user_call
from bench.report import output_console
from bench.results import Spread, write
from bench.side_by_side import one_thread
from bench.verify import verify
from sigmoid_op import convert, dispatch, sigmoid
from sigmoid_op.override import enable

EFFORT = Effort(seconds=2.0, min_rounds=51, max_rounds=501)
PASSES: tuple[Pass, ...] = ("forward", "forward+backward")

Way = tuple[Callable[[Tensor], Tensor], bool]  # the function called, and whether under enable()


def ways() -> dict[str, Way]:
    """PyTorch's own, with which the others are compared, and the three ways in."""
    converted = nn.Sigmoid()
    convert(converted)
    return {
        "torch.sigmoid": (torch.sigmoid, False),
        "sigmoid_op.sigmoid": (sigmoid, False),
        "torch.sigmoid under enable()": (torch.sigmoid, True),
        "nn.Sigmoid": (nn.Sigmoid(), False),
        "nn.Sigmoid after convert()": (converted, False),
        "nn.Sigmoid under enable()": (nn.Sigmoid(), True),
    }


def measure(case: Case, pass_: Pass, device: torch.device) -> dict[str, list[float]]:
    """Nanoseconds per call of each way, a sample a round; results are compared with float64 first."""
    operands = case.inputs(device)
    calls: dict[str, Call] = {}
    for name, (function, enabled) in ways().items():
        provider = Provider(function, pytorch().backward, function)
        with _as_claimed(enabled):
            verify(provider, case, device)
            calls[name] = user_call(provider, pass_, operands)
    n_calls = calls_per_wall_sample(calls.values(), _synchronize)
    return interleave({name: _sampler(call, n_calls, ways()[name][1]) for name, call in calls.items()}, EFFORT)


def _sampler(call: Call, n_calls: int, enabled: bool) -> Sampler:
    sample = wall_sampler(call, n_calls, _synchronize)

    def sample_as_claimed() -> float:
        with _as_claimed(enabled):
            return sample()

    return sample_as_claimed


@contextmanager
def _as_claimed(enabled: bool) -> Iterator[None]:
    """With or without ``enable()``, and PyTorch's operator table says the same."""
    with enable() if enabled else nullcontext():
        if ("override.py" in torch._C._dispatch_dump("aten::sigmoid")) is not enabled:
            raise RuntimeError("PyTorch's operator table is not what is to be timed")
        yield


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--elements", type=elements, default=16, help="size of the tensor, such as 16 or 2^24")


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 where the kernels cannot run. Needs Triton."""
    device = choose_device(args.device)
    if (code := interpreter.exit_code(args, device)) is not None:
        return code
    layout = Layout.contiguous([args.elements])
    case = Case(size_label(args.elements), "size", torch.float32, layout, layout)
    threshold = args.elements + 1 if device.type == "cpu" else dispatch.MIN_ELEMENTS["sigmoid"]
    with one_thread(), kernels_from(threshold):
        where = environment(device)
        samples = {pass_: measure(case, pass_, device) for pass_ in PASSES}
    folder = output_folder(args.out, device)
    write(folder / "ways_in.json", "ways_in", where, n_elements=args.elements, samples_ns=samples)
    console = output_console()
    console.print(_table(samples, f"{args.elements} float32 elements on {where['device']}"))
    if device.type == "cpu":
        console.print("CPU tensors, by the way that CUDA tensors go; PyTorch's kernel computes.")
    console.print(f"Results in {folder}: ways_in.json", soft_wrap=True, highlight=False)
    return 0


def _table(samples: dict[Pass, dict[str, list[float]]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("µs per call", "median", "p20 to p80", "times PyTorch's"):
        table.add_column(column, justify="left" if "call" in column else "right")
    for pass_, ways in samples.items():
        table.add_section()
        table.add_row(f"[bold]{pass_}")
        for name, values in ways.items():
            native = ways["nn.Sigmoid" if name.startswith("nn.") else "torch.sigmoid"]
            time = Spread.of([value / 1e3 for value in values])
            ratio = Spread.of([value / base for value, base in zip(values, native, strict=True)])
            table.add_row(name, f"{time.median:.2f}", f"{time.p20:.2f} to {time.p80:.2f}", f"{ratio.median:.2f}")
    return table
