"""What is measured: the shapes, dtypes, strides and alignments of the inputs."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Pass = Literal["forward", "backward", "forward+backward"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "forward+backward")
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
RECORDED_CALLS = Path(__file__).with_name("recorded_calls.json")

# Sizes in order of worth, by their power of two: those of the report's short table, those between them, and after these
# all that are not named. What time cuts off are the last.
EXPONENTS = (26, 30, 24, 20, 16, 10, 0, 28, 22, 18, 14, 12)

# Of these sizes the grid also holds an odd length and a misaligned view: one launch-bound, one that fits in a GPU's L2
# cache, one that does not.
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

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_distinct(self) -> int:
        """Elements of memory behind the tensor: an expanded dimension counts once."""
        return math.prod(size for size, stride in zip(self.shape, self.stride, strict=True) if stride != 0)

    @property
    def n_allocated(self) -> int:
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1

    def randn(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this layout, standard normal: zeros would hide an unwritten result."""
        memory = torch.empty(self.n_allocated, dtype=dtype, device=device).normal_()
        return memory.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Inputs:
    """One set of operands. ``out`` is σ(x), what a backward kernel reads."""

    x: Tensor
    grad_out: Tensor
    out: Tensor


@dataclass(frozen=True)
class Case:
    """One input to time. ``count`` and ``models``: how often, and in what, a recorded call was seen."""

    label: str
    kind: Literal["size", "odd", "misaligned", "recorded"]
    dtype: torch.dtype
    x: Layout
    grad_out: Layout
    passes: tuple[Pass, ...] = PASSES
    count: int = 1
    models: tuple[str, ...] = ()

    @property
    def n_elements(self) -> int:
        return self.x.n_elements

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.dtype)

    def bytes_moved(self, pass_: Pass) -> int:
        """Bytes that must move: forward reads x and writes out; backward reads grad_out and out and writes grad_in."""
        forward = 2 * self.n_elements
        backward = self.grad_out.n_distinct + 2 * self.n_elements
        elements = {"forward": forward, "backward": backward, "forward+backward": forward + backward}[pass_]
        return elements * self.dtype.itemsize

    def inputs(self, device: torch.device) -> Inputs:
        x = self.x.randn(self.dtype, device)
        return Inputs(x, self.grad_out.randn(self.dtype, device), torch.sigmoid(x))

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "kind": self.kind,
            "dtype": self.dtype_name,
            "n_elements": self.n_elements,
            "shape": self.x.shape,
            "stride": self.x.stride,
            "offset": self.x.offset,
            "grad_out_stride": self.grad_out.stride,
            "count": self.count,
            "models": self.models,
        }


def grid(dtypes: Iterable[torch.dtype], sizes: Sequence[int]) -> Iterator[Case]:
    """Every dtype at every size, and for some sizes the odd length next to it and a view one element off alignment."""
    for dtype in dtypes:
        for size in sizes:
            layout = Layout.contiguous([size])
            yield Case(size_label(size), "size", dtype, layout, layout)
        for size in (s for s in UNEVEN_SIZES if s in sizes):
            odd, view = Layout.contiguous([size + 1]), Layout.contiguous([size], offset=1)
            yield Case(f"{size_label(size)} + 1", "odd", dtype, odd, odd)
            yield Case(f"{size_label(size)} [1:]", "misaligned", dtype, view, view)


def recorded() -> Iterator[Case]:
    """The calls of ``recorded_calls.json``, each in the pass in which it was recorded."""
    for call in json.loads(RECORDED_CALLS.read_text())["calls"]:
        layouts = [
            Layout(tuple(t["shape"]), tuple(t["stride"])) if "stride" in t else Layout.contiguous(t["shape"])
            for t in call["inputs"]
        ]
        is_backward = call["op"] == "aten.sigmoid_backward.default"
        # The recorded backward holds (grad_out, out); out has the layout of x.
        grad_out, x = layouts if is_backward else (Layout.contiguous(layouts[0].shape), layouts[0])
        yield Case(
            label="×".join(map(str, x.shape)),
            kind="recorded",
            dtype=DTYPES[call["inputs"][0]["dtype"]],
            x=x,
            grad_out=grad_out,
            passes=("backward",) if is_backward else ("forward",),
            count=call["count"],
            models=tuple(call["models"]),
        )


def importance(case: Case) -> tuple[int, int, str]:
    """What sorts cases in order of worth: EXPONENTS, uneven lengths and addresses, the rest; all dtypes of a size."""
    exponent = case.n_elements.bit_length() - 1
    rank = EXPONENTS.index(exponent) if exponent in EXPONENTS else len(EXPONENTS)
    group = 1 if case.kind in ("odd", "misaligned") else 2 if rank == len(EXPONENTS) else 0
    return group, rank, case.label


def dtype_name(dtype: torch.dtype) -> str:
    """As in ``DTYPES``: without "torch."."""
    return str(dtype).removeprefix("torch.")


def size_label(n_elements: int) -> str:
    exponent = n_elements.bit_length() - 1
    return f"2^{exponent}" if n_elements == 2**exponent else str(n_elements)
