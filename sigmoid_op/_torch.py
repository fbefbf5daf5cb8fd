"""The names of PyTorch that it does not document, all of them, and what happens where a version lacks one.

Without one that tells when a kernel may run, none runs: ``MISSING`` has its name, importing sigmoid_op warns, and
PyTorch's own operators, right for everything, do the work. Most of these are C functions, bound as they are, because a
call asks many. The others, further down, are looked up when they are needed.
tests/pytorch/test_private_names.py says what each must mean, and test_override.py what those of ``enable()`` do.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library
from torch.torch_version import TorchVersion

MISSING: list[str] = []


def _find(module: str, name: str, cautious: Any) -> Any:
    """``module.name``; where this version has none, ``cautious``, an answer with which all goes on being right."""
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError):
        MISSING.append(f"{module}.{name}")
        return cautious


def _yes(*_: object) -> bool:
    return True


# Whether a transform of torch.func is active in this thread.
functorch_active: Callable[[], bool] = _find("torch._C", "_are_functorch_transforms_active", _yes)

# Whether torch.func, or the older vmap of batched gradients, has wrapped this. Wrapped tensors outlive their transform.
is_functorch_wrapped: Callable[[Tensor], bool] = _find("torch._C", "_functorch.is_functorch_wrapped_tensor", _yes)
is_legacy_batched: Callable[[Any], bool] = _find("torch._C", "_functorch.is_legacy_batchedtensor", _yes)

# What a transform has wrapped, one level of it.
unwrapped: Callable[[Tensor], Tensor] = _find("torch._C", "_functorch.get_unwrapped", Tensor.detach)

# Whether torch.jit.trace is recording.
is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)

# How many modes of this thread are to see each operator, and each call of a torch function.
dispatch_mode_depth: Callable[[], int] = _find("torch._C", "_len_torch_dispatch_stack", lambda: 1)
function_mode_depth: Callable[[], int] = _find("torch._C", "_len_torch_function_stack", lambda: 1)

_function_modes = _find("torch.overrides", "_get_current_function_mode_stack", lambda: [None])
_device_mode = _find("torch.utils._device", "DeviceContext", None)


def function_mode_watches() -> bool:
    """Whether a mode is to see each torch function, other than that of ``torch.set_default_device``.

    That one is about new tensors.
    """
    return function_mode_depth() > 0 and any(type(mode) is not _device_mode for mode in _function_modes())


# Whether torch.clamp passes a gradient on at the bound itself: up to PyTorch 2.13 it does, from 2.14 on it does not.
CLAMP_PASSES_AT_BOUND: bool = TorchVersion(torch.__version__) < "2.14"


class _AllKeys:
    @staticmethod
    def raw_repr() -> int:
        return -1  # no tensor has every key


# The dispatch keys of a tensor. Their ``raw_repr()``, a bit set, is equal for tensors that the dispatcher treats alike.
# Which bit is which key differs between versions: compare with the keys of a tensor of known kind.
keys_of: Callable[[Tensor], Any] = _find("torch._C", "_dispatch_keys", lambda _: _AllKeys)
if not hasattr(torch._C.DispatchKeySet, "raw_repr"):
    MISSING.append("torch._C.DispatchKeySet.raw_repr")
    keys_of = lambda _: _AllKeys  # noqa: E731 - a second value for one name


if hasattr(forward_ad, "_current_level"):

    def forward_ad_level() -> int:
        """The level of forward-mode differentiation: -1 outside of it."""
        return forward_ad._current_level

else:
    MISSING.append("torch.autograd.forward_ad._current_level")

    def forward_ad_level() -> int:
        return 0


if MISSING:
    warnings.warn(
        f"PyTorch {torch.__version__} lacks {', '.join(MISSING)}, by which sigmoid_op tells when a kernel may run: "
        "all calls go to PyTorch's own operators",
        stacklevel=2,
    )


def when_cuda_starts(call: Callable[[], None]) -> None:
    """``call()`` once this process starts to use CUDA: now, if it does already, or where this version does not say."""
    when = getattr(torch.cuda, "_lazy_call", None)
    if when is None:
        call()
    else:
        when(call)


def below_backend_select(name: str) -> Callable[..., Tensor]:
    """``aten::name`` for a kernel at the key BackendSelect: calls the kernel below, given the key set of the call."""
    try:
        packet, _, overload = name.partition(".")
        redispatch = getattr(getattr(torch.ops.aten, packet), overload or "default")._handle.redispatch_boxed
        below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    except AttributeError as error:
        raise RuntimeError(f"enable() cannot reach the dispatcher of PyTorch {torch.__version__}: {error}") from None

    def call(keyset: Any, *args: Tensor, **kwargs: Tensor) -> Tensor:
        out: Tensor = redispatch(keyset & below, *args, **kwargs)
        return out

    return call


def destroy(library: Library) -> bool:
    """Take back what ``library`` registered; False where this version cannot."""
    try:
        library._destroy()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except AttributeError:
        return False
    return True


_F = TypeVar("_F", bound=Callable[..., Any])


def scripts_as(form: Callable[..., Any]) -> Callable[[_F], _F]:
    """TorchScript compiles ``form`` in place of the function: the same arguments, in PyTorch's operators alone.

    ``form`` has no keyword-only arguments, which TorchScript does not compile: those of the function come last in it.
    """

    def decorate(function: _F) -> _F:
        function.__prepare_scriptable__ = lambda: form  # type: ignore[attr-defined]  # what torch.jit.script looks for
        return function

    return decorate
