"""What is timed: an op's row at a size, an odd length, a misaligned view, or a call recorded in a real model."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ops import BACKWARD, FORWARD, LOSS_SCALE, OPS, PASSES, Form, Op, of_pass
from bench.timing import Call

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
RECORDED_CALLS = Path(__file__).with_name("recorded_calls.json")
# Of these sizes σ is also timed at an odd length and on a misaligned view: one launch-bound, one that fits in a GPU's
# L2 cache, one that does not.
UNEVEN_SIZES = (2**12, 2**20, 2**26)


@dataclass(frozen=True)
class Layout:
    """Where a tensor's elements lie in its allocation; ``stride`` and ``offset`` are in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def contiguous(cls, shape: Sequence[int], offset: int = 0) -> "Layout":
        return cls(tuple(shape), torch.empty(tuple(shape), device="meta").stride(), offset)

    def randn(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal: zeros would hide an unwritten result."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        memory = torch.randn(self.offset + last + 1, dtype=dtype, device=device)
        return memory.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Operands:
    """``n_gradients`` of ``inputs`` are differentiated, the first ones; ``grad_out`` is given to backward."""

    inputs: tuple[Tensor, ...]
    n_gradients: int
    grad_out: Tensor

    def leaves(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The differentiated inputs, and all, sharing the memory of ``inputs``."""
        leaves = [x.detach().requires_grad_() for x in self.inputs[: self.n_gradients]]
        return leaves, (*leaves, *self.inputs[self.n_gradients :])

    def call(self, form: Form, pass_: str) -> Call:
        """What a user writes: forward without gradients; backward of one graph, which is kept; or both."""
        if pass_ == FORWARD:
            return partial(form, *self.inputs)
        leaves, inputs = self.leaves()
        if pass_ == BACKWARD:
            return partial(torch.autograd.grad, form(*inputs), leaves, self.grad_out, retain_graph=True)
        return lambda: torch.autograd.grad(form(*inputs), leaves, self.grad_out)

    def copy(self, pass_: str) -> Call:
        """The traffic of an op that reads one operand and writes one: clone, then add (2 read, 1 written), or both."""
        (x,), grad_out = self.inputs, self.grad_out
        calls = {FORWARD: lambda: x.clone(), BACKWARD: lambda: torch.add(x, grad_out)}
        return calls.get(pass_) or (lambda: (x.clone(), torch.add(x, grad_out)))


@dataclass(frozen=True)
class Case:
    """One input to time; ``n_elements`` are those of the result, for a loss of the logits.

    ``x`` and ``grad_out``: their layouts, where they are not those of the row. ``count``: how often a recorded call was
    seen in a training step.
    """

    row: Op
    dtype: torch.dtype
    n_elements: int
    label: str
    kind: str = "size"
    x: Layout | None = None
    grad_out: Layout | None = None
    passes: tuple[str, ...] = PASSES
    count: int = 1

    @classmethod
    def of_size(cls, row: Op, dtype: torch.dtype, n_elements: int) -> "Case":
        return cls(row, dtype, n_elements, f"{row.name} {size_label(n_elements)}")

    def bytes_moved(self, pass_: str, pair: tuple[int, int] | None = None) -> int:
        """What must move; of an expanded gradient only what is in memory."""
        elements = of_pass(pair or self.row.moved, pass_) * self.n_elements
        if self.grad_out and pass_ != FORWARD:
            stored = [n for n, step in zip(self.grad_out.shape, self.grad_out.stride, strict=True) if step]
            elements -= self.n_elements - math.prod(stored)
        return elements * self.dtype.itemsize

    def operands(self, device: torch.device) -> Operands:
        """Drawn afresh for each form: what one left in memory is wrong for another; some write over their inputs."""
        row, n = self.row, self.n_elements
        inputs = (self.x.randn(self.dtype, device),) if self.x else row.operands(n, self.dtype, device)
        if self.grad_out:
            return Operands(inputs, row.n_gradients, self.grad_out.randn(self.dtype, device))
        out = row.pytorch(*(x.to("meta") for x in inputs))
        grad_out = torch.empty_like(out, device=device)
        grad_out = grad_out.normal_() if out.dim() else grad_out.fill_(LOSS_SCALE)
        return Operands(inputs, row.n_gradients, grad_out)

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.row.name,
            "label": self.label,
            "kind": self.kind,
            "dtype": dtype_name(self.dtype),
            "n_elements": self.n_elements,
            "pytorch_bytes": {pass_: self.bytes_moved(pass_, self.row.pytorch_moved) for pass_ in PASSES},
            "goal": self.row.goal,
            "count": self.count,
            **({"shape": self.x.shape, "stride": self.x.stride, "offset": self.x.offset} if self.x else {}),
            **({"grad_out_stride": self.grad_out.stride} if self.grad_out else {}),
        }


def uneven(row: Op, dtype: torch.dtype, n_elements: int) -> Iterator[Case]:
    """The odd length next to a size, and a view one element off alignment."""
    yield Case(row, dtype, n_elements + 1, f"{row.name} {size_label(n_elements)} + 1", "odd")
    view = Layout.contiguous([n_elements], offset=1)
    yield Case(row, dtype, n_elements, f"{row.name} {size_label(n_elements)} [1:]", "misaligned", view, view)


def recorded() -> Iterator[Case]:
    """The calls of ``recorded_calls.json``, each in the pass in which it was recorded."""
    row = next(row for row in OPS if row.op == "sigmoid")
    for call in json.loads(RECORDED_CALLS.read_text())["calls"]:
        layouts = [
            Layout(tuple(t["shape"]), tuple(t["stride"])) if "stride" in t else Layout.contiguous(t["shape"])
            for t in call["inputs"]
        ]
        is_backward = call["op"] == "aten.sigmoid_backward.default"
        # The recorded backward holds (grad_out, out); out has the layout of x.
        grad_out, x = layouts if is_backward else (Layout.contiguous(layouts[0].shape), layouts[0])
        yield Case(
            row, DTYPES[call["inputs"][0]["dtype"]], math.prod(x.shape), "sigmoid " + "×".join(map(str, x.shape)),
            "recorded", x, grad_out, (BACKWARD if is_backward else FORWARD,), call["count"],
        )  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def size_label(n_elements: int) -> str:
    exponent = n_elements.bit_length() - 1
    return f"2^{exponent}" if n_elements == 2**exponent else str(n_elements)
