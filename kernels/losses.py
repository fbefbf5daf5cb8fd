"""Launchers of the losses: tensors in, new tensors out; None for a memory layout that the templates do not take.

The operands of a loss are the input, its target, and what else broadcasts to the input. Sums are taken in one order for
all runs: each tile's in the kernel, in float32 (float64 for float64), and those of the tiles by PyTorch in float64.
"""

from typing import Any

import torch
from torch import Tensor

from . import loss_formulas
from .elementwise import frame_of, write, write_gradient
from .pointwise import empty_output
from .tiled import launch_tiled

Constants = tuple[Any, ...]


def logsigmoid_forward(x: Tensor) -> Tensor | None:
    """out = log σ(x). Moves 2 bytes per byte of ``x``."""
    out = empty_output(x)
    return out if write(loss_formulas.logsigmoid, (x,), (out,)) else None


def logsigmoid_backward(grad_out: Tensor, x: Tensor) -> Tensor | None:
    """grad_in = grad_out · σ(-x). Moves 3 bytes per byte of ``x``."""
    grad_in = torch.empty_like(x)
    return grad_in if write_gradient(loss_formulas.logsigmoid_backward, grad_out, (x,), (grad_in,)) else None


def bce_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """The loss in ``dtype``. Reads 2 bytes per byte of ``input``, and writes one more where it is not reduced."""
    constants = (weight is not None, pos_weight is not None, dtype.itemsize > 2)
    return _loss(loss_formulas.bce, _given(input, target, weight, pos_weight), reduction, dtype, constants)


def bce_backward(
    grad_out: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor | None:
    """The gradient of the input. Moves 3 bytes per byte of ``input``, 4 where the loss was not reduced."""
    constants = (weight is not None, pos_weight is not None)
    operands = _given(input, target, weight, pos_weight)
    return _gradient(loss_formulas.bce_backward, grad_out, operands, reduction, constants)


def focal_forward(
    input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str, dtype: torch.dtype
) -> Tensor | None:
    """The loss in ``dtype``. Reads 2 bytes per byte of ``input``, and writes one more where it is not reduced."""
    constants = (float(alpha), float(gamma), dtype.itemsize > 2)
    return _loss(loss_formulas.focal, (input, target), reduction, dtype, constants)


def focal_backward(
    grad_out: Tensor, input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str
) -> Tensor | None:
    """The gradient of the input. Moves 3 bytes per byte of ``input``, 4 where the loss was not reduced."""
    constants = (float(alpha), float(gamma))
    return _gradient(loss_formulas.focal_backward, grad_out, (input, target), reduction, constants)


def _given(input: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors among the operands, as large as ``input``."""
    return (input, *(x.expand_as(input) for x in others if x is not None))


def _loss(
    formula: Any, operands: tuple[Tensor, ...], reduction: str, dtype: torch.dtype, constants: Constants
) -> Tensor | None:
    input, target, *_ = operands
    if reduction == "none":
        out = torch.empty_like(target, dtype=dtype)  # PyTorch's own result has the strides of the target, too
        return out if write(formula, operands, (out,), constants=constants) else None
    layout = frame_of(*operands)
    if layout is None:
        return None
    (sums,) = launch_tiled(formula, (), operands, (), layout, constants=constants, summed=1)
    divisor = input.numel() if reduction == "mean" else 1
    return torch.div(sums.sum(dtype=torch.float64), divisor, out=torch.empty((), dtype=dtype, device=input.device))


def _gradient(
    formula: Any, grad_out: Tensor, operands: tuple[Tensor, ...], reduction: str, constants: Constants
) -> Tensor | None:
    input = operands[0]
    grad_in = torch.empty_like(input)
    if reduction == "none":
        return grad_in if write_gradient(formula, grad_out, operands, (grad_in,), constants) else None
    of_each = grad_out.to(torch.float64 if input.dtype == torch.float64 else torch.float32)
    if reduction == "mean":
        of_each = of_each / input.numel()
    return grad_in if write(formula, operands, (grad_in,), (of_each,), constants) else None
