"""What the ops share: the way to the kernels, and how a Function is applied and what it does where no kernel serves.

Launchers return None for a layout that they do not take. Each op states its gradient in PyTorch's operators, too,
differentiable any number of times.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionMeta

from sigmoid_op import dispatch
from sigmoid_op._torch import forward_ad_level, functorch_active, is_legacy_batched

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default
REDUCTIONS = ("none", "mean", "sum")


class _Kernels:
    """The modules of ``sigmoid_op.kernels``, each imported when first asked for, as Triton's import takes its time."""

    def __getattr__(self, name: str) -> Any:
        module = import_module(f"sigmoid_op.kernels.{name}")
        setattr(self, name, module)
        return module


kernels = _Kernels()


class _Traceable(FunctionMeta):
    """Makes Dynamo trace ``apply`` as the Python it is.

    Dynamo models ``apply`` itself for a class whose type is exactly ``FunctionMeta``, and refuses one with a ``jvp``.
    """


class EagerFunction(Function):
    """A Function whose ``apply`` is C++, for calls that ``dispatch.takes`` let through: no transform is active.

    Up to PyTorch 2.13 ``Function.apply`` looks for one in Python, at every call.
    """

    apply: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        cls.apply = super(Function, cls).apply  # type: ignore[misc]  # mypy sees no C++


class TransformableFunction(Function, metaclass=_Traceable):
    """A Function with ``setup_context``, as torch.func needs it, that eager calls apply without.

    With ``setup_context`` defined, PyTorch calls ``inspect.signature`` at every call, in Python or in C++ depending on
    its version. So an eager call goes to a twin whose ``forward`` takes ``ctx``. Under a compiler the call is the
    operators of ``forward``, which the compiler differentiates and fuses; so it is on the tensors of the older vmap,
    which knows no Functions.
    """

    _apply_eagerly: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        if "_apply_eagerly" not in vars(cls):
            cls._apply_eagerly = super(Function, _twin_of(cls)).apply  # type: ignore[misc]  # mypy sees no C++

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch.compiler.is_compiling() or any(map(is_legacy_batched, args)):
            return cls.forward(*args)
        if functorch_active():
            return super().apply(*args)
        return cls._apply_eagerly(*args)


def _twin_of(function: Any) -> Any:
    def forward(ctx: Any, *args: Any) -> Any:
        out = function.forward(*args)
        function.setup_context(ctx, args, out)
        return out

    body = {"forward": forward, "setup_context": Function.setup_context}
    methods = {name: staticmethod(method) for name, method in body.items()}
    return type(function)(function.__name__, (function,), {**methods, "_apply_eagerly": None})


class GradientFunction(TransformableFunction):
    """What a gradient has in common as a Function of (grad_out, saved): both are kept for the next differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


def differentiated_again() -> bool:
    """Whether a backward is itself differentiated, or under a transform: it must then go through a Function."""
    return torch.is_grad_enabled() or forward_ad_level() >= 0 or functorch_active()


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
    """Keep them for backward; undefined gradients stay None, as in PyTorch's own operators."""
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def by_operators(gradient: Callable[..., Any], grad_out: Tensor, *operands: Tensor | None) -> Any:
    """``gradient(grad_out, *operands)`` by PyTorch's operators, for what no kernel takes or is differentiated again.

    As in the kernels, 16-bit operands are widened to float32 and the result is rounded once, to the dtype of the first.
    """
    dtype = next(x.dtype for x in operands if x is not None)
    found = gradient(*(None if x is None else _widen(x) for x in (grad_out, *operands)))
    return found.to(dtype) if isinstance(found, Tensor) else tuple(x.to(dtype) for x in found)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in dispatch.HALF_DTYPES else x


def both_sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ(-x), each with all its digits, and so are all their derivatives: those of t = σ(-|x|) and 1 - t."""
    negative = x < 0
    t = torch.sigmoid(torch.where(negative, x, -x))
    return torch.where(negative, t, 1 - t), torch.where(negative, 1 - t, t)


def broadcasts_to(small: Tensor, large: Tensor) -> bool:
    """Whether ``small`` takes the shape of ``large`` by broadcasting."""
    if small.dim() > large.dim():
        return False
    for size, of_large in zip(reversed(small.shape), reversed(large.shape), strict=False):  # a generator takes longer
        if size not in (1, of_large):
            return False
    return True


def takes_loss(op: str, input: Tensor, target: Tensor, *weights: Tensor | None) -> bool:
    """Whether a kernel takes a loss of these. It differentiates with respect to ``input`` alone.

    All are of float64 or none is: kernels compute in the one or in float32.
    """
    others = [target, *[weight for weight in weights if weight is not None]]
    if not dispatch.takes(op, input, *others) or target.shape != input.shape:
        return False
    is_double = input.dtype is torch.float64
    for x in others:
        if (x.dtype is torch.float64) != is_double or x.requires_grad:
            return False
        if x is not target and not broadcasts_to(x, input):
            return False
    return True


def result_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """``dtype``, or float32 in place of 16 bits under autocast, which has PyTorch compute losses in float32."""
    return torch.float32 if dtype in dispatch.HALF_DTYPES and torch.is_autocast_enabled(device_type) else dtype
