"""What sigmoid_op takes each undocumented name of PyTorch to mean, in the version at hand; and life without it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import BaseTorchDispatchMode

from sigmoid_op import _torch

# Each question, and a program that has it answered with yes.
QUESTIONS: dict[str, Callable[[], bool]] = {
    "functorch_active": lambda: _torch.functorch_active(),
    "is_tracing": lambda: _torch.is_tracing(),
    "dispatch_mode_depth": lambda: _torch.dispatch_mode_depth() > 0,
    "function_mode_depth": lambda: _torch.function_mode_depth() > 0,
    "function_mode_watches": _torch.function_mode_watches,
    "forward_ad_level": lambda: _torch.forward_ad_level() >= 0,
}


def _answers() -> set[str]:
    return {name for name, asks in QUESTIONS.items() if asks()}


def test_outside_of_everything() -> None:
    """This version has every name; in plain eager code each question is answered with no; a dual level is counted."""
    assert _torch.MISSING == []
    assert _answers() == set()
    assert _torch.forward_ad_level() == -1
    with forward_ad.dual_level():
        assert _torch.forward_ad_level() == 0
    assert not _torch.is_functorch_wrapped(torch.ones(1))
    assert not _torch.is_legacy_batched(torch.ones(1))


def test_transforms() -> None:
    """vmap, grad and jvp of torch.func are active within, and wrap their argument even after the end."""
    kept: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        assert _torch.functorch_active()
        kept.append(x)
        return x.sum()

    x = torch.ones(2, 3)
    torch.vmap(function)(x)
    torch.func.grad(function)(x)
    torch.func.jvp(function, (x,), (x,))
    assert not _torch.functorch_active()
    assert [_torch.is_functorch_wrapped(tensor) for tensor in kept] == [True] * 3
    assert [_torch.is_legacy_batched(tensor) for tensor in kept] == [False] * 3
    assert [_torch.is_functorch_wrapped(_torch.unwrapped(tensor)) for tensor in kept] == [False] * 3
    assert _torch.unwrapped(kept[0]).shape == (2, 3)  # of vmap: the whole batch


def test_batched_gradients() -> None:
    """``is_grads_batched`` is the older vmap: its tensors are wrapped without a transform being active."""
    kept: list[tuple[bool, bool]] = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, grad_out: Tensor) -> Tensor:
            kept.append((_torch.is_legacy_batched(grad_out), _torch.functorch_active()))
            return 2 * grad_out

    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Double.apply(x), x, torch.eye(3), is_grads_batched=True)
    assert kept == [(True, False)]


def test_tracing() -> None:
    """Yes while ``torch.jit.trace`` records, and for nothing else."""
    answers: list[set[str]] = []

    def function(x: Tensor) -> Tensor:
        answers.append(_answers())
        return x + 1

    torch.jit.trace(function, torch.ones(1), check_trace=False)
    assert answers == [{"is_tracing"}]


def test_modes() -> None:
    """The depth counts the modes within one another; a default device watches nothing."""
    with BaseTorchDispatchMode():
        assert _answers() == {"dispatch_mode_depth"}
        with BaseTorchDispatchMode():
            assert _torch.dispatch_mode_depth() == 2
    with torch.device("cpu"):
        assert _answers() == {"function_mode_depth"}
        with BaseTorchFunctionMode():
            assert _answers() == {"function_mode_depth", "function_mode_watches"}
            assert _torch.function_mode_depth() == 2


def test_of_this_thread() -> None:
    """Transforms and modes of one thread are nothing to another."""
    answers: list[set[str]] = []

    def function(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: answers.append(_answers()))
        thread.start()
        thread.join()
        return x

    with torch.device("cpu"):
        torch.vmap(function)(torch.ones(1))
    assert answers == [set()]


UNLIKE: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.ones(2).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "negative": lambda: torch._neg_view(torch.ones(2)),
    "symbolic zero": lambda: torch._efficientzerotensor(2),
    "inference": lambda: torch.inference_mode()(torch.ones)(2),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
}


def test_keys_of() -> None:
    """Equal for plain tensors of any dtype, shape and need of a gradient; different for every other kind."""
    plain = _torch.keys_of(torch.ones(1)).raw_repr()
    alike = [
        torch.ones(2, 3).t(),
        torch.ones(1, dtype=torch.float64, requires_grad=True),
        torch.nn.Parameter(torch.ones(1)),
        torch.ones(1, dtype=torch.int8)[:0],
    ]
    assert {_torch.keys_of(x).raw_repr() for x in alike} == {plain}
    assert [kind for kind, make in UNLIKE.items() if _torch.keys_of(make()).raw_repr() == plain] == []


REMOVED = [
    "torch._C._are_functorch_transforms_active",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch._C._functorch.get_unwrapped",
    "torch._C._is_tracing",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._dispatch_keys",
    "torch.autograd.forward_ad._current_level",
    "torch.overrides._get_current_function_mode_stack",
    "torch.utils._device.DeviceContext",
]

_WITHOUT = """
import sys, warnings, torch, torch.utils._device
from operator import attrgetter

torch.vmap(torch.neg)(torch.ones(1))  # what PyTorch imports later, by these names, it has imported
x = torch.tensor([0.0, 20.0, -20.0], requires_grad=True)
for path in sys.argv[1:]:
    for module in [name for name in sys.modules if name.partition(".")[0] == "sigmoid_op"]:
        del sys.modules[module]
    owner, _, name = path.rpartition(".")
    owner = attrgetter(owner.removeprefix("torch."))(torch)
    kept = getattr(owner, name)
    delattr(owner, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import sigmoid_op
    setattr(owner, name, kept)  # PyTorch itself goes on

    replaced = name == "_is_tracing"  # by torch.jit.is_tracing, which is documented
    assert [path in str(warning.message) for warning in caught] == ([] if replaced else [True]), (path, caught)
    for exact_grad in (False, True):
        out = sigmoid_op.sigmoid(x, exact_grad=exact_grad)
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(out.double(), torch.sigmoid(x.double()), rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), torch.tensor([0.25, 0, 0]).double(), rtol=0, atol=1e-8)
    assert ("sigmoid_op.kernels" in sys.modules) == replaced, path
"""


def test_without_one() -> None:
    """A PyTorch that lacks one: a warning with its name, PyTorch's operators in place of kernels, right results."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", _WITHOUT, *REMOVED]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr


def test_without_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a version lacks the means of ``enable()``, its error says so; what cannot be taken back stays."""
    monkeypatch.delattr(torch._C, "_dispatch_keyset_full_after")
    with pytest.raises(RuntimeError, match=r"enable\(\) cannot reach the dispatcher of PyTorch 2.*_full_after"):
        _torch.below_backend_select("sigmoid")
    assert not _torch.destroy(object())  # type: ignore[arg-type]  # it stands for a Library without the method
