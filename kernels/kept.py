"""How BCE and the focal loss are launched: each loss or their sum, of all elements or of those that count.

The operands are the input, its target, and what else broadcasts to the input. The last is the mask, of any dtype: what
stands beside a 0 in it adds nothing, not even NaN. What a sum is divided by may be a tensor, which its gradient reads
as a second scalar. Sums are taken in one order for all runs: each tile's in float32 (float64 for float64), and those of
the tiles in float64.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import write, write_gradient, write_sum
from .intrinsics import widen
from .losses import bce, bce_backward, focal, focal_backward
from .pointwise import empty_output, factor

Constants = tuple[Any, ...]
Divisor = float | Tensor | None


@triton.jit
def _kept(mask, value):
    return tl.where(widen(mask) != 0, value, 0.0)


@triton.jit
def _undivided(args, divided: tl.constexpr):
    """The operands of a gradient; where there is a divisor, the second of them, grad_out is divided by it."""
    if divided:
        dtype: tl.constexpr = tl.float64 if args[2].dtype == tl.float64 else tl.float32
        return tl.tuple([widen(args[0]).to(dtype) / widen(args[1]).to(dtype)]) + args[2:]
    else:
        return args


@triton.jit
def kept_bce(args, constants: tl.constexpr):
    """:func:`bce`, with its constants, of what the last of ``args`` keeps"""
    (loss,) = bce(args, constants)
    return (_kept(args[2 + constants[0] + constants[1]], loss),)


@triton.jit
def kept_bce_backward(args, constants: tl.constexpr):
    """Its gradient. The constants are (has_weight, has_pos_weight, masked, divided)."""
    args = _undivided(args, constants[3])
    (grad_in,) = bce_backward(args, constants)
    if constants[2]:
        grad_in = _kept(args[3 + constants[0] + constants[1]], grad_in)
    return (grad_in,)


@triton.jit
def kept_focal(args, constants: tl.constexpr):
    """:func:`focal`, with its constants, of what the last of ``args`` keeps"""
    (loss,) = focal(args, constants)
    return (_kept(args[2], loss),)


@triton.jit
def kept_focal_backward(args, constants: tl.constexpr):
    """Its gradient. The constants are (alpha, gamma, masked, divided)."""
    args = _undivided(args, constants[3])
    (grad_in,) = focal_backward(args, constants)
    if constants[2]:
        grad_in = _kept(args[3], grad_in)
    return (grad_in,)


@triton.jit
def _label(x, of_row, column):
    """y, 1 in the column that is the class of the row"""
    dtype: tl.constexpr = tl.float64 if x.dtype == tl.float64 else tl.float32
    return tl.where(of_row.to(tl.int32) == column, 1.0, 0.0).to(dtype)


@triton.jit
def class_focal(args, constants: tl.constexpr):
    """:func:`focal` of x, the class of its row and the number of its column, and 0 where the class is negative.

    The constants are (alpha, gamma, wide, masked); a mask is the last of ``args``.
    """
    (loss,) = focal((args[0], _label(args[0], args[1], args[2])), constants)
    if constants[3]:
        loss = _kept(args[3], loss)
    return (tl.where(args[1].to(tl.int32) >= 0, loss, 0.0),)


@triton.jit
def class_focal_backward(args, constants: tl.constexpr):
    """Its gradient. The constants are (alpha, gamma, masked, divided)."""
    args = _undivided(args, constants[3])
    (grad_in,) = focal_backward((args[0], args[1], _label(args[1], args[2], args[3])), constants)
    if constants[2]:
        grad_in = _kept(args[4], grad_in)
    return (tl.where(args[2].to(tl.int32) >= 0, grad_in, 0.0),)


def launch_bce(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    divisor: Divisor,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """The loss in ``dtype``. Reads 2 bytes per byte of ``input``, and writes one more where it is not reduced."""
    constants = (weight is not None, pos_weight is not None, dtype.itemsize > 2)
    operands = _given(input, target, weight, pos_weight, mask)
    return _loss(bce if mask is None else kept_bce, operands, reduction, dtype, constants, divisor)


def launch_bce_backward(
    grad_out: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    mask: Tensor | None,
    divisor: Divisor,
    reduction: str,
) -> Tensor | None:
    """The gradient of the input. Moves 3 bytes per byte of ``input``, 4 where the loss was not reduced."""
    constants: Constants = (weight is not None, pos_weight is not None)
    formula = bce_backward
    if mask is not None or isinstance(divisor, Tensor):
        formula, constants = kept_bce_backward, (*constants, mask is not None, isinstance(divisor, Tensor))
    operands = _given(input, target, weight, pos_weight, mask)
    return _gradient(formula, grad_out, operands, reduction, constants, divisor)


def launch_focal(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None,
    divisor: Divisor,
    alpha: float,
    gamma: float,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """The loss in ``dtype``. Moves what :func:`launch_bce` does, of classes half of what it reads."""
    constants: Constants = (float(alpha), float(gamma), dtype.itemsize > 2)
    formula = focal if mask is None else kept_focal
    if target.dim() < input.dim():
        formula, constants = class_focal, (*constants, mask is not None)
    return _loss(formula, _of_focal(input, target, mask), reduction, dtype, constants, divisor)


def launch_focal_backward(
    grad_out: Tensor,
    input: Tensor,
    target: Tensor,
    mask: Tensor | None,
    divisor: Divisor,
    alpha: float,
    gamma: float,
    reduction: str,
) -> Tensor | None:
    """The gradient of the input. Moves what :func:`launch_bce_backward` does, of classes 2 bytes and 3."""
    constants: Constants = (float(alpha), float(gamma))
    formula = focal_backward
    if target.dim() < input.dim() or mask is not None or isinstance(divisor, Tensor):
        formula = kept_focal_backward if target.dim() == input.dim() else class_focal_backward
        constants = (*constants, mask is not None, isinstance(divisor, Tensor))
    return _gradient(formula, grad_out, _of_focal(input, target, mask), reduction, constants, divisor)


def _of_focal(input: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    if target.dim() == input.dim():
        return _given(input, target, mask)
    columns = torch.arange(input.shape[-1], dtype=torch.int32, device=input.device)
    return _given(input, target.unsqueeze(-1), columns, mask)


def _given(input: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors among the operands, as large as ``input`` and of dtypes that Triton loads."""
    given = [input]
    for x in others:
        if x is not None:
            loaded = x.view(torch.uint8) if x.dtype is torch.bool else x
            given.append(loaded if x.shape == input.shape else loaded.expand_as(input))  # a view takes 1 µs
    return tuple(given)


def _loss(
    formula: Any,
    operands: tuple[Tensor, ...],
    reduction: str,
    dtype: torch.dtype,
    constants: Constants,
    divisor: Divisor,
) -> Tensor | None:
    input, target, *_ = operands
    if reduction == "none":
        like = target if target.is_floating_point() else input
        out = torch.empty_like(like, dtype=dtype)  # PyTorch's own result has the strides of the target, too
        return out if write(formula, operands, (out,), (), constants) else None
    out = torch.empty_strided((), (), dtype=dtype, device=input.device)  # torch.empty takes half as long again
    if reduction == "mean" and divisor is None:
        divisor = input.numel()
    return out if write_sum(formula, operands, out, constants, divisor) else None


def _gradient(
    formula: Any,
    grad_out: Tensor,
    operands: tuple[Tensor, ...],
    reduction: str,
    constants: Constants,
    divisor: Divisor,
) -> Tensor | None:
    input = operands[0]
    grad_in = empty_output(input)
    if reduction == "none":
        return grad_in if write_gradient(formula, grad_out, operands, (grad_in,), constants) else None
    if isinstance(divisor, Tensor):
        return grad_in if write(formula, operands, (grad_in,), (grad_out, divisor), constants) else None
    if reduction == "mean" and divisor is None:
        divisor = input.numel()
    scale = None if divisor is None else factor(1 / divisor, input.dtype)
    return grad_in if write(formula, operands, (grad_in,), (grad_out,), constants, scale) else None
