"""``sigmoid`` and ``sigmoid_``: one readable ``if`` chooses a fused kernel or PyTorch's own."""

import contextlib

import torch
import torch.fx
from torch import Tensor

from sigmoid_op import dispatch
from sigmoid_op.autograd import SigmoidFunction
from sigmoid_op.exact import exact_sigmoid

_torch_sigmoid = torch.sigmoid  # looking it up takes 5 % of a call with 16 elements (python -m timeit)


def sigmoid(input: Tensor, *, out: Tensor | None = None, exact_grad: bool = False) -> Tensor:
    r"""Apply the logistic sigmoid to each element: a drop-in for :func:`torch.sigmoid`.

    .. math:: \text{out} = \sigma(\text{input}) = \frac{1}{1 + e^{-\text{input}}}

    A dense CUDA tensor of float16, bfloat16, float32 or float64 with 2^23 elements or more (or as many as the
    environment variable SIGMOID_OP_MIN_ELEMENTS says) takes a fused Triton kernel; everything else, and every call with
    ``out=``, goes to ``torch.sigmoid``.

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
        if dispatch.AVAILABLE and type(input) in dispatch.TENSOR_TYPES and dispatch.worthwhile(input):
            return _kernel_sigmoid(input)
        return _torch_sigmoid(input)
    return torch.sigmoid(input, out=out)


@torch.fx.wrap  # a symbolic trace keeps the call, which it could not see into
def _sigmoid_with_exact_grad(input: Tensor) -> Tensor:
    tracing = torch.jit.is_tracing()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if isinstance(input, Tensor) and _watched_by_autograd(input) and not tracing:
        return exact_sigmoid(input)
    return sigmoid(input)


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
        dispatch.AVAILABLE
        and type(input) in dispatch.TENSOR_TYPES
        and dispatch.worthwhile(input)
        and not _watched_by_autograd(input)
        and (torch.is_inference_mode_enabled() or not input.is_inference())
    ):
        from sigmoid_op.kernels.sigmoid import sigmoid_forward_out

        sigmoid_forward_out(input, input)
        torch.autograd.graph.increment_version(input)
        return input
    return torch.sigmoid_(input)


def _watched_by_autograd(x: Tensor) -> bool:
    """Whether this call is differentiated: in reverse mode, in forward mode, or under a torch.func transform."""
    return (
        (x.requires_grad and torch.is_grad_enabled())
        or dispatch.in_forward_mode()
        or torch._C._are_functorch_transforms_active()
    )


# TorchScript cannot compile a function with keyword-only defaults; its (private) table tells it which operators these
# stand for. Without that table scripting fails, and everything else works.
with contextlib.suppress(ImportError):
    from torch.jit._builtins import _register_builtin

    _register_builtin(sigmoid, "aten::sigmoid")
    _register_builtin(sigmoid_, "aten::sigmoid_")
