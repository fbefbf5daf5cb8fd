"""Writing a formula's results, by the template that the operands' layouts allow."""

from typing import Any

import torch
from torch import Tensor

from .frame import Frame, frame
from .pointwise import bits_of, block_size, launch
from .sums import add_up
from .tiled import launch_tiled, tiling

Operands = tuple[Tensor, ...]
Constants = tuple[Any, ...]


def frame_of(*tensors: Tensor) -> Frame | None:
    """How the templates see operands of one shape; None where neither takes them."""
    return frame(tensors[0].shape, tuple([tensor.stride() for tensor in tensors]))


def write(
    formula: Any,
    inputs: Operands,
    outputs: Operands,
    scalars: Operands = (),
    constants: Constants = (),
    scale: int | None = None,
) -> bool:
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, of one shape; False where neither template takes them.

    ``scale``, as ``pointwise.factor`` makes it, multiplies the first scalar.
    """
    if _contiguous(inputs) and outputs[0].is_contiguous():
        launch(formula, scalars, inputs, outputs, constants, None, scale)
        return True
    if outputs[0].numel() == 0:
        return True
    layout = frame_of(*outputs, *inputs)
    if layout is None:
        return False
    if layout.is_flat:
        launch(formula, scalars, inputs, outputs, constants, None, scale)
    else:
        launch_tiled(formula, scalars, inputs, outputs, layout, constants, None, None, scale)
    return True


def write_gradient(
    formula: Any, grad_out: Tensor, inputs: Operands, outputs: Operands, constants: Constants = ()
) -> bool:
    """:func:`write` for the inputs ``(grad_out, *inputs)``, whatever the memory order of ``grad_out``.

    Where it is not one that the templates take beside the others, it is copied into theirs: one more read and write,
    but a gradient that keeps its digits, as PyTorch's would not.
    """
    return write(formula, (grad_out, *inputs), outputs, (), constants) or write(
        formula, (in_order_of(inputs[0], grad_out), *inputs), outputs, (), constants
    )


def write_sum(
    formula: Any, inputs: Operands, out: Tensor, constants: Constants = (), divisor: float | Tensor | None = None
) -> bool:
    """Write the sum of ``formula(*inputs)``, over ``divisor``, to ``out``; False where no template takes the inputs.

    Two launches, or one where a single block or tile holds all and the divisor is no tensor. The order of the additions
    is fixed; those within a block are taken in float32 (float64 for float64), the others in float64.
    """
    first = inputs[0]
    n_elements = first.numel()
    layout = None
    if not _contiguous(inputs):
        layout = frame_of(*inputs)
        if layout is None:
            return False
    if layout is None or layout.is_flat:
        layout, programs = None, (n_elements - 1) // block_size(first) + 1
    else:
        programs = tiling(layout, first.element_size(), None).programs
    of_tensor, scale = None, None
    if isinstance(divisor, Tensor):
        of_tensor = divisor
    elif divisor is not None:
        scale = bits_of(1 / divisor)
    partials, of_tiles = out, scale
    if programs > 1 or of_tensor is not None:
        dtype = torch.float64 if torch.float64 in [x.dtype for x in inputs] else torch.float32
        partials, of_tiles = first.new_empty((1, programs, 1), dtype=dtype), None
    if layout is None:
        launch(formula, (), inputs, (), constants, partials, of_tiles)
    else:
        launch_tiled(formula, (), inputs, (), layout, constants, partials, None, of_tiles)
    if partials is not out:
        add_up(partials, out, (0, 0), scale, of_tensor)
    return True


def _contiguous(tensors: Operands) -> bool:
    for x in tensors:  # noqa: SIM110  # a generator would take twice as long
        if not x.is_contiguous():
            return False
    return True


def in_order_of(x: Tensor, grad_out: Tensor) -> Tensor:
    """A copy of ``grad_out`` that lies in memory as ``x`` does."""
    return torch.empty_like(x, dtype=grad_out.dtype).copy_(grad_out)
