"""``python -m bench.ways_in``: the host time of a call, by each of the three ways to use the library.

Function, module after ``convert()``, and ``torch.sigmoid`` under ``enable()``, beside PyTorch's own; by default on 16
elements, which PyTorch's kernel computes in every case: what differs is the way there. On a machine without CUDA the
same Python runs on CPU tensors: TRITON_INTERPRET=1 makes the library ask about them what it asks about CUDA tensors,
and a size threshold above theirs keeps them from the kernels.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

# Read when Triton and the library are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.clocks import Effort, Sampler, calls_per_wall_sample, interleave, wall_sampler
from bench.environment import device_name
from bench.options import elements
from bench.results import Spread
from bench.verify import sigmoid_float64
from sigmoid_op import dispatch, sigmoid
from sigmoid_op.convert import convert
from sigmoid_op.override import enable

EFFORT = Effort(seconds=2.0, min_rounds=51, max_rounds=501)

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


def measure(x: Tensor, *, backward: bool) -> dict[str, list[float]]:
    """Nanoseconds per call of each way, a sample a round; results are compared with float64 first."""
    grad_out = torch.ones_like(x)
    x = x.detach().requires_grad_(backward)

    def call_of(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        if backward:
            return lambda: torch.autograd.grad(function(x), x, grad_out)
        return lambda: function(x)

    calls = {}
    for name, (function, enabled) in ways().items():
        with _as_claimed(enabled):
            torch.testing.assert_close(
                function(x).detach().double(), sigmoid_float64(x.detach().double()), rtol=1e-6, atol=0
            )
            calls[name] = call_of(function)
    n_calls = calls_per_wall_sample(calls.values(), _synchronize)
    samplers = {name: _sampler(call, n_calls, ways()[name][1]) for name, call in calls.items()}
    return interleave(samplers, EFFORT)


def _sampler(call: Callable[[], object], n_calls: int, enabled: bool) -> Sampler:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ways_in", description=__doc__)
    parser.add_argument("--elements", type=elements, default=16, help="size of the tensor, such as 16 or 2^24")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        dispatch.MIN_ELEMENTS = args.elements + 1  # the interpreter's default takes every size
    x = torch.randn(args.elements, device=device)

    table = Table(title=f"{args.elements} float32 elements on {device_name(device)}, torch {torch.__version__}")
    for column in ("µs per call (p20 to p80)", "median", "p20 to p80", "times PyTorch's"):
        table.add_column(column, justify="left" if "call" in column else "right")
    for title, backward in (("forward, no gradient", False), ("forward + backward", True)):
        samples = measure(x, backward=backward)
        table.add_section()
        table.add_row(f"[bold]{title}")
        for name, values in samples.items():
            native = samples["torch.sigmoid" if "torch.sigmoid" in name or "_op" in name else "nn.Sigmoid"]
            time = Spread.of([value / 1e3 for value in values])
            ratio = Spread.of([value / base for value, base in zip(values, native, strict=True)])
            table.add_row(name, f"{time.median:.2f}", f"{time.p20:.2f} to {time.p80:.2f}", f"{ratio.median:.2f}")
    console = Console()
    console.print(table)
    if device.type == "cpu":
        console.print("CPU tensors, by the way that CUDA tensors go; PyTorch's kernel computes.")


if __name__ == "__main__":
    main()
