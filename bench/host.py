"""Where the host time of a call goes: the wrapper, the Function, the launch, piece by piece, at 16 elements.

All pieces are timed in turn, round by round, on one thread, as a loop of calls ``function(argument)``. On CUDA the loop
ends with a synchronization: the device is faster than the host at this size, so what is seen is the host.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.autograd import Function

from bench.environment import environment
from bench.options import add_device_and_out, choose_device, output_folder, positive
from bench.report import output_console
from bench.results import Spread, write
from bench.side_by_side import one_thread
from sigmoid_op import SigmoidFunction, dispatch, sigmoid

ELEMENTS = 16
LARGE = 65536
ROUNDS = 100
Piece = tuple[Callable[[Any], Any], Any]  # a function and its argument


class WithCtx(Function):
    """The least a Function costs: ``forward`` takes ``ctx``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.sigmoid(x)
        ctx.save_for_backward(out)
        return out


class WithSetupContext(Function):
    """The form that torch.func needs, with the ``apply`` it comes with."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)


def pieces(device: torch.device) -> dict[str, dict[str, Piece]]:
    """What is timed, by group; the first of each group is what the others are compared with."""
    x = torch.randn(ELEMENTS, device=device)
    leaf = torch.randn(ELEMENTS, device=device, requires_grad=True)
    large = torch.randn(LARGE, device=device)
    grad_out = torch.ones(ELEMENTS, device=device)

    def forward_backward(function: Callable[[Tensor], Tensor]) -> Piece:
        return lambda x: torch.autograd.grad(function(x), x, grad_out), leaf

    groups: dict[str, dict[str, Piece]] = {
        f"{ELEMENTS} elements": {"torch.sigmoid": (torch.sigmoid, x), "sigmoid": (sigmoid, x)},
        f"{ELEMENTS} elements, with grad": {
            "torch.sigmoid": (torch.sigmoid, leaf),
            "sigmoid": (sigmoid, leaf),
            "SigmoidFunction.apply": (SigmoidFunction.apply, leaf),
            "a Function with ctx": (WithCtx.apply, leaf),
            "a Function with setup_context": (WithSetupContext.apply, leaf),
        },
        f"{ELEMENTS} elements, forward + backward": {
            "torch.sigmoid": forward_backward(torch.sigmoid),
            "sigmoid": forward_backward(sigmoid),
            "SigmoidFunction.apply": forward_backward(SigmoidFunction.apply),
        },
        f"{LARGE} elements": {"torch.sigmoid": (torch.sigmoid, large), "sigmoid": (sigmoid, large)},
    }
    if device.type == "cuda":
        groups["parts of a launch"] = _launch_pieces(x)
    return groups


def _launch_pieces(x: Tensor) -> dict[str, Piece]:
    from sigmoid_op.kernels import pointwise
    from sigmoid_op.kernels import sigmoid as formulas
    from sigmoid_op.kernels.launch import FP_FUSION, NUM_WARPS
    from sigmoid_op.kernels.sigmoid import launch_sigmoid

    out = torch.empty_like(x)
    n, size = x.numel(), pointwise.BLOCK_SIZES[x.element_size()]
    kernel = pointwise.pointwise_kernel[(1, 1, 1)]

    def by_triton(x: Tensor) -> None:
        kernel((), (x,), (out,), n, None, formulas.sigmoid, (), size, num_warps=NUM_WARPS, enable_fp_fusion=FP_FUSION)

    def guarded(x: Tensor) -> None:
        with torch.cuda.device(x.device):
            pass

    return {
        "torch.sigmoid": (torch.sigmoid, x),
        "launch_sigmoid: our launch and its output": (launch_sigmoid, x),
        "our launch alone": (lambda x: pointwise.launch(formulas.sigmoid, (), (x,), (out,)), x),
        "Triton's own launch": (by_triton, x),
        "empty_like": (torch.empty_like, x),
        "device guard": (guarded, x),
        "dispatch.supported": (dispatch.supported, x),
    }


def measure(device: torch.device, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds a call, a sample a round."""
    samples: dict[str, dict[str, list[float]]] = {}
    order = random.Random(0)  # each round in another order, so that nobody always comes after the same
    for group, calls in pieces(device).items():
        # On CUDA a sample is long enough for the synchronization at its end, some 10 us, to be a hundredth of it.
        seconds = 1e-3 if device.type == "cuda" else 2e-4
        repeats = {name: _repeats(piece, device, seconds) for name, piece in calls.items()}
        samples[group] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, piece in order.sample(list(calls.items()), len(calls)):
                samples[group][name].append(_sample(piece, repeats[name], device))
    return samples


def _repeats(piece: Piece, device: torch.device, seconds: float) -> int:
    """Calls that fill a sample, after a warm-up."""
    _sample(piece, 20, device)
    return max(3, round(seconds / (_sample(piece, 20, device) * 1e-6)))


def _sample(piece: Piece, repeats: int, device: torch.device) -> float:
    function, argument = piece
    start = time.perf_counter_ns()
    for _ in range(repeats):
        function(argument)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter_ns() - start) / repeats / 1e3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"samples of each piece (default {ROUNDS})")


def run(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    with one_thread():
        where = environment(device)
        samples = measure(device, args.rounds)
    table = Table(title=f"Host time of a call, {where['device']}")
    for column in ("", "median µs", "p20 to p80", "ratio to the first"):
        table.add_column(column, justify="right" if column else "left")
    for group, calls in samples.items():
        table.add_section()
        table.add_row(f"[bold]{group}")
        first = next(iter(calls.values()))
        for name, times in calls.items():
            time_us = Spread.of(times)
            ratio = statistics.median(ours / theirs for ours, theirs in zip(times, first, strict=True))
            spread = f"{time_us.p20:.2f} to {time_us.p80:.2f}"
            table.add_row(f"  {name}", f"{time_us.median:.2f}", spread, f"{ratio:.3f}")
    console = output_console()
    console.print(table)
    path = output_folder(args.out, device) / "host.json"
    write(path, "host", where, samples_us=samples)
    console.print(f"Results in {path.parent}: host.json", soft_wrap=True, highlight=False)
    return 0
