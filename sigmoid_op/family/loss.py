"""What the losses with a target share: which arguments a kernel takes, the result's dtype, and its gradient."""

import torch
from torch import Tensor

from sigmoid_op import dispatch
from sigmoid_op.family.fused import broadcasts_to

REDUCTIONS = ("none", "mean", "sum")


def fuses(input: Tensor, target: Tensor, *weights: Tensor | None) -> bool:
    """Whether a kernel takes a loss of these. It differentiates with respect to ``input`` alone.

    All are of float64 or none is: kernels compute in the one or in float32.
    """
    others = (target, *(weight for weight in weights if weight is not None))
    return (
        dispatch.fuses(input, *others)
        and target.shape == input.shape
        and all(broadcasts_to(x, input) for x in others)
        and all((x.dtype == torch.float64) == (input.dtype == torch.float64) for x in others)
        and not any(x.requires_grad for x in others)
    )


def result_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """``dtype``, or float32 in place of 16 bits under autocast, which has PyTorch compute losses in float32."""
    return torch.float32 if dtype in dispatch.HALF_DTYPES and torch.is_autocast_enabled(device.type) else dtype


def of_each(grad_out: Tensor, input: Tensor, reduction: str) -> Tensor:
    """The gradient of the loss of each logit, from that of their mean or sum."""
    return grad_out / input.numel() if reduction == "mean" else grad_out
