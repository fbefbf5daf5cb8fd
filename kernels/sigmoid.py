"""Launchers of the σ kernels: dense tensors in, new tensors of the same memory layout out."""

from typing import Any

from torch import Tensor

from . import formulas
from .pointwise import empty_output, launch


def sigmoid_forward(x: Tensor) -> Tensor:
    """out = σ(x). Moves 2 bytes per byte of ``x``: one read, one written."""
    return sigmoid_forward_out(x, empty_output(x))


def sigmoid_forward_out(x: Tensor, out: Tensor) -> Tensor:
    """out = σ(x), written to ``out``, which has the layout of ``x`` and may be ``x``. Does not tell autograd."""
    launch(formulas.sigmoid, (), (x,), (out,))
    return out


def sigmoid_backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_in = grad_out · out · (1 - out). Moves 3 bytes per byte of ``out``, 2 when ``grad_out`` is one element.

    ``grad_out`` has the memory layout of ``out``, or is one element that stands for all of them.
    """
    return _backward(formulas.sigmoid_backward, grad_out, out)


def sigmoid_backward_out(grad_out: Tensor, out: Tensor, grad_in: Tensor) -> Tensor:
    """The same written to ``grad_in``; all three have one layout."""
    launch(formulas.sigmoid_backward, (), (grad_out, out), (grad_in,))
    return grad_in


def sigmoid_double_backward(grad_grad_in: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`sigmoid_backward` with respect to ``grad_out`` and ``out``. Moves 5 bytes per byte."""
    return _double_backward(formulas.sigmoid_double_backward, grad_grad_in, grad_out, out)


def sigmoid_exact_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """out = σ(x) and t = σ(-|x|) with the sign of ``x``. Moves 3 bytes per byte of ``x``."""
    out, t = empty_output(x), empty_output(x)
    launch(formulas.sigmoid_exact, (), (x,), (out, t))
    return out, t


def sigmoid_exact_backward(grad_out: Tensor, t: Tensor) -> Tensor:
    """grad_in = grad_out · |t| · (1 - |t|); bytes and ``grad_out`` as for :func:`sigmoid_backward`."""
    return _backward(formulas.sigmoid_exact_backward, grad_out, t)


def sigmoid_exact_double_backward(grad_grad_in: Tensor, grad_out: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`sigmoid_exact_backward`. Moves 5 bytes per byte."""
    return _double_backward(formulas.sigmoid_exact_double_backward, grad_grad_in, grad_out, t)


def _backward(formula: Any, grad_out: Tensor, saved: Tensor) -> Tensor:
    grad_in = empty_output(saved)
    if grad_out.numel() == 1 != saved.numel():
        launch(formula, (grad_out,), (saved,), (grad_in,))
    else:
        launch(formula, (), (grad_out, saved), (grad_in,))
    return grad_in


def _double_backward(formula: Any, grad_grad_in: Tensor, grad_out: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    grad_grad_out, grad_of_saved = empty_output(saved), empty_output(saved)
    launch(formula, (), (grad_grad_in, grad_out, saved), (grad_grad_out, grad_of_saved))
    return grad_grad_out, grad_of_saved
