"""The only place that says when a kernel runs, and why.

:func:`takes` answers for a call: can a kernel read these tensors, and is it faster there? :func:`records` says whether
autograd wants to know of the call, :func:`reads` whether a gradient's kernel can read its operands. Whatever a kernel
does not take goes to PyTorch's own operators, which are right for everything. How operands must lie beside each other
is said in ``kernels/frame.py``, which refuses what the templates cannot read.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from sigmoid_op._torch import (
    MISSING,
    dispatch_mode_depth,
    forward_ad_level,
    function_mode_depth,
    function_mode_watches,
    functorch_active,
    is_functorch_wrapped,
    is_legacy_batched,
    is_tracing,
    keys_of,
    unwrapped,
    when_cuda_starts,
)

HAS_TRITON: bool = find_spec("triton") is not None

# Triton's own switch: its kernels run in its interpreter, on CPU tensors. Read once, as Triton reads it once.
INTERPRETED: bool = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "y", "yes"}

# Whether this build of PyTorch can run a kernel.
# Not on AMD: the kernels compile for it (python -m bench codegen), but the error of its 2^x and 1/x is not bounded.
SUPPORTED: bool = not MISSING and (INTERPRETED or (HAS_TRITON and torch.version.cuda is not None))

# Whether any tensor can take one by now. While none can, a call pays for nothing but this question.
AVAILABLE: bool = SUPPORTED and INTERPRETED


def _become_available() -> None:
    global AVAILABLE
    AVAILABLE = True


if SUPPORTED and not INTERPRETED:
    when_cuda_starts(_become_available)  # before that there is no CUDA tensor

# The number of elements from which an op takes a kernel: there it was no slower than PyTorch's form in wall time, in 16
# and 32 bits, with gradients and without (python -m bench tune on an H100, docs/benchmarks.md). Below, the host takes
# longer for our launch, which Python makes, than for PyTorch's. σ, silu and logsigmoid are one kernel in PyTorch, too,
# and as fast on the device: from 2^30 elements on, the host's time is less than 2 % of theirs.
_THRESHOLDS: dict[str, int] = {
    "sigmoid": 2**30,
    "silu": 2**30,
    "logsigmoid": 2**30,
    "glu": 2**26,
    "gate": 2**26,
    "swiglu": 2**26,
    "quick_gelu": 2**24,
    "bce": 2**24,
    "clamped_swiglu": 1,
    "focal": 1,
}


def _min_elements(text: str | None) -> dict[str, int]:
    """The table, or the environment variable's number for all ops; 1 at least, as no elements have no mean."""
    if text is None:
        return _THRESHOLDS
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"SIGMOID_OP_MIN_ELEMENTS must be a number of elements, such as 1048576; got {text!r}")
    return dict.fromkeys(_THRESHOLDS, max(int(text), 1))


MIN_ELEMENTS: dict[str, int] = _min_elements("1" if INTERPRETED else os.environ.get("SIGMOID_OP_MIN_ELEMENTS"))

# Asked before anything else of a tensor: of a subclass, any question is a call that its ``__torch_function__`` sees.
TENSOR_TYPES: frozenset[type[Tensor]] = frozenset({Tensor, Parameter})

HALF_DTYPES: frozenset[torch.dtype] = frozenset({torch.float16, torch.bfloat16})
KERNEL_DTYPES: frozenset[torch.dtype] = HALF_DTYPES | {torch.float32, torch.float64}

_is_compiling = torch.compiler.is_compiling


def takes(op: str, first: Tensor, *others: Tensor) -> bool:
    """Whether ``op`` runs as a kernel on these; ``first`` has as many elements as any.

    Not under a compiler or a transform, nor on tangents, which see into PyTorch's own form; nor where something is an
    inference tensor that a gradient would need, as PyTorch's form saves others. A mode that watches operators makes no
    difference here but in :func:`is_watched`: it may be on for part of the time, and checkpointing hands backward what
    a second forward saved, without noticing that another form of the op saved other tensors.
    """
    # The cheapest questions come first, as most calls on a GPU are small; and those about compilers before the number
    # of elements, comparing which would tie a compiled or traced graph to the size.
    if not (
        type(first) in TENSOR_TYPES
        and (first.is_cuda or INTERPRETED)
        and is_eager()
        and first.numel() >= MIN_ELEMENTS[op]
    ):
        return False
    least = _SAVABLE if torch.is_grad_enabled() else _READABLE
    if _kind(first) < least:
        return False
    for x in others:
        if type(x) not in TENSOR_TYPES or _kind(x) < least or x.get_device() != first.get_device():
            return False
    return forward_ad_level() < 0 or not any(_has_tangent(x) for x in (first, *others))


def _has_tangent(x: Tensor) -> bool:
    """Whether ``x`` carries a tangent of forward-mode differentiation, which a kernel would lose."""
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]  # torch leaves it untyped


def is_eager() -> bool:
    """Neither a compiler nor a transform is at work: they must see PyTorch's operators, not a kernel of ours."""
    return not (_is_compiling() or is_tracing() or functorch_active())


# What a tensor is to a kernel, in ascending order: an inference tensor can be read, and not be saved for a gradient.
_OTHER, _READABLE, _SAVABLE = range(3)
_kinds: dict[tuple[int, torch.dtype], int] = {}


def _kind(x: Tensor) -> int:
    """By the key set in which PyTorch's dispatcher looks for all this: there are few, and each is asked once."""
    key = keys_of(x).raw_repr(), x.dtype
    kind = _kinds.get(key)
    if kind is None or key[0] < 0:
        kind = _OTHER
        if (x.is_cuda or x.is_cpu) and x.dtype in KERNEL_DTYPES and is_ordinary(x):
            kind = _READABLE if x.is_inference() else _SAVABLE
        _kinds[key] = kind
    return kind


def records(*operands: Tensor | None) -> bool:
    """Whether autograd records a call on these, in reverse mode."""
    if torch.is_grad_enabled():
        for x in operands:
            if x is not None and x.requires_grad:
                return True
    return False


def is_differentiated(x: Tensor) -> bool:
    """Whether this very tensor is differentiated, in whatever mode and under whatever transform."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    if _is_compiling():
        return functorch_active()
    if not (x.is_floating_point() or x.is_complex()) or x.is_mkldnn:
        return False
    if is_functorch_wrapped(x) and (x.requires_grad or is_differentiated(unwrapped(x))):
        return True
    try:
        return forward_ad_level() >= 0 and _has_tangent(x)
    except RuntimeError:  # of a tensor that vmap has batched: the tangent is that of what it wraps
        return False


def reads(grad_out: Tensor, *saved: Tensor | None) -> bool:
    """Whether a backward's kernel may take ``grad_out`` and what a forward that ran as a kernel has saved.

    Not where the gradient is differentiated again, nor where a mode is to see operators. Of ``saved`` there is less to
    ask, as :func:`takes` has let it through; but a hook may have put another tensor in its place.
    """
    if (
        torch.is_grad_enabled()
        or forward_ad_level() >= 0
        or not is_eager()
        or is_watched()
        or type(grad_out) not in TENSOR_TYPES
        or _kind(grad_out) < _READABLE
    ):
        return False
    for x in (grad_out, *saved):  # a generator would take twice as long
        if x is not None and not (type(x) in TENSOR_TYPES and (x.is_cuda or INTERPRETED)):
            return False
    return AVAILABLE


def is_ordinary(x: Tensor) -> bool:
    """Neither sparse, nested, lazily negated, a symbolic zero nor wrapped: its memory holds its values.

    torch.func wraps tensors, which outlive their transform in the function that ``vjp`` returns. The older vmap, which
    batched gradients (``is_grads_batched=True``) still use, has a wrapper of its own.
    """
    return (
        x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and not x._is_zerotensor()
        and not is_functorch_wrapped(x)
        and not is_legacy_batched(x)
    )


def is_watched() -> bool:
    """Whether a mode is to see each operator."""
    return dispatch_mode_depth() > 0 or (function_mode_depth() > 0 and function_mode_watches())


def supported(x: Tensor) -> bool:
    """Whether a σ kernel can take ``x`` in its memory order and give a result of the same strides."""
    return (
        AVAILABLE
        and type(x) in TENSOR_TYPES
        and (x.is_cuda or INTERPRETED)
        and is_eager()
        and _kind(x) > _OTHER
        and is_dense(x)
        and not is_watched()
    )


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
