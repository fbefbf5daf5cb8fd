"""Kernels run where they can and pay; everything else behaves as torch.sigmoid does, results and errors alike."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from textwrap import dedent

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import sigmoid_op
from sigmoid_op import SigmoidFunction, dispatch, sigmoid, sigmoid_
from tests.conftest import Route, compiling_environment, kernels_from
from tests.ulp import every_dtype

exact_sigmoid = partial(sigmoid, exact_grad=True)


@every_dtype
def test_dense_floats_take_the_kernel(kernel_route: Route, launches: list[str], dtype: torch.dtype) -> None:
    """Out of place, in place and recorded; where no gradient is recorded, none is prepared for."""
    x = torch.ones(3, 5, dtype=dtype, device=kernel_route.device)
    sigmoid(x)
    sigmoid_(x.t())
    sigmoid(x.requires_grad_())
    with torch.no_grad():
        sigmoid(x, exact_grad=True)
        sigmoid_(x)
    with torch.inference_mode():
        assert sigmoid(sigmoid(x)).is_inference()  # of an inference tensor, too
    assert launches == ["sigmoid"] * 7


def test_threshold(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller tensors take torch.sigmoid; SigmoidFunction, which the benchmark times, and an exact gradient do not."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(100))
    sigmoid(torch.ones(99, device=kernel_route.device))
    assert launches == []
    sigmoid(torch.ones(100, device=kernel_route.device))
    for function in (SigmoidFunction.apply, exact_sigmoid):
        function(torch.ones(5, device=kernel_route.device, requires_grad=True)).sum().backward()
    assert launches == ["sigmoid", "sigmoid", "sigmoid_backward", "sigmoid_exact", "sigmoid_exact_backward"]


def test_where_no_kernel_is_available_none_runs(
    route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU without the interpreter; and with a PyTorch built for AMD, whose tensors are CUDA tensors, too."""
    if route.uses_kernels:
        monkeypatch.setattr(dispatch, "AVAILABLE", False)
    x = torch.ones(5, device=route.device, requires_grad=True)
    for function in (sigmoid, exact_sigmoid, SigmoidFunction.apply):
        function(x).sum().backward()
    sigmoid_(x.detach())
    assert launches == []


# Tensors that no kernel may take: each would be read wrongly, or the caller's mode or type would not see the call.
UNSUPPORTED: dict[str, Callable[[str], Tensor]] = {
    "bool": lambda device: torch.tensor([True, False], device=device),
    "uint8": lambda device: torch.arange(5, dtype=torch.uint8, device=device),
    "int64": lambda device: torch.arange(-5, 5, device=device),
    "complex64": lambda device: torch.randn(4, dtype=torch.complex64, device=device),
    "lazily negated": lambda device: torch._neg_view(torch.randn(4, device=device)),  # dense, as x.conj().imag is not
    "a symbolic zero": lambda device: torch._efficientzerotensor(4, device=device),  # it has no memory
    "sparse COO": lambda device: torch.eye(3, device=device).to_sparse(),
    "quantized": lambda device: torch.quantize_per_tensor(torch.randn(5, device=device), 0.1, 0, torch.quint8),
    "strided slice": lambda device: torch.randn(4, 6, device=device)[:, ::2],
}


# PyTorch 2.13 deprecates making a quantized tensor; they still exist.
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.parametrize("function", [sigmoid, exact_sigmoid])
def test_what_no_kernel_takes(
    route: Route, launches: list[str], function: Callable[[Tensor], Tensor], kind: str
) -> None:
    """torch.sigmoid's own result, bit for bit, or its own error, and no launch."""
    x = UNSUPPORTED[kind](route.device)
    try:
        expected = torch.sigmoid(x)
    except RuntimeError as error:
        with pytest.raises(type(error), match=re.escape(str(error)[:40])):
            function(x)
    else:
        out = function(x)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        assert x.is_sparse or out.stride() == expected.stride()
    assert launches == []


def test_nested_tensors(route: Route, launches: list[str]) -> None:
    """Jagged ones keep their type and take no kernel; of strided ones torch.sigmoid has none."""
    parts = [torch.randn(2, 3, device=route.device), torch.randn(4, 3, device=route.device)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    out = sigmoid(x)
    assert out.is_nested
    torch.testing.assert_close(out.values(), torch.sigmoid(x.values()), rtol=0, atol=0)
    assert launches == []


def test_tensors_without_data(route: Route) -> None:
    """Shapes are inferred: of meta tensors, and of fake tensors of the route's device."""
    with FakeTensorMode():
        fake = sigmoid(torch.empty(2, 3, device=route.device))
    assert (fake.device.type, fake.shape) == (route.device, (2, 3))
    meta = sigmoid(torch.empty(2, 3, device="meta"))
    assert (meta.device.type, meta.shape) == ("meta", (2, 3))


@pytest.mark.parametrize("bad", [3.0, None, [1.0, 2.0], "x"], ids=repr)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(sigmoid, torch.sigmoid), (sigmoid_, torch.sigmoid_), (exact_sigmoid, torch.sigmoid)],
)
def test_wrong_types(route: Route, bad: object, ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    """Not a tensor: torch's TypeError, in torch's words."""
    with pytest.raises(TypeError) as expected:
        theirs(bad)
    with pytest.raises(TypeError) as raised:
        ours(bad)
    assert str(raised.value) == str(expected.value)


def test_arguments(route: Route) -> None:
    """``input`` by position or by name; ``out`` by name alone, of a dtype that holds the result, not differentiated."""
    x = torch.randn(3, device=route.device)
    assert torch.equal(sigmoid(input=x), sigmoid(x))
    with pytest.raises(TypeError):
        sigmoid(x, torch.empty(3))  # type: ignore[call-arg]  # the mistake under test
    with pytest.raises(RuntimeError, match="can't be cast"):
        sigmoid(x, out=torch.empty(3, dtype=torch.int32, device=route.device))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        sigmoid(x.requires_grad_(), out=torch.empty(3, device=route.device))


def test_modes_of_functions(kernel_route: Route, launches: list[str]) -> None:
    """One that watches functions sees ``sigmoid``; that of ``torch.set_default_device`` watches none, and kernels run.

    tests/pytorch/test_transforms.py has modes that watch operators.
    """
    seen: list[object] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(3, device=kernel_route.device)
    with Watching():
        sigmoid(x)
    assert (seen[-1], launches) == (torch.sigmoid, [])
    with torch.device(kernel_route.device):
        sigmoid(x)
        sigmoid_op.silu(x)
    assert launches == ["sigmoid", "silu"]


def _run(code: str, **environment: str) -> None:
    """In a process of its own, where kernels are compiled and warnings are errors."""
    command, environment = [sys.executable, "-W", "error", "-c", dedent(code)], compiling_environment() | environment
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)


def test_import_needs_no_triton() -> None:
    """Importing every public name, and a call on the CPU, do not import Triton."""
    _run("""
        import sys, torch
        from sigmoid_op import *
        x = torch.ones(3, requires_grad=True)
        sigmoid(x).sum().backward()
        SigmoidFunction.apply(x).sum().backward()
        assert "triton" not in sys.modules, "Triton was imported"
    """)


def test_works_where_triton_is_missing() -> None:
    """Without Triton everything goes to torch.sigmoid, even when the interpreter is asked for."""
    code = """
        import importlib.util, torch
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
        import sigmoid_op
        from sigmoid_op import dispatch
        assert not dispatch.HAS_TRITON and not dispatch.INTERPRETED
        x = torch.randn(5)
        assert torch.equal(sigmoid_op.sigmoid(x), torch.sigmoid(x))
    """
    _run(code, TRITON_INTERPRET="1")


def test_what_the_environment_says() -> None:
    """Triton and we read TRITON_INTERPRET alike; SIGMOID_OP_MIN_ELEMENTS overrides every threshold; AMD has no kernels.

    A threshold that is no number is refused, and the variable named in the error.
    """
    code = """
        import importlib, os, torch
        from sigmoid_op import dispatch
        from triton import knobs
        for cuda, hip in (("13.0", None), (None, "7.0")):
            torch.version.cuda, torch.version.hip = cuda, hip
            assert importlib.reload(dispatch).SUPPORTED == (cuda is not None)
        for spelled in ("", "0", "1", "2", "True", "on", "Y", "yes", "no"):
            os.environ["TRITON_INTERPRET"] = spelled
            assert importlib.reload(dispatch).INTERPRETED == knobs.runtime.interpret, spelled
        for text, number in (("12345", 12345), ("0", 1)):
            os.environ["SIGMOID_OP_MIN_ELEMENTS"] = text
            assert set(importlib.reload(dispatch).MIN_ELEMENTS.values()) == {number}
        os.environ["SIGMOID_OP_MIN_ELEMENTS"] = "2^20"
        importlib.reload(dispatch)
    """
    with pytest.raises(subprocess.CalledProcessError) as error:
        _run(code)
    expected = "ValueError: SIGMOID_OP_MIN_ELEMENTS must be a number of elements, such as 1048576; got '2^20'"
    assert error.value.stderr.splitlines()[-1] == expected


def test_no_kernel_before_cuda_starts() -> None:
    """In a process that has not used CUDA a CPU tensor is asked nothing; from CUDA's start on kernels are available."""
    code = """
        import importlib, torch
        torch.version.cuda, torch.version.hip = "13.0", None
        from sigmoid_op import dispatch
        assert dispatch.SUPPORTED and not dispatch.AVAILABLE
        torch._C._cuda_init, torch._C._cuda_getDeviceCount = (lambda: None), (lambda: 1)
        torch.cuda._cudart = object()
        del torch.cuda._queued_calls[:-1]  # PyTorch's own, which look at the devices
        torch.cuda.init()
        assert dispatch.AVAILABLE
        assert importlib.reload(dispatch).AVAILABLE
        del torch.cuda._lazy_call
        torch.cuda.is_initialized = lambda: False
        assert importlib.reload(dispatch).AVAILABLE  # where PyTorch cannot tell
    """
    _run(code, TRITON_INTERPRET="0")
