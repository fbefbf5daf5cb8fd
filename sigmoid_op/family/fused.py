"""What the family's Functions share: a kernel where one serves, PyTorch's own form of the op where none does.

An op is given as ``op``, PyTorch's form, a function of the tensors to differentiate; and as kernels, launchers that
return None for a layout they do not take. Saved for backward are the operands alone, from which σ is taken again.

These Functions need no ``jvp`` and no rule for ``vmap``, as σ's own in ``sigmoid_op/autograd.py`` have: they are not
public, have no gradient that PyTorch has not, and so leave forward mode, transforms and compilers to PyTorch's form.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sigmoid_op import dispatch

Op = Callable[..., Tensor]
HALF_DTYPES = (torch.float16, torch.bfloat16)


def forward(ctx: Any, kernel: Callable[..., Tensor | None], op: Op, *operands: Tensor) -> Tensor:
    """Save the operands, and return the result."""
    ctx.save_for_backward(*operands)
    out = kernel(*operands)
    return op(*operands) if out is None else out


def by_kernel(kernel: Callable[..., Any], grad_out: Tensor, *operands: Tensor | None) -> Any:
    """What the kernel makes of these; None where it takes none, or where its results are differentiated again."""
    differentiated_again = torch.is_grad_enabled() or dispatch.in_forward_mode()
    if differentiated_again or not all(x is None or dispatch.readable(x) for x in (grad_out, *operands)):
        return None
    return kernel(grad_out, *operands)


def backward(ctx: Any, kernel: Callable[..., Any], op: Op, grad_out: Tensor) -> Any:
    """The gradient of each operand; by PyTorch's form of the op where the kernel does not serve."""
    operands: tuple[Tensor, ...] = ctx.saved_tensors
    gradients = by_kernel(kernel, grad_out, *operands)
    if gradients is not None:
        return gradients
    gradients = by_operators(op, grad_out, *operands)
    return gradients if len(operands) > 1 else gradients[0]


def by_operators(op: Op, grad_out: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
    """The gradient of each operand, by PyTorch's differentiation of ``op``.

    16-bit operands are widened to float32 and the result is rounded once, as the kernels do it.
    """

    def widened(*operands: Tensor) -> Tensor:
        return op(*(widen(operand) for operand in operands)).to(grad_out.dtype)

    gradients: tuple[Tensor, ...] = torch.func.vjp(widened, *operands)[1](grad_out)
    return gradients


def widen(x: Tensor) -> Tensor:
    """16 bits as float32."""
    return x.float() if x.dtype in HALF_DTYPES else x


def broadcasts_to(small: Tensor, large: Tensor) -> bool:
    """Whether ``small`` takes the shape of ``large`` by broadcasting."""
    aligned = zip(reversed(small.shape), reversed(large.shape), strict=False)
    return small.dim() <= large.dim() and all(size in (1, of_large) for size, of_large in aligned)
