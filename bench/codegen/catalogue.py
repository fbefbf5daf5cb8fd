"""Every kernel, as its launcher launches it: what :mod:`.codegen` compiles without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from sigmoid_op.kernels import gates, kept, losses, pointwise, sigmoid, silu, sums, swiglu, tiled


class Launch(NamedTuple):
    """What a template hands to ``launch.launch``."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    max_registers: int | None

    @property
    def formula(self) -> Any:
        """None for the kernel that adds up sums."""
        return next((arg for arg in self.args if callable(arg)), None)

    @property
    def elements(self) -> int:
        """How many the formula is taken of."""
        named = dict(zip(self.kernel.arg_names, self.args, strict=True))
        if "n_elements" in named:
            return int(named["n_elements"])
        batches = self.programs // (named["row_tiles"] * named["column_tiles"])
        return int(batches * named["n_rows"] * named["n_columns"])


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """What would be launched meanwhile; nothing is, so that results stay as they were allocated."""
    launches: list[Launch] = []

    def record(
        kernel: Any, programs: int, args: tuple[Any, ...], key: tuple[Any, ...], max_registers: int | None = None
    ) -> None:
        launches.append(Launch(kernel, programs, args, max_registers))

    with (
        patch.object(pointwise, "launch_kernel", record),
        patch.object(tiled, "launch_kernel", record),
        patch.object(sums, "launch_kernel", record),
    ):
        yield launches


@dataclass(frozen=True)
class Kernel:
    """A launcher and its operands, tensors without data; the dtype of those of floating point is still to be chosen."""

    name: str
    launcher: Callable[..., Any]
    operands: tuple[Tensor | None, ...]
    misaligned: bool = False  # the operands: each is ``x[1:]``

    def launch(self, dtype: torch.dtype) -> Launch:
        """The first launch: the second of a sum adds up what the first left."""
        return self._call(dtype)[0]

    def bytes_per_element(self, dtype: torch.dtype) -> float:
        """What is read and written, all tensors of floating point having one dtype, for each element."""
        launch, tensors = self._call(dtype)
        return sum(x.numel() * x.element_size() for x in tensors if x.numel() > 1) / launch.elements

    @property
    def formula(self) -> Any:
        return self.launch(torch.float32).formula

    def _call(self, dtype: torch.dtype) -> tuple[Launch, list[Tensor]]:
        """The launch, with the operands and the results."""
        operands = [x.to(dtype) if x is not None and x.is_floating_point() else x for x in self.operands]
        if self.misaligned:
            operands = [None if x is None else x.new_empty(x.numel() + 1)[1:].view(x.shape) for x in operands]
        with recorded() as launches:
            results = self.launcher(*operands)
        given = [*operands, *(results if isinstance(results, tuple) else (results,))]
        return launches[0], [x for x in given if x is not None]


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without data, whose address is its offset."""
    return torch.empty(shape, dtype=dtype, device="meta")


ONE, X, HALF, PACKED = _meta(1), _meta(2**20), _meta(1024, 4096), _meta(1024, 8192)
MASK = _meta(2**20, dtype=torch.bool)
IMAGES, GATE = _meta(64, 256, 56, 56), _meta(64, 256, 1, 1)
NHWC = IMAGES.contiguous(memory_format=torch.channels_last)
LOGITS, CLASSES = _meta(2**14, 128), _meta(2**14, dtype=torch.int64)

_gpt_oss: dict[str, Any] = {"constants": (1.702, 7.0, 1.0, True)}


def _bce(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
    return kept.launch_bce(logits, target, None, None, mask, None, "sum", logits.dtype)


def _bce_backward(
    grad_out: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None = None, divisor: Tensor | None = None
) -> Tensor | None:
    return kept.launch_bce_backward(grad_out, logits, target, None, None, mask, divisor, "mean")


def _focal(logits: Tensor, target: Tensor) -> Tensor | None:
    return kept.launch_focal(logits, target, None, None, 0.25, 2.0, "sum", logits.dtype)


def _focal_backward(grad_out: Tensor, logits: Tensor, target: Tensor, divisor: Tensor | None = None) -> Tensor | None:
    return kept.launch_focal_backward(grad_out, logits, target, None, divisor, 0.25, 2.0, "mean")


SIGMOID: tuple[Kernel, ...] = (
    Kernel("forward", sigmoid.launch_sigmoid, (X,)),
    Kernel("backward", sigmoid.launch_sigmoid_backward, (X, X)),
    Kernel("backward of a sum", sigmoid.launch_sigmoid_backward, (ONE, X)),
    Kernel("double backward", sigmoid.launch_sigmoid_double_backward, (X, X, X)),
    Kernel("exact forward", sigmoid.launch_sigmoid_exact, (X,)),
    Kernel("exact backward", sigmoid.launch_sigmoid_exact_backward, (X, X)),
    Kernel("exact double backward", sigmoid.launch_sigmoid_exact_double_backward, (X, X, X)),
)

FAMILY: tuple[Kernel, ...] = (
    Kernel("silu", silu.launch_silu, (X,)),
    Kernel("silu backward", silu.launch_silu_backward, (X, X)),
    Kernel("quick_gelu", partial(silu.launch_silu, beta=1.702), (X,)),
    Kernel("quick_gelu backward", partial(silu.launch_silu_backward, beta=1.702), (X, X)),
    Kernel("gate", gates.launch_gate, (X, X)),
    Kernel("gate backward", partial(gates.launch_gate_backward, to_x=True), (X, X, X)),
    Kernel("gate backward to gate", partial(gates.launch_gate_backward, to_x=False), (X, X, X)),
    Kernel("swiglu", swiglu.launch_swiglu, (X, X)),
    Kernel("swiglu backward", swiglu.launch_swiglu_backward, (X, X, X)),
    Kernel("gpt-oss swiglu", partial(swiglu.launch_swiglu, **_gpt_oss), (X, X)),
    Kernel("gpt-oss swiglu backward", partial(swiglu.launch_swiglu_backward, **_gpt_oss), (X, X, X)),
    Kernel("interleaved swiglu", partial(swiglu.launch_packed_swiglu, **_gpt_oss, interleaved=True), (PACKED,)),
    Kernel(
        "interleaved swiglu backward",
        partial(swiglu.launch_packed_swiglu_backward, **_gpt_oss, interleaved=True),
        (HALF, PACKED),
    ),
    Kernel("logsigmoid", losses.launch_logsigmoid, (X,)),
    Kernel("logsigmoid backward", losses.launch_logsigmoid_backward, (X, X)),
    Kernel("BCE", _bce, (X, X)),
    Kernel("BCE backward", _bce_backward, (ONE, X, X)),
    Kernel("focal", _focal, (X, X)),
    Kernel("focal backward", _focal_backward, (ONE, X, X)),
    Kernel("BCE masked", _bce, (X, X, MASK)),
    Kernel("BCE masked backward", _bce_backward, (ONE, X, X, MASK, ONE)),
    Kernel("focal of classes", _focal, (LOGITS, CLASSES)),
    Kernel("focal of classes backward", _focal_backward, (ONE, LOGITS, CLASSES, ONE)),
    Kernel("packed swiglu", swiglu.launch_packed_swiglu, (PACKED,)),
    Kernel("packed swiglu backward", swiglu.launch_packed_swiglu_backward, (HALF, PACKED)),
    Kernel("glu", partial(gates.launch_glu, dim=-1), (PACKED,)),
    Kernel("glu backward", partial(gates.launch_glu_backward, dim=-1), (HALF, PACKED)),
    Kernel("channel gate", gates.launch_gate, (IMAGES, GATE)),
    Kernel("channel gate backward", partial(gates.launch_gate_backward, to_x=True), (IMAGES, IMAGES, GATE)),
    Kernel("channel gate NHWC", gates.launch_gate, (NHWC, GATE)),
    Kernel("channel gate NHWC backward", partial(gates.launch_gate_backward, to_x=True), (NHWC, NHWC, GATE)),
)
