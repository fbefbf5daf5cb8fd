"""What the ops share: how a Function is applied, and what it saves and does where a kernel serves and where none does.

Kernels are launchers that return None for a layout they do not take. Each op states its gradient in PyTorch's
operators, too, differentiable any number of times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionMeta

from sigmoid_op import _torch, dispatch

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
REDUCTIONS = ("none", "mean", "sum")


class _Traceable(FunctionMeta):
    """Makes Dynamo trace ``apply`` as the Python it is.

    Dynamo models ``apply`` itself for a class whose type is exactly ``FunctionMeta``, and refuses one with a ``jvp``.
    """


class FastApplyFunction(Function, metaclass=_Traceable):
    """A Function whose ``apply`` skips binding default arguments, of which ours have none.

    With ``setup_context`` defined, ``Function.apply`` first calls ``inspect.signature``: 17.3 µs a call in place of 5.6
    (python -m bench host). Under a torch.func transform the call takes the ordinary way; under a compiler it is the
    operators of ``forward``, which the compiler differentiates and fuses. So it is on the tensors of the older vmap,
    which knows no Functions.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch.compiler.is_compiling() or any(map(_torch.is_legacy_batched, args)):
            return cls.forward(*args)
        if _torch.functorch_active():
            return super().apply(*args)
        return super(Function, cls).apply(*args)  # type: ignore[misc]  # defined in C++


class GradientFunction(FastApplyFunction):
    """What a gradient has in common as a Function of (grad_out, saved): both are kept for the next differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


def sigmoid_gradient(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_out · out · (1 - out) by PyTorch's operator; for 16-bit dtypes in float32, rounded once."""
    if out.dtype in dispatch.HALF_DTYPES:
        grad_in: Tensor = _sigmoid_backward(grad_out.float(), out.float()).to(out.dtype)
    else:
        grad_in = _sigmoid_backward(grad_out, out)
    return grad_in


def double_backward_operands(grad_grad_in: Tensor, grad_out: Tensor, saved: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as a kernel reads them beside ``saved``; None where none can, or where the result is differentiated."""
    if torch.is_grad_enabled() or not dispatch.supported(saved):
        return None
    first = kernel_operand(grad_grad_in, saved, broadcast=False)
    second = kernel_operand(grad_out, saved, broadcast=False)
    return None if first is None or second is None else (first, second)


def kernel_operand(x: Tensor, out: Tensor, *, broadcast: bool = True) -> Tensor | None:
    """``x`` as a kernel reads it beside ``out``: in the same memory order, or as one element; None if it cannot.

    A 16-bit ``x`` in another layout is copied into that of ``out``: one more read and write, but the gradient is still
    rounded once. Wider dtypes go to PyTorch's own kernel, which reads any layout; in float32 its gradient is within
    2.02 ulp where ours is within 1.33 (python -m bench accuracy), which a copy would not be worth.
    """
    if x.shape != out.shape or x.dtype != out.dtype or x.device != out.device or not dispatch.is_ordinary(x):
        return None
    strides = [(a, b) for a, b, size in zip(x.stride(), out.stride(), x.shape, strict=True) if size != 1]
    if all(a == b for a, b in strides):
        return x
    if broadcast and all(a == 0 for a, _ in strides):
        return x.as_strided((1,), (1,))
    if x.element_size() == 2:
        return torch.empty_like(out).copy_(x)
    return None


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


def loss_fuses(input: Tensor, target: Tensor, *weights: Tensor | None) -> bool:
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
