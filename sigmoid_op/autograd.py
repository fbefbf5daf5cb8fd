"""Which tensor is saved, which formula is applied: σ as ``torch.autograd.Function``, twice differentiable."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionMeta

from sigmoid_op import dispatch

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default


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
        if torch.compiler.is_compiling() or any(map(torch._C._functorch.is_legacy_batchedtensor, args)):
            return cls.forward(*args)
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return super(Function, cls).apply(*args)  # type: ignore[misc]  # defined in C++


class SigmoidFunction(FastApplyFunction):
    r"""σ with its fused gradient: ``SigmoidFunction.apply(x)`` is :func:`sigmoid_op.sigmoid` whatever the size.

    .. math:: \text{grad\_in} = \text{grad\_out} \cdot \text{out} \cdot (1 - \text{out})

    Saved for backward: the output itself, no copy, and not the input. 16-bit gradients are computed in float32 and
    rounded once. Differentiable any number of times, in forward mode (``jvp``) and under ``vmap``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if dispatch.supported(x):
            from sigmoid_op.kernels.sigmoid import sigmoid_forward

            return sigmoid_forward(x)
        return torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Tensor | None:
        if grad_out is None:
            return None
        (out,) = ctx.saved_tensors
        grad_in: Tensor = SigmoidBackwardFunction.apply(grad_out, out)
        return grad_in

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        out_tangent: Tensor = SigmoidBackwardFunction.apply(tangent, out.conj())
        return out_tangent


class GradientFunction(FastApplyFunction):
    """What a gradient has in common as a Function of (grad_out, saved): both are kept for the next differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class SigmoidBackwardFunction(GradientFunction):
    """grad_in = grad_out · out · (1 - out), as a Function of both, so that gradients of gradients are fused too.

    Saved for backward: ``grad_out`` and ``out``.
    """

    @staticmethod
    def forward(grad_out: Tensor, out: Tensor) -> Tensor:
        if dispatch.supported(out):
            operand = kernel_operand(grad_out, out)
            if operand is not None:
                from sigmoid_op.kernels.sigmoid import sigmoid_backward

                return sigmoid_backward(operand, out)
        return sigmoid_gradient(grad_out, out)

    @staticmethod
    def backward(ctx: Any, grad_grad_in: Tensor) -> tuple[Tensor, Tensor]:
        grad_grad_out, grad_of_out = _double_backward(grad_grad_in, *ctx.saved_tensors)
        return grad_grad_out, grad_of_out

    @staticmethod
    def jvp(ctx: Any, grad_out_tangent: Tensor, out_tangent: Tensor) -> Tensor:
        grad_out, out = ctx.saved_tensors
        through_grad_out: Tensor = SigmoidBackwardFunction.apply(grad_out_tangent, out)
        through_out: Tensor = grad_out * ((1 - 2 * out) * out_tangent).conj()
        return through_grad_out + through_out


def sigmoid_gradient(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_out · out · (1 - out) by PyTorch's operator; for 16-bit dtypes in float32, rounded once."""
    if out.dtype in dispatch.HALF_DTYPES:
        grad_in: Tensor = _sigmoid_backward(grad_out.float(), out.float()).to(out.dtype)
    else:
        grad_in = _sigmoid_backward(grad_out, out)
    return grad_in


def _double_backward(grad_grad_in: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``SigmoidBackwardFunction``; by PyTorch operators where they are differentiated again."""
    operands = double_backward_operands(grad_grad_in, grad_out, out)
    if operands is not None:
        from sigmoid_op.kernels.sigmoid import sigmoid_double_backward

        return sigmoid_double_backward(*operands, out)
    grad_grad_out: Tensor = SigmoidBackwardFunction.apply(grad_grad_in, out.conj())
    return grad_grad_out, grad_grad_in.conj() * grad_out * (1 - 2 * out.conj())


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
