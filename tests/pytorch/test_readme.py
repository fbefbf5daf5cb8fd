"""The README says what the recorded results say, and its snippet runs."""

import json
import re
from statistics import median
from typing import Any

import pytest

from bench.environment import ROOT
from bench.ops import OPS

README = (ROOT / "README.md").read_text()
DTYPES = ("bfloat16", "float16", "float32", "float64")


def _recorded(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    return record


_TALLIES = {(t["dtype"], t["quantity"], t["implementation"]): t for t in _recorded("cpu/accuracy")["tallies"]}
_PROVED = _recorded("cpu/proof")["found"]["float32"]["reciprocal_off"].values()
OURS, EXACT, TORCH, CUDA_FORMULA = "sigmoid_op", "sigmoid_op, exact_grad", "torch", "torch's CUDA formula, recomputed"
SIGMA, SLOPE, BACKWARD = "σ(x)", "σ'(x)", "grad_out·out·(1 - out) of the given out"


def _tally(key: str, quantity: str, implementation: str, *dtypes: str) -> list[Any]:
    return [_TALLIES[dtype, quantity, implementation][key] for dtype in dtypes]


def _accuracy_rows() -> list[str]:
    error = max(sweep["max_ulp"] for sweep in _PROVED)
    (torch_error,) = _tally("max_ulp", SIGMA, TORCH, "float32")
    bf16, fp16 = _tally("misses", SIGMA, OURS, *DTYPES[:2])
    of_bf16, of_fp16 = _tally("inputs", SIGMA, OURS, *DTYPES[:2])
    torch_bf16, torch_fp16 = _tally("misses", SIGMA, TORCH, *DTYPES[:2])
    dead, torch_dead, exact_dead = (_tally("first_dead", SLOPE, who, *DTYPES[:3]) for who in (OURS, TORCH, EXACT))
    exact = _tally("max_ulp", SLOPE, EXACT, *DTYPES[:2])
    exact_float32 = max(sweep["gradient_max_ulp"] for sweep in _PROVED)
    backward, of_cuda = (_tally("max_ulp", BACKWARD, who, *DTYPES[:2]) for who in (OURS, CUDA_FORMULA))
    return [
        f"| largest error of σ, float32 | **{error:.2f} ulp** of all 2^32 inputs | {torch_error:.2f} ulp of a sample |",
        f"| σ not the nearest number | **{bf16}** of {of_bf16:,} bfloat16, **{fp16}** of {of_fp16:,} float16 inputs "
        f"| {torch_bf16}, {torch_fp16} |",
        *("| {:.2f}, {:.2f}, {:.1f} |".format(*first) for first in (dead, torch_dead)),
        "| **{:.0f}**, **{:.1f}**, **{:.0f}**, where".format(*exact_dead),
        f"| **{exact[0]:.2f}**, **{exact[1]:.2f}**, **{exact_float32:.2f}** ulp |",
        f"{max(backward):.2f} ulp | CUDA's formula, recomputed: {of_cuda[0]:.2f}, {of_cuda[1]:.2f} ulp |",
    ]


def _instruction_rows() -> list[str]:
    """Per element on sm_90, the fewer in bold; and the predictions below the speed of a copy that the text names."""
    ours = {
        (row["kernel"], row["dtype"]): row
        for row in _recorded("codegen/codegen")["kernels"]
        if (row["target"], row["alignment"]) == ("sm_90", "aligned")
    }
    torchs = {(row["kernel"], row["dtype"]): row for row in _recorded("codegen/pytorch")["kernels"]}
    rows = []
    for kernel in ("forward", "backward"):
        pairs = [(ours[kernel, dtype]["instructions"], torchs[kernel, dtype]["instructions"]) for dtype in DTYPES]
        mine = ", ".join(f"**{a:.1f}**" if a < b else f"{a:.1f}" for a, b in pairs)
        others = ", ".join(f"{b:.1f}" if a < b else f"**{b:.1f}**" for a, b in pairs)
        rows.append(f" | {mine} | {others} |")
    return rows


def _cost_rows() -> list[str]:
    host = _recorded("cpu/host")["samples_us"].values()
    ratios = [_ratio(group["sigmoid"], group["torch.sigmoid"]) for group in host]
    ways = _recorded("cpu/ways_in")["samples_ns"]["forward"]
    costs = {
        "the call": ("sigmoid_op.sigmoid", "torch.sigmoid"),
        "the modules' class, in place": ("nn.Sigmoid after convert()", "nn.Sigmoid"),
        "PyTorch's own operators, on CUDA": ("torch.sigmoid under enable()", "torch.sigmoid"),
    }
    return [
        "| time over that of `torch.sigmoid` | {} |".format(" | ".join(f"{ratio:.2f}" for ratio in ratios)),
        *(f"| {what} | {_ratio(ways[a], ways[b]):.2f} × `{b}` |" for what, (a, b) in costs.items()),
    ]


def _ratio(times: list[float], others: list[float]) -> float:
    return median(a / b for a, b in zip(times, others, strict=True))


def _traffic_rows() -> list[str]:
    rows = []
    for name, label in {
        "sigmoid_gate": "| `x * torch.sigmoid(gate)`",
        "sigmoid_gate, SE": "| the same, a gate per channel, channels_last or not |",
        "silu": "| `F.silu`",
        "swiglu": "| `F.silu(gate) * up`",
        "swiglu, packed": "| the same of `packed.chunk(2, -1)`",
        "glu": "| `F.glu`",
        "logsigmoid": "| `F.logsigmoid`",
        "bce_with_logits": "| the same of `F`",
        "bce_with_logits, pos_weight": "| the same with `pos_weight` |",
        "sigmoid_focal_loss": "| that of `torchvision.ops`",
    }.items():
        (row,) = (row for row in OPS if row.name == name)
        ours, theirs = row.moved, row.pytorch_moved
        rows.append(f"{label} | {ours[0]}, {ours[1]} | {theirs[0]}, {theirs[1]} |")
    return rows


@pytest.mark.parametrize("row", [*_accuracy_rows(), *_instruction_rows(), *_cost_rows()])
def test_figures_are_those_recorded(row: str) -> None:
    """A figure of the tables is the one in the results file, rounded."""
    assert row in README


@pytest.mark.parametrize("row", _traffic_rows())
def test_traffic_is_that_of_the_benchmark(row: str) -> None:
    """The elements moved are those that the benchmark's bandwidths are computed with."""
    assert row in README.replace("**", "")


def test_the_snippet_runs(fallback: object) -> None:
    """The first six lines a newcomer copies, on whatever device there is."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["x"].grad.shape == names["x"].shape
