"""Every kernel, with operands such as its launcher gives it: what :mod:`.codegen` compiles without a GPU."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sigmoid_op.kernels import gates, kept, losses, sigmoid, silu, swiglu
from sigmoid_op.kernels.frame import frame
from sigmoid_op.kernels.pointwise import BLOCK_SIZES, max_registers, pointwise_kernel
from sigmoid_op.kernels.tiled import arguments, tiled_kernel, tiling

Operands = tuple[Tensor, ...]


def meta(shape: tuple[int, ...], dtype: torch.dtype, order: tuple[int, ...] | None = None) -> Tensor:
    """A tensor without data, whose address is its offset; ``order`` is that of its dimensions in memory."""
    x = torch.empty([shape[d] for d in order] if order else shape, dtype=dtype, device="meta")
    return x.permute([order.index(d) for d in range(len(shape))]) if order else x


@dataclass(frozen=True)
class Kernel:
    """A kernel of the pointwise template: the formula and the number of each kind of operand."""

    name: str
    formula: Any
    scalars: int
    inputs: int
    outputs: int
    constants: Callable[[torch.dtype], tuple[Any, ...]] = lambda dtype: ()
    summed: bool = False
    scaled: bool = False
    masked: bool = False
    template: Any = pointwise_kernel
    n_elements: int = 2**20
    misaligned_inputs: bool = False
    misaligned_outputs: bool = False

    def bytes_per_element(self, dtype: torch.dtype) -> float:
        """What it reads and writes, all operands having one dtype, but for pairs and a mask of bytes."""
        return (self.inputs + self.outputs) * dtype.itemsize + self.masked

    def max_registers(self, dtype: torch.dtype) -> int | None:
        """As ``launch`` has it compiled."""
        return max_registers(dtype.itemsize, self.inputs + self.masked)

    def arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """As ``launch`` passes them for operands of ``dtype``, of which a misaligned one is ``x[1:]``."""

        def operands(count: int, misaligned: bool = False) -> Operands:
            return (meta((self.n_elements + 1,), dtype)[int(misaligned) :][: self.n_elements],) * count

        scalars, inputs = operands(self.scalars), operands(self.inputs, self.misaligned_inputs)
        outputs = operands(self.outputs, self.misaligned_outputs)
        if self.masked:
            inputs += (meta((self.n_elements,), torch.uint8),)
        zero = 0 if self.misaligned_inputs or self.misaligned_outputs else None
        block_size = BLOCK_SIZES[dtype.itemsize]
        constants = self.constants(dtype)
        sums = meta((2**10,), torch.float64 if dtype == torch.float64 else torch.float32) if self.summed else None
        scale = 2**62 if self.scaled else None
        return scalars, inputs, outputs, sums, self.n_elements, zero, scale, self.formula, constants, block_size


@dataclass(frozen=True)
class PairKernel(Kernel):
    """One whose last input is a tensor of interleaved pairs, read as integers; backward's output, too."""

    def bytes_per_element(self, dtype: torch.dtype) -> float:
        """What it reads and writes for each pair."""
        pairs = 2 if self.formula is swiglu.interleaved_swiglu_backward else 1
        return (self.inputs + self.outputs + pairs) * dtype.itemsize

    def max_registers(self, dtype: torch.dtype) -> int | None:
        """As ``launch`` has it compiled, by the bytes of an output's element."""
        return max_registers(self.arguments(dtype)[2][0].element_size(), self.inputs)

    def arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """As ``launch`` passes them."""
        one, pair = meta((self.n_elements,), dtype), meta((self.n_elements,), swiglu.PAIRS[dtype.itemsize])
        backward = self.formula is swiglu.interleaved_swiglu_backward
        inputs, outputs = ((one, pair), (pair,)) if backward else ((pair,), (one,))
        constants = (*self.constants(dtype), swiglu.TRITON_DTYPES[dtype])
        block_size = BLOCK_SIZES[outputs[0].element_size()]
        return (), inputs, outputs, None, self.n_elements, None, None, self.formula, constants, block_size


@dataclass(frozen=True)
class TiledKernel:
    """A kernel of the tiled template. ``operands`` makes inputs and outputs, large enough for a full tile."""

    name: str
    formula: Any
    operands: Callable[[torch.dtype], tuple[Operands, Operands]]
    constants: Callable[[torch.dtype], tuple[Any, ...]] = lambda dtype: ()
    summed: bool = False
    scalars: int = 0
    axis: int | None = None
    template: Any = tiled_kernel

    def bytes_per_element(self, dtype: torch.dtype) -> float:
        """What it reads and writes for each element of the result, without the sums."""
        inputs, outputs = self.operands(dtype)
        elements = max(x.numel() for x in inputs + outputs)
        return sum(_bytes(x) for x in inputs + outputs) / elements

    def max_registers(self, dtype: torch.dtype) -> None:
        """As many as ptxas likes."""

    def arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """As ``launch_tiled`` passes them."""
        inputs, outputs = self.operands(dtype)
        layout = frame(inputs[0].shape, tuple(x.stride() for x in outputs + inputs))
        assert layout is not None
        sums = meta((2**10,), torch.float64 if dtype == torch.float64 else torch.float32) if self.summed else None
        offsets = tuple(int(x.storage_offset()) or None for x in outputs + inputs)  # of a half
        layout = replace(layout, offsets=offsets, tilings={})
        tiles = tiling(layout, (outputs or inputs)[0].element_size(), self.axis)
        scalars = (meta((1,), torch.float32),) * self.scalars
        return arguments(self.formula, scalars, inputs, outputs, layout, tiles, self.constants(dtype), sums, self.axis)


def _bytes(x: Tensor) -> int:
    """Of memory: an expanded dimension counts once."""
    distinct = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return distinct * x.element_size()


def _halves(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return meta((1024, 8192), dtype).chunk(2, -1)


def _packed(dtype: torch.dtype, *, backward: bool) -> tuple[Operands, Operands]:
    """The halves of one tensor, beside a tensor of their shape."""
    out = meta((1024, 4096), dtype)
    return ((out, *_halves(dtype)), _halves(dtype)) if backward else (_halves(dtype), (out,))


def _channels(dtype: torch.dtype, *, backward: bool, channels_last: bool) -> tuple[Operands, Operands]:
    """[N, C, H, W], and a gate of one number per channel."""
    x = meta((64, 256, 56, 56), dtype, (0, 2, 3, 1) if channels_last else None)
    gate = meta((64, 256, 1, 1), dtype).expand_as(x)
    return ((x, x, gate) if backward else (x, gate)), (x,)


def _classes(dtype: torch.dtype, *, backward: bool) -> tuple[Operands, Operands]:
    """Logits as rows of classes, the class of each row, and the number of each column."""
    x = meta((2**14, 128), dtype)
    rows, columns = meta((2**14, 1), torch.int64), meta((128,), torch.int32)
    return (x, rows.expand_as(x), columns.expand_as(x)), (x,) if backward else ()


def _is_wide(dtype: torch.dtype) -> bool:
    """Whether a loss of this dtype has more than 16 bits."""
    return dtype.itemsize > 2


def _plain(dtype: torch.dtype) -> tuple[Any, ...]:
    """swiglu's constants where none is given."""
    return swiglu.PLAIN


def _gpt_oss(dtype: torch.dtype) -> tuple[Any, ...]:
    return 1.702, 7.0, 1.0, True


SIGMOID: tuple[Kernel, ...] = (
    Kernel("forward", sigmoid.sigmoid, scalars=0, inputs=1, outputs=1),
    Kernel("backward", sigmoid.sigmoid_backward, scalars=0, inputs=2, outputs=1),
    Kernel("backward of a sum", sigmoid.sigmoid_backward, scalars=1, inputs=1, outputs=1),
    Kernel("double backward", sigmoid.sigmoid_double_backward, scalars=0, inputs=3, outputs=2),
    Kernel("exact forward", sigmoid.sigmoid_exact, scalars=0, inputs=1, outputs=2),
    Kernel("exact backward", sigmoid.sigmoid_exact_backward, scalars=0, inputs=2, outputs=1),
    Kernel("exact double backward", sigmoid.sigmoid_exact_double_backward, scalars=0, inputs=3, outputs=2),
)

FAMILY: tuple[Kernel | TiledKernel, ...] = (
    Kernel("silu", silu.silu, scalars=0, inputs=1, outputs=1, constants=lambda dtype: (1.0,)),
    Kernel("silu backward", silu.silu_backward, scalars=0, inputs=2, outputs=1, constants=lambda dtype: (1.0,)),
    Kernel("quick_gelu", silu.silu, scalars=0, inputs=1, outputs=1, constants=lambda dtype: (1.702,)),
    Kernel("quick_gelu backward", silu.silu_backward, scalars=0, inputs=2, outputs=1, constants=lambda dtype: (1.702,)),
    Kernel("gate", gates.sigmoid_gate, scalars=0, inputs=2, outputs=1),
    Kernel("gate backward", gates.sigmoid_gate_backward, scalars=0, inputs=3, outputs=2),
    Kernel("gate backward to gate", gates.sigmoid_gate_backward_to_gate, scalars=0, inputs=3, outputs=1),
    Kernel("swiglu", swiglu.swiglu, scalars=0, inputs=2, outputs=1, constants=_plain),
    Kernel("swiglu backward", swiglu.swiglu_backward, scalars=0, inputs=3, outputs=2, constants=_plain),
    Kernel("gpt-oss swiglu", swiglu.swiglu, scalars=0, inputs=2, outputs=1, constants=_gpt_oss),
    Kernel("gpt-oss swiglu backward", swiglu.swiglu_backward, scalars=0, inputs=3, outputs=2, constants=_gpt_oss),
    PairKernel("interleaved swiglu", swiglu.interleaved_swiglu, scalars=0, inputs=1, outputs=1, constants=_gpt_oss),
    PairKernel(
        "interleaved swiglu backward",
        swiglu.interleaved_swiglu_backward,
        scalars=0,
        inputs=2,
        outputs=1,
        constants=_gpt_oss,
    ),
    Kernel("logsigmoid", losses.logsigmoid, scalars=0, inputs=1, outputs=1),
    Kernel("logsigmoid backward", losses.logsigmoid_backward, scalars=0, inputs=2, outputs=1),
    Kernel("BCE", losses.bce, 0, 2, 0, lambda dtype: (False, False, _is_wide(dtype)), summed=True),
    Kernel("BCE backward", losses.bce_backward, 1, 2, 1, lambda dtype: (False, False), scaled=True),
    Kernel("focal", losses.focal, 0, 2, 0, lambda dtype: (0.25, 2.0, _is_wide(dtype)), summed=True),
    Kernel("focal backward", losses.focal_backward, 1, 2, 1, lambda dtype: (0.25, 2.0), scaled=True),
    Kernel("BCE masked", kept.kept_bce, 0, 2, 0, lambda dtype: (False, False, _is_wide(dtype)), True, masked=True),
    Kernel(
        "BCE masked backward", kept.kept_bce_backward, 2, 2, 1, lambda dtype: (False, False, True, True), masked=True
    ),
    TiledKernel(
        "focal of classes",
        kept.class_focal,
        partial(_classes, backward=False),
        lambda dtype: (0.25, 2.0, _is_wide(dtype), False),
        summed=True,
    ),
    TiledKernel(
        "focal of classes backward",
        kept.class_focal_backward,
        partial(_classes, backward=True),
        lambda dtype: (0.25, 2.0, False, True),
        scalars=2,
    ),
    TiledKernel("packed swiglu", swiglu.swiglu, partial(_packed, backward=False), constants=_plain),
    TiledKernel("packed swiglu backward", swiglu.swiglu_backward, partial(_packed, backward=True), constants=_plain),
    TiledKernel("glu", gates.sigmoid_gate, partial(_packed, backward=False)),
    TiledKernel("glu backward", gates.sigmoid_gate_backward, partial(_packed, backward=True)),
    TiledKernel("channel gate", gates.sigmoid_gate, partial(_channels, backward=False, channels_last=False)),
    TiledKernel(
        "channel gate backward",
        gates.sigmoid_gate_backward,
        partial(_channels, backward=True, channels_last=False),
        summed=True,
        axis=1,
    ),
    TiledKernel("channel gate NHWC", gates.sigmoid_gate, partial(_channels, backward=False, channels_last=True)),
    TiledKernel(
        "channel gate NHWC backward",
        gates.sigmoid_gate_backward,
        partial(_channels, backward=True, channels_last=True),
        summed=True,
        axis=0,
    ),
)
