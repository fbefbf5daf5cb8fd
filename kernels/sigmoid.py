"""σ and its derivatives: the formulas, and their launchers for dense tensors.

A formula takes a tuple of loaded values and returns a tuple of results.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .intrinsics import fma, multiply_to_odd, one_minus, widen
from .pointwise import empty_output, launch
from .scalar import sigmoid_of


@triton.jit
def sigmoid(args):
    """out = σ(x)"""
    (x,) = args
    return (sigmoid_of(widen(x), x.dtype),)


@triton.jit
def _gradient(grad_out, out, dtype: tl.constexpr):
    """grad_out · out·(1 - out) of widened values, rounded for 16 bits such that the store gives the nearest number.

    The product of two 16-bit values has at most 22 bits, and 1 - out is cut only where out < 2^-16, which moves no
    result. The second product is rounded to odd: a float32 halfway between two results, or on one of them, would not
    say on which side of it the exact product lies. Of float32, out - out² is rounded once.
    """
    if dtype == tl.float64:
        return grad_out * (out * (1.0 - out))
    elif dtype == tl.float32:
        return grad_out * fma(-1.0 * out, out, out)
    else:
        return multiply_to_odd(grad_out * out, one_minus(out))


@triton.jit
def sigmoid_backward(args):
    """grad_in = grad_out · σ'(x), with σ'(x) = out·(1 - out)"""
    grad_out, out = args
    return (_gradient(widen(grad_out), widen(out), out.dtype),)


@triton.jit
def sigmoid_double_backward(args):
    """The gradients of grad_in = grad_out·out·(1 - out) with respect to grad_out and to out."""
    grad_grad_in, grad_out, out = args
    dtype: tl.constexpr = out.dtype
    grad_grad_in = widen(grad_grad_in)
    out = widen(out)
    return _gradient(grad_grad_in, out, dtype), grad_grad_in * widen(grad_out) * fma(out, -2.0, 1.0)


@triton.jit
def sigmoid_exact(args):
    """out = σ(x), and t = σ(-|x|) with the sign of x in its sign bit"""
    (x,) = args
    wide = widen(x)
    t = sigmoid_of(-tl.abs(wide), x.dtype, negative=True)
    return sigmoid_of(wide, x.dtype), tl.where(wide < 0, -1.0 * t, t)


@triton.jit
def sigmoid_exact_backward(args):
    """grad_in = grad_out · σ'(x), with σ'(x) = |t|·(1 - |t|)"""
    grad_out, t = args
    return (_gradient(widen(grad_out), tl.abs(widen(t)), t.dtype),)


@triton.jit
def sigmoid_exact_double_backward(args):
    """The gradients of grad_in = grad_out·|t|·(1 - |t|) with respect to grad_out and to t."""
    grad_grad_in, grad_out, t = args
    dtype: tl.constexpr = t.dtype
    grad_grad_in = widen(grad_grad_in)
    t = widen(t)
    slope = fma(t, -2.0, tl.where(t < 0, -1.0, 1.0))  # of |t|·(1 - |t|)
    return _gradient(grad_grad_in, tl.abs(t), dtype), grad_grad_in * widen(grad_out) * slope


def launch_sigmoid(x: Tensor) -> Tensor:
    """out = σ(x). Moves 2 bytes per byte of ``x``: one read, one written."""
    return launch_sigmoid_out(x, empty_output(x))


def launch_sigmoid_out(x: Tensor, out: Tensor) -> Tensor:
    """out = σ(x), written to ``out``, which has the layout of ``x`` and may be ``x``. Does not tell autograd."""
    launch(sigmoid, (), (x,), (out,))
    return out


def launch_sigmoid_backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_in = grad_out · out · (1 - out). Moves 3 bytes per byte of ``out``, 2 when ``grad_out`` is one element.

    ``grad_out`` has the memory layout of ``out``, or is one element that stands for all of them.
    """
    return _backward(sigmoid_backward, grad_out, out)


def launch_sigmoid_backward_out(grad_out: Tensor, out: Tensor, grad_in: Tensor) -> Tensor:
    """The same written to ``grad_in``; all three have one layout."""
    launch(sigmoid_backward, (), (grad_out, out), (grad_in,))
    return grad_in


def launch_sigmoid_double_backward(grad_grad_in: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`launch_sigmoid_backward` by ``grad_out`` and ``out``. Moves 5 bytes per byte."""
    return _double_backward(sigmoid_double_backward, grad_grad_in, grad_out, out)


def launch_sigmoid_exact(x: Tensor) -> tuple[Tensor, Tensor]:
    """out = σ(x) and t = σ(-|x|) with the sign of ``x``. Moves 3 bytes per byte of ``x``."""
    out, t = empty_output(x), empty_output(x)
    launch(sigmoid_exact, (), (x,), (out, t))
    return out, t


def launch_sigmoid_exact_backward(grad_out: Tensor, t: Tensor) -> Tensor:
    """grad_in = grad_out · |t| · (1 - |t|); bytes and ``grad_out`` as for :func:`launch_sigmoid_backward`."""
    return _backward(sigmoid_exact_backward, grad_out, t)


def launch_sigmoid_exact_double_backward(grad_grad_in: Tensor, grad_out: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`launch_sigmoid_exact_backward`. Moves 5 bytes per byte."""
    return _double_backward(sigmoid_exact_double_backward, grad_grad_in, grad_out, t)


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
