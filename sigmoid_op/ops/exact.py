r"""σ with a gradient that survives saturation: what ``exact_grad=True`` selects.

.. math:: \sigma'(x) = \sigma(x)\,\sigma(-x) = t\,(1 - t), \qquad t = \sigma(-|x|) \in [0, \tfrac12]

The default saves out and takes out·(1 - out), which is 0 as soon as out has been rounded to 1. There t is small, keeps
all its digits, and so does the product. The saved tensor is t with the sign of x in its sign bit, which t, never
negative, leaves free: the second derivative needs it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sigmoid_op import dispatch
from sigmoid_op.ops.shared import (
    GradientFunction,
    TransformableFunction,
    differentiated_again,
    double_backward_operands,
    kernel_operand,
    kernels,
    sigmoid_gradient,
)


def exact_sigmoid(x: Tensor) -> Tensor:
    """σ(x) for a tensor that is differentiated, saving t instead of the result."""
    if x.is_complex():
        raise TypeError(f"exact_grad=True needs a real dtype, got {x.dtype}")
    function = _CompiledExactFunction if torch.compiler.is_compiling() else ExactSigmoidFunction
    out: Tensor = function.apply(x)[0]
    return out


def _out_and_t(x: Tensor) -> tuple[Tensor, Tensor]:
    if dispatch.supported(x):
        results: tuple[Tensor, Tensor] = kernels.sigmoid.launch_sigmoid_exact(x)
        return results
    out = torch.sigmoid(x)
    return out, torch.copysign(torch.sigmoid(-x.abs()), x)


class ExactSigmoidFunction(TransformableFunction):
    """x -> (out, t). Both outputs are differentiable, as is needed to differentiate the gradient again.

    Saved for backward: t, of the dtype and size of x. As dt/dx = -σ'(x), the gradients of the two outputs are added
    before the one product.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return _out_and_t(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_t: Tensor | None) -> Tensor | None:
        if grad_t is not None:
            grad_out = -grad_t if grad_out is None else grad_out - grad_t
        if grad_out is None:
            return None
        (t,) = ctx.saved_tensors
        function = ExactBackwardFunction
        grad_in: Tensor = (function.apply if differentiated_again() else function.forward)(grad_out, t)
        return grad_in

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        (t,) = ctx.saved_tensors
        out_tangent: Tensor = ExactBackwardFunction.apply(tangent, t)
        return out_tangent, -out_tangent


class ExactBackwardFunction(GradientFunction):
    """grad_in = grad_out · |t| · (1 - |t|), twice differentiable.

    Saved for backward: ``grad_out`` and ``t``.
    """

    @staticmethod
    def forward(grad_out: Tensor, t: Tensor) -> Tensor:
        if dispatch.supported(t):
            operand = kernel_operand(grad_out, t)
            if operand is not None:
                grad_in: Tensor = kernels.sigmoid.launch_sigmoid_exact_backward(operand, t)
                return grad_in
        return sigmoid_gradient(grad_out, t.abs())

    @staticmethod
    def backward(ctx: Any, grad_grad_in: Tensor) -> tuple[Tensor, Tensor]:
        grad_out, t = ctx.saved_tensors
        operands = double_backward_operands(grad_grad_in, grad_out, t)
        if operands is not None:
            gradients: tuple[Tensor, Tensor] = kernels.sigmoid.launch_sigmoid_exact_double_backward(*operands, t)
            return gradients
        grad_grad_out: Tensor = ExactBackwardFunction.apply(grad_grad_in, t)
        return grad_grad_out, grad_grad_in * grad_out * _slope(t)

    @staticmethod
    def jvp(ctx: Any, grad_out_tangent: Tensor, t_tangent: Tensor) -> Tensor:
        grad_out, t = ctx.saved_tensors
        through_grad_out: Tensor = ExactBackwardFunction.apply(grad_out_tangent, t)
        through_t: Tensor = grad_out * _slope(t) * t_tangent
        return through_grad_out + through_t


def _slope(t: Tensor) -> Tensor:
    """The derivative of |t|·(1 - |t|) with respect to t: ±1 - 2t, the sign being that of t, signed zeros included."""
    return torch.copysign(torch.ones_like(t), t) - 2 * t


class _CompiledExactFunction(Function):
    """The same for torch.compile and torch.export, in operators that the compiler fuses.

    A compiler differentiates those of a ``TransformableFunction`` itself and would not take this gradient. It keeps
    that of a plain Function, provided it defines no ``jvp``; nor is one needed, as it differentiates once, in reverse.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        out, t = _out_and_t(x)
        ctx.save_for_backward(t)
        ctx.mark_non_differentiable(t)
        return out, t

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_t: Tensor | None) -> Tensor:
        (t,) = ctx.saved_tensors
        return sigmoid_gradient(grad_out, t.abs())
