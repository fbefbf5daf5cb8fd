"""Draw σ and its derivative, the picture of the README: ``docs/sigmoid.png``."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bench.environment import ROOT
from bench.options import UsageError, output_folder
from sigmoid_op import sigmoid

PICTURE = ROOT / "docs" / "sigmoid.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=PICTURE, help="the file to write (default: docs/sigmoid.png)")


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 for a file of another kind than a picture's."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    if (kind := args.out.suffix[1:]) not in (kinds := figure.canvas.get_supported_filetypes()):
        raise UsageError(f"{args.out} is none of {', '.join(sorted(kinds))}: {kind!r}")
    output_folder(args.out.parent)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64, requires_grad=True)
    out = sigmoid(x)
    (derivative,) = torch.autograd.grad(out.sum(), x)
    axes = figure.subplots()
    axes.plot(x.detach(), out.detach(), label=r"$\sigma(x) = 1\,/\,(1 + e^{-x})$", color="tab:blue")
    axes.plot(x.detach(), derivative, label=r"$\sigma'(x) = \sigma(x)\,(1 - \sigma(x))$", color="tab:orange")
    for y, text, offset, colour in ((0.5, "1/2", (-18, 4), "tab:blue"), (0.25, "1/4", (-6, 7), "tab:orange")):
        axes.plot(0, y, "o", color=colour)
        axes.annotate(text, (0, y), offset, textcoords="offset points")
    axes.axhline(1, color="grey", linewidth=0.6, linestyle=":")
    axes.set(xlabel="x", xlim=(-8, 8), ylim=(-0.03, 1.08))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    figure.savefig(args.out, dpi=120)
    print(f"picture: {args.out}")
    return 0
