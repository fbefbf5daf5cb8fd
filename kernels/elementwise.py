"""Writing a formula's results, by the template that the operands' layouts allow."""

from typing import Any

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
