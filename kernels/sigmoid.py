"""Launchers of the σ kernels: dense tensors in, new tensors of the same memory layout out."""

from torch import Tensor

from . import formulas
from .pointwise import empty_output, launch


def sigmoid_forward(x: Tensor) -> Tensor:
    """out = σ(x). Moves 2 bytes per byte of ``x``: one read, one written."""
    out = empty_output(x)
    launch(formulas.sigmoid, (), (x,), (out,))
    return out


def sigmoid_forward_(x: Tensor) -> Tensor:
    """x = σ(x), in place. Does not tell autograd: see :func:`sigmoid_op.sigmoid_`."""
    launch(formulas.sigmoid, (), (x,), (x,))
    return x


def sigmoid_backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_in = grad_out · out · (1 - out). Moves 3 bytes per byte of ``out``, 2 when ``grad_out`` is one element.

    ``grad_out`` has the memory layout of ``out``, or is one element that stands for all of them.
    """
    grad_in = empty_output(out)
    if grad_out.numel() == 1 != out.numel():
        launch(formulas.sigmoid_backward, (grad_out,), (out,), (grad_in,))
    else:
        launch(formulas.sigmoid_backward, (), (grad_out, out), (grad_in,))
    return grad_in


def sigmoid_double_backward(grad_grad_in: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``sigmoid_backward`` with respect to ``grad_out`` and ``out``. Moves 5 bytes per byte."""
    grad_grad_out = empty_output(out)
    grad_of_out = empty_output(out)
    launch(formulas.sigmoid_double_backward, (), (grad_grad_in, grad_out, out), (grad_grad_out, grad_of_out))
    return grad_grad_out, grad_of_out
