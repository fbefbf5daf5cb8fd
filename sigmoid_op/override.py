"""``enable()``: our kernels behind PyTorch's own sigmoid operators, for models that call ``torch.sigmoid`` themselves.

They are registered at the dispatch key BackendSelect. Each call on any device passes it, below autograd, autocast,
torch.func, DTensor and modes, which stay PyTorch's own, and directly above the kernels of the devices. What ours do not
take goes on to those, whichever they are at that moment: another library may override them, and stop, at any time.
"""

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from torch.library import Library

from sigmoid_op import _torch, dispatch
from sigmoid_op.ops.shared import kernel_operand

_lock = threading.Lock()
_library: Library | None = None
_enabled = 0  # handles not yet disabled


def enable() -> "Enabled":
    r"""Put the fused kernels behind ``torch.sigmoid``, ``x.sigmoid()``, ``F.sigmoid`` and their gradients, on CUDA.

    .. math:: \sigma(x) = \frac{1}{1 + e^{-x}}

    Large dense CUDA tensors of float16, bfloat16, float32 or float64 take our kernels; all others, and every tensor on
    another device, PyTorch's, or those of a library that overrides PyTorch's, before or after this call. It holds for
    all threads of this process, from the call on until ``disable()`` of the handle it returns, or for a ``with`` block.
    Calls nest: the last handle disabled ends it. Call it from any thread.

    Where Triton or PyTorch's CUDA support is missing, it changes nothing. Under TRITON_INTERPRET=1, where the kernels
    run on the CPU, it holds for CPU tensors instead.

    Returns:
        a handle: its ``disable()`` ends the effect, as does the end of a ``with`` block on it.

    Saved for backward: by PyTorch's autograd, the result.

    Cost: each sigmoid call passes through Python, on any device (``python -m bench host``); it stays so after
    ``disable()`` if other threads are alive then, as PyTorch's operator table cannot be restored under a running call.

    Raises:
        RuntimeError: for a version of PyTorch without the means, which it does not document.
    """
    global _enabled, _library
    with _lock:
        if _library is None and dispatch.SUPPORTED:
            _library = _register()
        _enabled += 1
    return Enabled()


class Enabled:
    """What :func:`enable` returns: ends its effect by :meth:`disable`, or at the end of a ``with`` block."""

    def __init__(self) -> None:
        self._active = True

    def disable(self) -> None:
        """Undo the one call of :func:`enable` that made this handle; does nothing the second time."""
        global _enabled, _library
        with _lock:
            if not self._active:
                return
            self._active = False
            _enabled -= 1
            # PyTorch changes an entry of its operator table field by field, without a lock for callers. A call in
            # another thread could meet a half-restored entry, and crash: with threads about, ours stays and forwards.
            if _enabled == 0 and _library is not None and threading.active_count() == 1 and _torch.destroy(_library):
                _library = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()


def _register() -> Library:
    """Take the five operators. Each has a kernel of its own in PyTorch: none calls another."""
    kernels = {name: partial(kernel, _torch.below_backend_select(name)) for name, kernel in _KERNELS.items()}
    library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, kernel in kernels.items():
        library.impl(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            name, kernel, "BackendSelect", with_keyset=True, allow_override=True
        )
    return library


# Each function below is given the call of what is beneath, the key set to call it with, and what its operator is given.
_Beneath = Callable[..., Tensor]


def _takes(x: Tensor) -> bool:
    return _enabled > 0 and dispatch.supported(x) and x.numel() >= dispatch.MIN_ELEMENTS["sigmoid"]


def _sigmoid(beneath: _Beneath, keyset: Any, x: Tensor) -> Tensor:
    if _takes(x):
        from sigmoid_op.kernels.sigmoid import launch_sigmoid

        return launch_sigmoid(x)
    return beneath(keyset, x)


def _sigmoid_(beneath: _Beneath, keyset: Any, x: Tensor) -> Tensor:
    if _takes(x):
        from sigmoid_op.kernels.sigmoid import launch_sigmoid_out

        return launch_sigmoid_out(x, x)  # autograd above has counted the new version
    return beneath(keyset, x)


def _sigmoid_out(beneath: _Beneath, keyset: Any, x: Tensor, *, out: Tensor) -> Tensor:
    if _takes(x) and _can_hold(out, x):
        from sigmoid_op.kernels.sigmoid import launch_sigmoid_out

        return launch_sigmoid_out(x, out)
    return beneath(keyset, x, out=out)


def _sigmoid_backward(beneath: _Beneath, keyset: Any, grad_out: Tensor, out: Tensor) -> Tensor:
    # Of another layout, grad_out would give the result its strides, and compiled graphs rely on them.
    if _takes(out) and (grad_out.stride() == out.stride() or not any(grad_out.stride())):
        operand = kernel_operand(grad_out, out)
        if operand is not None:
            from sigmoid_op.kernels.sigmoid import launch_sigmoid_backward

            return launch_sigmoid_backward(operand, out)
    return beneath(keyset, grad_out, out)


def _sigmoid_backward_out(
    beneath: _Beneath, keyset: Any, grad_out: Tensor, out: Tensor, *, grad_input: Tensor
) -> Tensor:
    if _takes(out) and _can_hold(grad_input, out) and _can_hold(grad_input, grad_out):
        from sigmoid_op.kernels.sigmoid import launch_sigmoid_backward_out

        return launch_sigmoid_backward_out(grad_out, out, grad_input)
    return beneath(keyset, grad_out, out, grad_input=grad_input)


def _can_hold(result: Tensor, x: Tensor) -> bool:
    """Whether ``result`` has the shape, strides, dtype and device of ``x``, and exactly its memory or none of it."""
    return (
        result.shape == x.shape
        and result.stride() == x.stride()
        and result.dtype == x.dtype
        and result.device == x.device
        and (result.data_ptr() == x.data_ptr() or abs(result.data_ptr() - x.data_ptr()) >= x.numel() * x.itemsize)
    )


_KERNELS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_": _sigmoid_,
    "sigmoid.out": _sigmoid_out,
    "sigmoid_backward": _sigmoid_backward,
    "sigmoid_backward.grad_input": _sigmoid_backward_out,
}
