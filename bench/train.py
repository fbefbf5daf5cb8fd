"""Train a network on real data with PyTorch's ops and with sigmoid_op's, side by side, and compare.

Two networks of the same weights see the same batches in turn, so that loss curves, scores, step times and memory are
fair to compare. digits: a classifier with nn.Sigmoid and with sigmoid_op.Sigmoid. multilabel: a classifier with
imbalanced labels, trained with binary cross entropy and with focal loss. Small tensors take the kernels here, whatever
the library's size threshold is.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from bench import digits, multilabel
from bench.options import add_device_and_out, choose_device, output_folder, positive

# Each trains for some steps, writes its files into the folder, and tells whether both networks agree.
TASKS: dict[str, Callable[[int, torch.device, Path], bool]] = {"digits": digits.run, "multilabel": multilabel.run}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_and_out(parser)
    parser.add_argument("--task", choices=TASKS, default="digits", help="what to learn (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=300, help="optimizer steps (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """The command: 0, or 1 when two trainings that should agree differ."""
    device = choose_device(args.device)
    return 0 if TASKS[args.task](args.steps, device, output_folder(args.out, device)) else 1
