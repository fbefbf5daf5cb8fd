"""What the losses with a target share: which arguments a kernel takes, the result's dtype, and the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from sigmoid_op import dispatch
from sigmoid_op.family.fused import HALF_DTYPES, Op, broadcasts_to, by_kernel, by_operators, widen

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
    return torch.float32 if dtype in HALF_DTYPES and torch.is_autocast_enabled(device.type) else dtype


def gradient(
    kernel: Callable[..., Tensor | None], op: Op, grad_out: Tensor, input: Tensor, *others: Tensor | None
) -> Tensor:
    """The gradient of ``input``: by the kernel, or what PyTorch makes of ``op``.

    The latter where it is differentiated again, or no kernel can read the tensors.
    """
    of_kernel: Tensor | None = by_kernel(kernel, grad_out, input, *others)
    if of_kernel is not None:
        return of_kernel
    wide = [None if x is None else widen(x) for x in others]
    return by_operators(lambda input: op(input, *wide), grad_out, input)[0]
