"""``sigmoid`` and ``sigmoid_``: one readable ``if`` chooses a fused kernel or PyTorch's own."""

import torch
import torch.jit._builtins
from torch import Tensor
from torch.autograd import forward_ad

from sigmoid_op import dispatch
from sigmoid_op.autograd import SigmoidFunction


def sigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""Apply the logistic sigmoid to each element: a drop-in for :func:`torch.sigmoid`.

    .. math:: \text{out} = \sigma(\text{input}) = \frac{1}{1 + e^{-\text{input}}}

    A large dense CUDA tensor of float16, bfloat16, float32 or float64 takes a fused Triton kernel; everything else,
    and every call with ``out=``, goes to ``torch.sigmoid``.

    Args:
        input: a tensor of any shape, dtype, layout and device that ``torch.sigmoid`` takes.
        out: where to write the result.

    Returns:
        a tensor of the shape, strides, dtype and device that ``torch.sigmoid`` would give it.

    Saved for backward: the result, and nothing else; nothing where no gradient is required.

    Raises:
        whatever ``torch.sigmoid`` raises for the same arguments.

    Source: P.-F. Verhulst, *Notice sur la loi que la population suit dans son accroissement*, 1838.
    """
    if out is None:
        if isinstance(input, Tensor) and (input.is_cuda or dispatch.INTERPRETED) and dispatch.worthwhile(input):
            return _kernel_sigmoid(input)
        return torch.sigmoid(input)
    return torch.sigmoid(input, out=out)


def _kernel_sigmoid(x: Tensor) -> Tensor:
    if _watched_by_autograd(x):
        out: Tensor = SigmoidFunction.apply(x)
        return out
    from sigmoid_op.kernels.sigmoid import sigmoid_forward

    return sigmoid_forward(x)


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
        isinstance(input, Tensor)
        and (input.is_cuda or dispatch.INTERPRETED)
        and dispatch.worthwhile(input)
        and not _watched_by_autograd(input)
    ):
        from sigmoid_op.kernels.sigmoid import sigmoid_forward_

        sigmoid_forward_(input)
        if not input.is_inference():
            torch.autograd.graph.increment_version(input)
        return input
    return torch.sigmoid_(input)


def _watched_by_autograd(x: Tensor) -> bool:
    """Whether this call is differentiated, in reverse mode or in forward mode."""
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0


# TorchScript cannot compile a function with keyword-only defaults; it is told the operators they stand for. Without
# this (private) table only scripting would fail, on the versions that still have it.
torch.jit._builtins._register_builtin(sigmoid, "aten::sigmoid")
torch.jit._builtins._register_builtin(sigmoid_, "aten::sigmoid_")
