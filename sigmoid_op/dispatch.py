"""The only place that says which tensors a Triton kernel is for, and why.

Can a kernel read this tensor (:func:`readable`, :func:`supported`), and is it faster there, for σ (:func:`worthwhile`)
or for an op of the family (:func:`fuses`)? Whatever a kernel does not take goes to PyTorch's own operators, which are
right for everything. How operands must lie beside each other is said where they meet: ``shared.kernel_operand``,
``ops/shared.py``, and ``kernels/frame.py``, which refuses what the templates cannot read.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sigmoid_op import _torch

HAS_TRITON: bool = find_spec("triton") is not None

# Triton's own switch: its kernels run in its interpreter, on CPU tensors. Read once, as Triton reads it once.
INTERPRETED: bool = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "y", "yes"}

# Whether any tensor could take a kernel in this process. Where none can, a call pays for nothing but this: on the CPU
# build of PyTorch that keeps sigmoid() within 1.2 of torch.sigmoid at 16 elements (python -m bench host).
# Not on AMD: the kernels compile for it (python -m bench codegen), but the error of its 2^x and 1/x is not bounded.
AVAILABLE: bool = not _torch.MISSING and (INTERPRETED or (HAS_TRITON and torch.version.cuda is not None))


def _min_elements() -> int:
    text = os.environ.get("SIGMOID_OP_MIN_ELEMENTS", str(2**23))
    if not text.isdecimal():
        raise ValueError(f"SIGMOID_OP_MIN_ELEMENTS must be a number of elements, got {text!r}")
    return int(text)


# Smaller tensors go to torch.sigmoid, whose launch costs less host time; it saves the same tensor for backward.
# Not measured yet: 2^23 elements take an H200's memory 7 us or more, longer than our launch should take the host.
MIN_ELEMENTS: int = 0 if INTERPRETED else _min_elements()

# Asked before anything else of a tensor: of a subclass, any question is a call that its ``__torch_function__`` sees.
TENSOR_TYPES: frozenset[type[Tensor]] = frozenset({Tensor, Parameter})

HALF_DTYPES: frozenset[torch.dtype] = frozenset({torch.float16, torch.bfloat16})
KERNEL_DTYPES: frozenset[torch.dtype] = HALF_DTYPES | {torch.float32, torch.float64}

_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_tracing = _torch.is_tracing


def worthwhile(x: Tensor) -> bool:
    """Whether a kernel takes ``x`` and is faster there than ``torch.sigmoid``."""
    # Every small CUDA tensor comes this way: these are the cheapest questions that will do (python -m bench ways_in).
    # In this order, as comparing the number of elements would tie a compiled or traced graph to the size.
    return (
        (x.is_cuda or INTERPRETED)
        and not _is_dynamo_compiling()
        and not _is_tracing()
        and x.numel() >= MIN_ELEMENTS
        and supported(x)
    )


def fuses(first: Tensor, *others: Tensor) -> bool:
    """Whether an op of the family runs on these as one Function; ``first`` has as many elements as any.

    Not under a compiler or a transform, nor on tangents: they take PyTorch's own form, which they can see into. Nor
    where something is an inference tensor that a gradient would need: PyTorch's form saves others. But whether a mode
    watches makes no difference, as it may for part of the time: checkpointing hands backward what a second forward
    saved, and does not notice that another form of the op saved other tensors.
    """
    # The cheapest questions come first, in the order that ``worthwhile`` needs: most calls on a GPU are small.
    return (
        type(first) in TENSOR_TYPES
        and (first.is_cuda or INTERPRETED)
        and not _is_dynamo_compiling()
        and not _is_tracing()
        and first.numel() >= max(MIN_ELEMENTS, 1)
        and all(type(x) in TENSOR_TYPES and _is_plain(x) and x.device == first.device for x in (first, *others))
        and not (torch.is_grad_enabled() and any(x.is_inference() for x in (first, *others)))
        and not (in_forward_mode() and any(_has_tangent(x) for x in (first, *others)))
    )


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents, which a kernel would lose."""
    return _torch.forward_ad_level() >= 0


def _has_tangent(x: Tensor) -> bool:
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tangent is not None


def supported(x: Tensor) -> bool:
    """Whether a Triton kernel can take ``x`` in its memory order and give a result of the same strides."""
    return readable(x) and is_dense(x)


def readable(x: Tensor) -> bool:
    """Whether a Triton kernel may load the elements of ``x``, wherever they lie, and no mode is to see operators."""
    return _is_plain(x) and not is_watched(x)


def _is_plain(x: Tensor) -> bool:
    """Whether ``x`` has elements that a Triton kernel can load, outside compilers and transforms."""
    return (
        (x.is_cuda or (INTERPRETED and x.is_cpu))
        and AVAILABLE
        and x.dtype in KERNEL_DTYPES
        and _called_eagerly()  # before the next, which Dynamo cannot trace
        and is_ordinary(x)
    )


def is_ordinary(x: Tensor) -> bool:
    """Neither a subclass, nor sparse, nested, lazily negated, a symbolic zero or wrapped: its memory holds its values.

    torch.func wraps tensors, which outlive their transform in the function that ``vjp`` returns. The older vmap, which
    batched gradients (``is_grads_batched=True``) still use, has a wrapper of its own.
    """
    return (
        type(x) in TENSOR_TYPES
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and not x._is_zerotensor()
        and not _torch.is_functorch_wrapped(x)
        and not _torch.is_legacy_batched(x)
    )


def _called_eagerly() -> bool:
    """Neither a compiler nor a transform is at work: they must see ``aten::sigmoid``, not a kernel of ours."""
    return not (
        torch.compiler.is_compiling() or _is_tracing() or _torch.functorch_active()
    )  # fmt: skip


def is_watched(x: Tensor) -> bool:
    """Whether a mode is to see each operator."""
    if _torch.dispatch_mode_depth():
        return True
    return torch.overrides.has_torch_function_unary(x) and _torch.function_mode_watches()


def is_dense(x: Tensor) -> bool:
    """Whether the elements of ``x`` fill one stretch of memory without gap or overlap, in whatever order."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
