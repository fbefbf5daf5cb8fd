"""Kernels run where they can and pay; everything else behaves as torch.sigmoid does, results and errors alike."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import sigmoid_op
from sigmoid_op import SigmoidFunction, dispatch, sigmoid, sigmoid_
from tests.conftest import Route, compiling_environment, kernels_from
from tests.ulp import FLOAT_DTYPES


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_dense_floats_take_the_kernel(kernel_route: Route, launches: list[str], dtype: torch.dtype) -> None:
    """Forward in each of four dtypes, out of place and in place, launches our kernel once."""
    x = torch.ones(3, 5, dtype=dtype, device=kernel_route.device)
    sigmoid(x)
    sigmoid_(x.t())
    sigmoid(x.requires_grad_())
    assert launches == ["sigmoid"] * 3


def test_the_function_has_no_threshold(
    kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``SigmoidFunction`` runs our kernels whatever the size, forward and backward: the benchmark times it for them."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(100))
    SigmoidFunction.apply(torch.ones(5, device=kernel_route.device, requires_grad=True)).sum().backward()
    assert launches == ["sigmoid", "sigmoid_backward"]


def test_no_grad_costs_no_gradient(kernel_route: Route, launches: list[str]) -> None:
    """Under no_grad a tensor that requires one is a plain tensor: in place by our kernel, and nothing for backward."""
    x = torch.ones(5, device=kernel_route.device, requires_grad=True)
    with torch.no_grad():
        sigmoid(x, exact_grad=True)
        sigmoid_(x)
    assert launches == ["sigmoid", "sigmoid"]


def test_small_tensors_take_torch(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the threshold torch.sigmoid's own kernel runs; at the threshold ours does."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(100))
    sigmoid(torch.ones(99, device=kernel_route.device))
    assert launches == []
    sigmoid(torch.ones(100, device=kernel_route.device))
    assert launches == ["sigmoid"]


def test_the_fallback_launches_nothing(fallback: Route, launches: list[str]) -> None:
    """On the CPU no kernel runs unless the interpreter is asked for."""
    x = torch.ones(5, requires_grad=True)
    sigmoid(x).sum().backward()
    SigmoidFunction.apply(x).sum().backward()
    sigmoid_(torch.ones(3))
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
    "strided slice": lambda device: torch.randn(4, 6, device=device)[:, ::2],
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_no_kernel_takes(route: Route, launches: list[str], kind: str) -> None:
    """torch.sigmoid's own result, bit for bit, or its own error, and no launch."""
    x = UNSUPPORTED[kind](route.device)
    try:
        expected = torch.sigmoid(x)
    except RuntimeError as error:
        with pytest.raises(type(error), match=_first_words(error)):
            sigmoid(x)
    else:
        torch.testing.assert_close(sigmoid(x), expected, rtol=0, atol=0)
        assert sigmoid(x).stride() == expected.stride()
    assert launches == []


def _first_words(error: Exception) -> str:
    return re.escape(str(error)[:40])


def test_nested_tensors(route: Route, launches: list[str]) -> None:
    """Jagged and strided nested tensors keep their type and take no kernel."""
    parts = [torch.randn(2, 3, device=route.device), torch.randn(4, 3, device=route.device)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    out = sigmoid(x)
    assert out.is_nested
    torch.testing.assert_close(out.values(), torch.sigmoid(x.values()), rtol=0, atol=0)
    assert launches == []


def test_quantized_tensors(fallback: Route) -> None:
    """A quantized tensor gives torch.sigmoid's quantized result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.13 deprecates making one; they still exist
        x = torch.quantize_per_tensor(torch.randn(5), 0.1, 0, torch.quint8)
    assert torch.equal(sigmoid(x).int_repr(), torch.sigmoid(x).int_repr())


def test_meta_and_fake_tensors(route: Route) -> None:
    """Shape inference works without data: meta tensors, and fake tensors of the route's device."""
    out = sigmoid(torch.empty(2, 3, device="meta"))
    assert (out.device.type, out.shape) == ("meta", (2, 3))
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = sigmoid(torch.empty(2, 3, device=route.device))
    assert (fake.device.type, fake.shape) == (route.device, (2, 3))


@pytest.mark.parametrize("bad", [3.0, None, [1.0, 2.0], "x"], ids=repr)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(sigmoid, torch.sigmoid), (sigmoid_, torch.sigmoid_), (partial(sigmoid, exact_grad=True), torch.sigmoid)],
)
def test_wrong_types(route: Route, bad: object, ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    """Not a tensor: torch's TypeError, in torch's words."""
    with pytest.raises(TypeError) as expected:
        theirs(bad)
    with pytest.raises(TypeError) as raised:
        ours(bad)
    assert str(raised.value) == str(expected.value)


def test_in_place_on_integers(route: Route) -> None:
    """An integer tensor cannot hold the result: torch's error, and the tensor is left as it was."""
    x = torch.arange(3, device=route.device)
    with pytest.raises(RuntimeError, match="result type Float can't be cast"):
        sigmoid_(x)
    assert x.tolist() == [0, 1, 2]


def test_in_place_on_a_leaf(route: Route) -> None:
    """A leaf that requires a gradient: torch's error, and the leaf is left as it was."""
    x = torch.zeros(3, device=route.device, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        sigmoid_(x)
    assert x.tolist() == [0, 0, 0]


def test_in_place_with_grad(route: Route) -> None:
    """Inside a graph, ``sigmoid_`` is differentiated like ``sigmoid``, through views of views too."""
    leaf = torch.randn(4, 4, device=route.device, requires_grad=True)
    x = leaf * 1
    sigmoid_(x[1:][:, 1:])
    (grad,) = torch.autograd.grad(x.sum(), leaf)
    expected = torch.ones_like(leaf)
    s = torch.sigmoid(leaf.detach()[1:, 1:])
    expected[1:, 1:] = s * (1 - s)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("shape", [(3,), (0,)], ids=str)
def test_out(route: Route, shape: tuple[int, ...]) -> None:
    """``out=`` is written, resized where torch resizes it, and returned."""
    x = torch.randn(3, device=route.device)
    out = torch.empty(shape, device=route.device)
    assert sigmoid(x, out=out) is out
    torch.testing.assert_close(out, torch.sigmoid(x), rtol=0, atol=0)


def test_out_errors(route: Route) -> None:
    """``out=`` of a dtype that cannot hold the result, and of a call that is differentiated, raise as in torch."""
    x = torch.randn(3, device=route.device)
    with pytest.raises(RuntimeError, match="can't be cast"):
        sigmoid(x, out=torch.empty(3, dtype=torch.int32, device=route.device))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        sigmoid(x.requires_grad_(), out=torch.empty(3, device=route.device))


def test_keyword_and_positional(route: Route) -> None:
    """The signature is torch.sigmoid's: ``input`` by position or by name, ``out`` by name alone."""
    x = torch.zeros(2, device=route.device)
    assert torch.equal(sigmoid(input=x), sigmoid(x))
    with pytest.raises(TypeError):
        sigmoid(x, torch.empty(2))  # type: ignore[call-arg]  # the mistake under test


def test_function_and_dispatch_modes_see_the_call(kernel_route: Route, launches: list[str]) -> None:
    """A mode that watches operators sees ``sigmoid``, which a launched kernel would hide from it."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[object] = []

    class FunctionMode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class DispatchMode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(3, device=kernel_route.device)
    with FunctionMode():
        sigmoid(x)
    assert torch.sigmoid in seen
    with DispatchMode():
        sigmoid(x)
    assert torch.ops.aten.sigmoid.default in seen
    assert launches == []


def test_a_default_device_hides_nothing(kernel_route: Route, launches: list[str]) -> None:
    """``torch.set_default_device`` enters a mode, too; it is about new tensors, and kernels run on."""
    x = torch.randn(5, device=kernel_route.device)
    with torch.device(kernel_route.device):
        sigmoid(x)
        sigmoid_op.silu(x)
    assert launches == ["sigmoid", "silu"]


def test_inference_mode(route: Route) -> None:
    """Inference tensors, which have no version counter, work out of place and in place."""
    with torch.inference_mode():
        x = torch.zeros(3, device=route.device)
        assert sigmoid(x).is_inference()
        assert sigmoid_(x).tolist() == [0.5, 0.5, 0.5]


def _run(code: str, **environment: str) -> None:
    """In a process of its own, where kernels are compiled and warnings are errors."""
    command, environment = [sys.executable, "-W", "error", "-c", code], compiling_environment() | environment
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)


def test_where_no_kernel_is_available_none_runs(
    kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a PyTorch built for AMD the tensors are CUDA tensors, too: ``SigmoidFunction`` leaves them to PyTorch."""
    monkeypatch.setattr(dispatch, "AVAILABLE", False)
    x = torch.ones(3, device=kernel_route.device, requires_grad=True)
    SigmoidFunction.apply(x).sum().backward()
    sigmoid(x, exact_grad=True).sum().backward()
    assert launches == []


def test_import_needs_no_triton() -> None:
    """``import sigmoid_op`` and a call on the CPU do not import Triton."""
    code = (
        "import sys, torch, sigmoid_op\n"
        "x = torch.ones(3, requires_grad=True)\n"
        "sigmoid_op.sigmoid(x).sum().backward()\n"
        "sigmoid_op.SigmoidFunction.apply(x).sum().backward()\n"
        "assert 'triton' not in sys.modules, 'Triton was imported'\n"
    )
    _run(code)


def test_works_where_triton_is_missing() -> None:
    """Without Triton everything goes to torch.sigmoid, even when the interpreter is asked for."""
    code = (
        "import importlib.util, torch\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else find_spec(name, *rest)\n"
        "import sigmoid_op\n"
        "from sigmoid_op import dispatch\n"
        "assert not dispatch.HAS_TRITON and not dispatch.INTERPRETED\n"
        "x = torch.randn(5)\n"
        "assert torch.equal(sigmoid_op.sigmoid(x), torch.sigmoid(x))\n"
    )
    _run(code, TRITON_INTERPRET="1")


def test_interpreted_is_what_triton_takes_for_it() -> None:
    """In whatever way TRITON_INTERPRET is spelled, Triton and we read the same."""
    code = (
        "import importlib, os\n"
        "from sigmoid_op import dispatch\n"
        "from triton import knobs\n"
        "for spelled in ('', '0', '1', '2', 'True', 'on', 'Y', 'yes', 'no'):\n"
        "    os.environ['TRITON_INTERPRET'] = spelled\n"
        "    assert importlib.reload(dispatch).INTERPRETED == knobs.runtime.interpret, spelled\n"
    )
    _run(code)


def test_threshold_can_be_set_from_outside() -> None:
    """SIGMOID_OP_MIN_ELEMENTS overrides the threshold."""
    code = "from sigmoid_op import dispatch; assert set(dispatch.MIN_ELEMENTS.values()) == {12345}"
    _run(code, SIGMOID_OP_MIN_ELEMENTS="12345")


def test_a_threshold_that_is_no_number_is_refused() -> None:
    """SIGMOID_OP_MIN_ELEMENTS is named in the error."""
    with pytest.raises(subprocess.CalledProcessError) as error:
        _run("import sigmoid_op", SIGMOID_OP_MIN_ELEMENTS="2^20")
    assert (
        "ValueError: SIGMOID_OP_MIN_ELEMENTS must be a number of elements, such as 1048576; got '2^20'"
        in error.value.stderr
    )


@pytest.mark.parametrize(("cuda", "hip"), [("13.0", None), (None, "7.0")])
def test_kernels_are_for_cuda(cuda: str | None, hip: str | None) -> None:
    """A PyTorch built for AMD never takes them: their accuracy there is not bounded."""
    code = (
        "import torch\n"
        f"torch.version.cuda, torch.version.hip = {cuda!r}, {hip!r}\n"
        "from sigmoid_op import dispatch\n"
        f"assert dispatch.AVAILABLE == {cuda is not None}\n"
    )
    _run(code)


def test_public_names() -> None:
    """What the package offers is what it says, and no more."""
    classes = ["BCEWithLogitsLoss", "GLU", "LogSigmoid", "QuickGELU", "SiLU", "Sigmoid", "SigmoidFocalLoss"]
    classes += ["SigmoidFunction", "SigmoidGate", "SwiGLU"]
    functions = ["binary_cross_entropy_with_logits", "convert", "enable", "glu", "logsigmoid", "quick_gelu", "revert"]
    functions += ["sigmoid", "sigmoid_", "sigmoid_focal_loss", "sigmoid_gate", "silu", "swiglu"]
    assert sorted(sigmoid_op.__all__) == classes + functions
