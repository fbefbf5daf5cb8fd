"""Writing a formula's results, by the template that the operands' layouts allow."""

from typing import Any

import torch
from torch import Tensor

from .frame import Frame, frame
from .pointwise import launch
from .tiled import launch_tiled

Operands = tuple[Tensor, ...]


def frame_of(*tensors: Tensor) -> Frame | None:
    """How the templates see operands of one shape; None where neither takes them."""
    return frame(tensors[0].shape, tuple([tensor.stride() for tensor in tensors]))


def write(
    formula: Any, inputs: Operands, outputs: Operands, scalars: Operands = (), constants: tuple[Any, ...] = ()
) -> bool:
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, of one shape; False where neither template takes them."""
    if outputs[0].numel() == 0:
        return True
    layout = frame_of(*outputs, *inputs)
    if layout is None:
        return False
    if layout.is_flat:
        launch(formula, scalars, inputs, outputs, constants)
    else:
        launch_tiled(formula, scalars, inputs, outputs, layout, constants=constants)
    return True


def write_gradient(
    formula: Any, grad_out: Tensor, inputs: Operands, outputs: Operands, constants: tuple[Any, ...] = ()
) -> bool:
    """:func:`write` for the inputs ``(grad_out, *inputs)``, whatever the memory order of ``grad_out``.

    Where it is not one that the templates take beside the others, it is copied into theirs: one more read and write,
    but a gradient that keeps its digits, as PyTorch's would not.
    """
    return write(formula, (grad_out, *inputs), outputs, constants=constants) or write(
        formula, (in_order_of(inputs[0], grad_out), *inputs), outputs, constants=constants
    )


def in_order_of(x: Tensor, grad_out: Tensor) -> Tensor:
    """A copy of ``grad_out`` that lies in memory as ``x`` does."""
    return torch.empty_like(x, dtype=grad_out.dtype).copy_(grad_out)
