"""``sigmoid``, ``sigmoid_`` and ``Sigmoid``: a fused kernel or PyTorch's own."""

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from sigmoid_op import _torch, dispatch
from sigmoid_op.ops.shared import (
    GradientFunction,
    TransformableFunction,
    differentiated_again,
    double_backward_operands,
    kernel_operand,
    kernels,
    sigmoid_gradient,
)

_torch_sigmoid = torch.sigmoid  # looking it up takes 5 % of a call with 16 elements (python -m timeit)


def _scripted_sigmoid(input: Tensor, out: Tensor | None = None, exact_grad: bool = False) -> Tensor:
    return torch.sigmoid(input) if out is None else torch.sigmoid(input, out=out)


@_torch.scripts_as(_scripted_sigmoid)
def sigmoid(input: Tensor, *, out: Tensor | None = None, exact_grad: bool = False) -> Tensor:
    r"""Apply the logistic sigmoid to each element: a drop-in for :func:`torch.sigmoid`.

    .. math:: \text{out} = \sigma(\text{input}) = \frac{1}{1 + e^{-\text{input}}}

    A dense CUDA tensor of float16, bfloat16, float32 or float64 with 2^30 elements or more (or as many as the
    environment variable SIGMOID_OP_MIN_ELEMENTS says) takes a fused Triton kernel; everything else, and every call with
    ``out=``, goes to ``torch.sigmoid``, which takes the host less time and the device the same.

    Args:
        input: a tensor of any shape, dtype, layout and device that ``torch.sigmoid`` takes.
        out: where to write the result; such a call is not differentiable.
        exact_grad: whether the gradient keeps its accuracy where σ saturates. The default's, like PyTorch's, is exactly
            0 from x = 6.25 in bfloat16, 8.32 in float16 and 17.0 in float32 on, where out has been rounded to 1. The
            exact one is within 2 ulp (16-bit) or 3 ulp (float32) wherever the true value is a normal number. Want it
            for gates that may saturate and must be able to open again, in bfloat16 above all. It costs the writing of
            a second tensor in forward; and its memory until backward, where something downstream keeps the result too.
            A TorchScript program, traced or scripted, has PyTorch's gradient.

    Returns:
        a tensor of the shape, strides, dtype and device that ``torch.sigmoid`` would give it.

    Saved for backward: the result, and nothing else; with ``exact_grad`` σ(-\|input\|), of the same size, instead.
    Nothing where no gradient is required.

    Raises:
        TypeError: with ``exact_grad`` for complex input that is differentiated.
        Otherwise whatever ``torch.sigmoid`` raises for the same arguments.

    Source: P.-F. Verhulst, *Notice sur la loi que la population suit dans son accroissement*, 1838.
    """
    if out is None:
        if exact_grad:
            return _sigmoid_with_exact_grad(input)
        if dispatch.AVAILABLE and dispatch.takes("sigmoid", input) and dispatch.is_dense(input):
            if dispatch.records(input):
                recorded: Tensor = SigmoidFunction.apply(input)
                return recorded
            return _forward(input)
        return _torch_sigmoid(input)
    return torch.sigmoid(input, out=out)


@torch.fx.wrap  # a symbolic trace keeps the call, which it could not see into
def _sigmoid_with_exact_grad(input: Tensor) -> Tensor:
    if isinstance(input, Tensor) and dispatch.is_differentiated(input) and not torch.jit.is_tracing():
        from sigmoid_op.ops.exact import exact_sigmoid

        return exact_sigmoid(input)
    return sigmoid(input)


def _forward(x: Tensor) -> Tensor:
    """σ(x) for a tensor that a kernel can take, by PyTorch's operator where a mode is to see it."""
    if dispatch.is_watched():
        return _torch_sigmoid(x)
    out: Tensor = kernels.sigmoid.launch_sigmoid(x)
    return out


def _scripted_sigmoid_(input: Tensor) -> Tensor:
    return torch.sigmoid_(input)


@_torch.scripts_as(_scripted_sigmoid_)
def sigmoid_(input: Tensor) -> Tensor:
    """Apply the logistic sigmoid in place: a drop-in for :meth:`torch.Tensor.sigmoid_`.

    Takes a fused kernel under the conditions of :func:`sigmoid` when no gradient is recorded; otherwise, and for
    everything else, ``input.sigmoid_()``.

    Args:
        input: the tensor to overwrite with σ(input).

    Returns:
        ``input``.

    Saved for backward: ``input``, which then holds the result.

    Raises:
        whatever ``Tensor.sigmoid_`` raises, among it for a leaf that requires a gradient, and for a tensor of which
        two elements share memory.
    """
    if (
        dispatch.AVAILABLE
        and dispatch.takes("sigmoid", input)
        and dispatch.is_dense(input)
        and not dispatch.records(input)
        and not dispatch.is_watched()
        and (torch.is_inference_mode_enabled() or not input.is_inference())
    ):
        kernels.sigmoid.launch_sigmoid_out(input, input)
        torch.autograd.graph.increment_version(input)
        return input
    return torch.sigmoid_(input)


class SigmoidFunction(TransformableFunction):
    r"""σ with its fused gradient: ``SigmoidFunction.apply(x)`` is :func:`sigmoid_op.sigmoid` whatever the size.

    .. math:: \text{grad\_in} = \text{grad\_out} \cdot \text{out} \cdot (1 - \text{out})

    Saved for backward: the output itself, no copy, and not the input. 16-bit gradients are computed in float32 and
    rounded once. Differentiable any number of times, in forward mode (``jvp``) and under ``vmap``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if dispatch.supported(x):
            out: Tensor = kernels.sigmoid.launch_sigmoid(x)
            return out
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
        function = SigmoidBackwardFunction
        grad_in: Tensor = (function.apply if differentiated_again() else function.forward)(grad_out, out)
        return grad_in

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        out_tangent: Tensor = SigmoidBackwardFunction.apply(tangent, out.conj())
        return out_tangent


class SigmoidBackwardFunction(GradientFunction):
    """grad_in = grad_out · out · (1 - out), as a Function of both, so that gradients of gradients are fused too.

    Saved for backward: ``grad_out`` and ``out``.
    """

    @staticmethod
    def forward(grad_out: Tensor, out: Tensor) -> Tensor:
        if dispatch.supported(out):
            operand = kernel_operand(grad_out, out)
            if operand is not None:
                grad_in: Tensor = kernels.sigmoid.launch_sigmoid_backward(operand, out)
                return grad_in
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


def _double_backward(grad_grad_in: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``SigmoidBackwardFunction``; by PyTorch operators where they are differentiated again."""
    operands = double_backward_operands(grad_grad_in, grad_out, out)
    if operands is not None:
        gradients: tuple[Tensor, Tensor] = kernels.sigmoid.launch_sigmoid_double_backward(*operands, out)
        return gradients
    grad_grad_out: Tensor = SigmoidBackwardFunction.apply(grad_grad_in, out.conj())
    return grad_grad_out, grad_grad_in.conj() * grad_out * (1 - 2 * out.conj())


class Sigmoid(nn.Sigmoid):
    r"""Apply the logistic sigmoid to each element: a drop-in for :class:`torch.nn.Sigmoid`.

    .. math:: \text{Sigmoid}(x) = \sigma(x) = \frac{1}{1 + e^{-x}}

    A subclass of ``nn.Sigmoid`` without parameters or buffers, so ``isinstance`` checks, state dicts, pickles and
    ``repr`` stay as they are. See :func:`sigmoid_op.sigmoid` for dtypes, errors and what is saved for backward.

    Args:
        exact_grad: whether the gradient keeps its accuracy where σ saturates, at the cost that ``sigmoid`` states.

    Shape:
        - Input: any
        - Output: that of the input
    """

    __constants__ = ("exact_grad",)  # TorchScript does not see what is on the class
    exact_grad: bool = False  # on the class too, for modules that were made as nn.Sigmoid

    def __init__(self, exact_grad: bool = False) -> None:
        super().__init__()
        self.exact_grad = exact_grad

    def forward(self, input: Tensor) -> Tensor:
        return sigmoid(input, exact_grad=self.exact_grad)

    def extra_repr(self) -> str:
        return "exact_grad=True" if self.exact_grad else ""
