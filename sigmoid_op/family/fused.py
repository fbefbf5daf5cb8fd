"""What the family's Functions share: a kernel where one serves, PyTorch's operators where none does.

Kernels are launchers that return None for a layout they do not take. Saved for backward are the operands alone, from
which σ is taken again. Each op states its gradient in PyTorch's operators, too, differentiable any number of times.

These Functions need no ``jvp`` and no rule for ``vmap``, as σ's own in ``sigmoid_op/autograd.py`` have: they are not
public, have no gradient that PyTorch has not, and so leave forward mode, transforms and compilers to PyTorch's form.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sigmoid_op import dispatch


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep them for backward; and leave a gradient undefined that is so, as PyTorch's own operators do."""
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def forward(kernel: Callable[..., Tensor | None], op: Callable[..., Tensor], first: Tensor, *others: Any) -> Tensor:
    """The result, by PyTorch's form of the op where the kernel does not serve, or a mode is to see operators."""
    out = None if dispatch.is_watched(first) else kernel(first, *others)
    return op(first, *others) if out is None else out


def backward(
    kernel: Callable[..., Any], operators: Callable[..., Any], grad_out: Tensor | None, *operands: Tensor | None
) -> Any:
    """``kernel(grad_out, *operands)``: the gradient, or one for each operand; None where ``grad_out`` is undefined.

    By PyTorch's operators where no kernel can read the tensors or the gradient is differentiated again: 16-bit operands
    are widened to float32 and the result is rounded once, as in the kernels.
    """
    if grad_out is None:
        return None
    differentiated_again = torch.is_grad_enabled() or dispatch.in_forward_mode()
    tensors = (grad_out, *(x for x in operands if x is not None))
    if not differentiated_again and all(dispatch.readable(x) for x in tensors):
        of_kernel = kernel(grad_out, *operands)
        if of_kernel is not None:
            return of_kernel
    dtype = tensors[1].dtype
    gradients = operators(*(None if x is None else _widen(x) for x in (grad_out, *operands)))
    return gradients.to(dtype) if isinstance(gradients, Tensor) else tuple(x.to(dtype) for x in gradients)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in dispatch.HALF_DTYPES else x


def both_sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ(-x), each with all its digits, and so are all their derivatives: those of t = σ(-|x|) and 1 - t."""
    negative = x < 0
    t = torch.sigmoid(torch.where(negative, x, -x))
    return torch.where(negative, t, 1 - t), torch.where(negative, 1 - t, t)


def broadcasts_to(small: Tensor, large: Tensor) -> bool:
    """Whether ``small`` takes the shape of ``large`` by broadcasting."""
    aligned = zip(reversed(small.shape), reversed(large.shape), strict=False)
    return small.dim() <= large.dim() and all(size in (1, of_large) for size, of_large in aligned)
