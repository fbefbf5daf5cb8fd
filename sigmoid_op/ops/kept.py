"""``mask`` and ``normalizer`` of the losses: which elements count, and what their sum is divided by."""

import math

import torch
from torch import Tensor

from sigmoid_op import dispatch
from sigmoid_op._torch import forward_ad_level
from sigmoid_op.ops import shared

Normalizer = float | Tensor | None

# Of a mask or a normalizer that a kernel reads; it converts the one to a truth and the other to a float.
_DTYPES = dispatch.KERNEL_DTYPES | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def check(input: Tensor, reduction: str, mask: Tensor | None, normalizer: Normalizer) -> None:
    """Refuse what has no meaning, by its name and value.

    Raises:
        TypeError: for a mask that is no tensor of real numbers, or a normalizer that is no real number.
        ValueError: for an unknown reduction, a mask that does not broadcast to the input, a normalizer that no sum can
            be divided by or that has a dimension, or one of a loss that is not reduced.
    """
    if reduction not in shared.REDUCTIONS:
        raise ValueError(f"reduction must be one of {shared.REDUCTIONS}, got {reduction!r}")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.is_complex():
            raise TypeError(f"mask must be a tensor of bool or of real numbers, got {mask!r}")
        if not shared.broadcasts_to(mask, input):
            raise ValueError(
                f"mask must broadcast to the shape of the input, {tuple(input.shape)}; its shape is {tuple(mask.shape)}"
            )
    if normalizer is None:
        return
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(
                f"normalizer must be a number or a tensor without dimensions, got shape {tuple(normalizer.shape)}"
            )
        if normalizer.is_complex() or normalizer.dtype == torch.bool:
            raise TypeError(f"normalizer must be a real number, got a tensor of {normalizer.dtype}")
    elif isinstance(normalizer, bool) or not isinstance(normalizer, (int, float)):
        raise TypeError(f"normalizer must be a number or a tensor without dimensions, got {normalizer!r}")
    elif not 0 < normalizer < math.inf:
        raise ValueError(f"normalizer must be greater than 0 and finite, got {normalizer!r}")
    if reduction == "none":
        raise ValueError(f"normalizer divides a sum, which reduction='none' has not; got normalizer={normalizer!r}")


def readable(input: Tensor, mask: Tensor | None, normalizer: Normalizer, classes: Tensor | None = None) -> bool:
    """Whether a kernel reads these beside ``input``, and nobody differentiates with respect to the normalizer."""
    for x in (mask, normalizer, classes):
        if isinstance(x, Tensor) and not (
            type(x) in dispatch.TENSOR_TYPES
            and x.dtype in _DTYPES
            and x.get_device() == input.get_device()
            and dispatch.is_ordinary(x)
            and not (torch.is_grad_enabled() and x.is_inference())
        ):
            return False
    return not (isinstance(normalizer, Tensor) and (normalizer.requires_grad or forward_ad_level() >= 0))


def divisor(input: Tensor, reduction: str, mask: Tensor | None, normalizer: Normalizer) -> Normalizer:
    """What a kernel divides the sum by."""
    if normalizer is not None or reduction != "mean":
        return normalizer
    return input.numel() if mask is None else mask.count_nonzero() * (input.numel() // mask.numel())


def parts(divisor: Normalizer) -> tuple[Tensor | None, float | None]:
    """The divisor as a tensor to save or as a number, and None for the other."""
    return (divisor, None) if isinstance(divisor, Tensor) else (None, divisor)


def counts(mask: Tensor | None) -> Tensor | None:
    """The mask as a bool for each element, or None for all."""
    return None if mask is None else mask != 0


def only(kept: Tensor | None, x: Tensor) -> Tensor:
    """``x``, or 0 where it does not count; no gradient comes through there, not even NaN."""
    return x if kept is None else torch.where(kept, x, 0.0)


def reduced(losses: Tensor, kept: Tensor | None, reduction: str, normalizer: Normalizer) -> Tensor:
    """Each loss that counts, or their sum over what divides it, in float32 for 16 bits. TorchScript compiles it."""
    losses = only(kept, losses)
    if reduction == "none":
        return losses
    is_half = losses.dtype == torch.float16 or losses.dtype == torch.bfloat16
    total = losses.sum(dtype=torch.float32 if is_half else losses.dtype)
    if isinstance(normalizer, Tensor):  # noqa: SIM114  # TorchScript divides by one type at a time
        total = total / normalizer
    elif normalizer is not None:
        total = total / normalizer
    elif reduction == "mean" and kept is not None:
        total = total / kept.expand_as(losses).sum()
    elif reduction == "mean":
        total = total / losses.numel()
    return total.to(losses.dtype)


def grad_per_element(
    grad_out: Tensor, input: Tensor, reduction: str, divisor: Tensor | None, number: float | None
) -> Tensor:
    """The gradient of the loss of each logit, from that of what they were reduced to."""
    if divisor is not None:
        return grad_out / divisor
    if number is not None:
        return grad_out / number
    return grad_out / input.numel() if reduction == "mean" else grad_out
