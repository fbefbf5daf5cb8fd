"""``enable()`` puts the kernels behind PyTorch's own sigmoid; everything above and beside them stays PyTorch's."""

import re
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

import sigmoid_op
from sigmoid_op import dispatch
from sigmoid_op.override import enable
from tests.conftest import CUDA, Route, kernels_from, saved_tensors
from tests.pytorch.ops import Watch
from tests.sigmoid.test_dispatch import UNSUPPORTED
from tests.ulp import BACKWARD_ULPS, FLOAT_DTYPES, FORWARD_ULPS, assert_within_ulps, true_backward, true_sigmoid

aten = torch.ops.aten


def _randn(route: Route, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(route.device, dtype)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sigmoid": torch.sigmoid,
    "Tensor.sigmoid": Tensor.sigmoid,
    "F.sigmoid": nn.functional.sigmoid,
    "torch.special.expit": torch.special.expit,
    "nn.Sigmoid": nn.Sigmoid(),
    "sigmoid_op.sigmoid": sigmoid_op.sigmoid,
    "Tensor.sigmoid_": lambda x: x.clone().sigmoid_(),
    "out=": lambda x: torch.sigmoid(x, out=torch.empty_like(x)),
    "out= the input": lambda x: (y := x.clone(), torch.sigmoid(y, out=y))[0],
}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_takes_the_kernel(
    kernel_route: Route, launches: list[str], spelling: str, dtype: torch.dtype
) -> None:
    """However a model writes it, one launch of ours, with our accuracy and PyTorch's strides."""
    x = _randn(kernel_route, 7, 5, dtype=dtype).t()
    with enable():
        out = SPELLINGS[spelling](x)
    assert launches == ["sigmoid"]
    assert out.stride() == x.stride()
    assert_within_ulps(out, true_sigmoid(x), FORWARD_ULPS[dtype])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("grad", ["dense", "of a sum", "into memory given"])
def test_backward_takes_the_kernel(kernel_route: Route, launches: list[str], grad: str, dtype: torch.dtype) -> None:
    """PyTorch's autograd calls our backward, and rounds once where PyTorch's kernel rounds three times."""
    out = torch.sigmoid(_randn(kernel_route, 7, 5, dtype=dtype))
    grad_out = out[0, 0].expand(7, 5) if grad == "of a sum" else _randn(kernel_route, 7, 5, dtype=dtype)
    with enable():
        if grad == "into memory given":
            grad_in = aten.sigmoid_backward.grad_input(grad_out, out, grad_input=torch.empty_like(out))
        else:
            grad_in = aten.sigmoid_backward.default(grad_out, out)
    assert launches == ["sigmoid_backward"]
    assert_within_ulps(grad_in, true_backward(grad_out, out), BACKWARD_ULPS[dtype])


def test_autograd_above_it(kernel_route: Route, launches: list[str]) -> None:
    """gradcheck and gradgradcheck hold, forward mode, batched and undefined gradients included."""
    x = _randn(kernel_route, 2, 2, dtype=torch.float64).requires_grad_()
    with enable():
        assert gradcheck(torch.sigmoid, x, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True)
        assert gradgradcheck(torch.sigmoid, x, check_fwd_over_rev=True, check_batched_grad=True)
    assert set(launches) == {"sigmoid", "sigmoid_backward"}


def test_one_saved_tensor(kernel_route: Route) -> None:
    """Autograd saves the result, without a copy, as without ``enable()``."""
    x = _randn(kernel_route, 5).requires_grad_()
    with enable(), saved_tensors() as saved:
        out = torch.sigmoid(x)
    assert [tensor.data_ptr() for tensor in saved] == [out.data_ptr()]


def test_transforms_above_it(kernel_route: Route, launches: list[str]) -> None:
    """A batch is one launch; grad, jvp and hessian give what they give without ``enable()``, by our kernels."""

    def transformed(x: Tensor) -> tuple[Tensor, ...]:
        slopes = torch.vmap(torch.func.grad(lambda row: row.sigmoid().sum()))(x)
        tangents = torch.func.jvp(torch.sigmoid, (x,), (x,))
        return slopes, *tangents, torch.func.hessian(lambda row: row.sigmoid().sum())(x[0])

    x = _randn(kernel_route, 3, 4, dtype=torch.float64)
    expected = transformed(x)
    assert launches == []
    with enable():
        assert_within_ulps(torch.vmap(torch.vmap(torch.sigmoid))(x), true_sigmoid(x), FORWARD_ULPS[x.dtype])
        assert launches == ["sigmoid"]
        torch.testing.assert_close(transformed(x), expected)
    assert launches.count("sigmoid") == 4


NOT_TAKEN: dict[str, Callable[[str], Tensor]] = {
    **UNSUPPORTED,
    "empty": lambda device: torch.empty(0, 3, device=device),
    "meta": lambda device: torch.empty(3, device="meta"),
}


# PyTorch 2.13 deprecates making a quantized tensor; they still exist.
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("kind", NOT_TAKEN)
def test_what_no_kernel_takes(kernel_route: Route, launches: list[str], kind: str) -> None:
    """PyTorch's own result, bit for bit, or its own error, and no launch.

    A lazy negation PyTorch makes real above the kernels of a device: as a plain tensor, it is taken.
    """
    x = NOT_TAKEN[kind](kernel_route.device)
    taken = kind == "lazily negated"
    try:
        expected = torch.sigmoid(x)
    except RuntimeError as error:
        with enable(), pytest.raises(type(error), match=re.escape(str(error)[:40])):
            torch.sigmoid(x)
    else:
        with enable():
            out = torch.sigmoid(x)
        torch.testing.assert_close(out, expected, rtol=1e-6 if taken else 0, atol=0)
        assert out.stride() == expected.stride()
    assert launches == ["sigmoid"] * taken


# Of a result with the strides (6, 1). Of another layout, PyTorch's kernel gives the result its strides; it broadcasts
# grad_out and promotes dtypes, where ours would read past the end.
OTHER_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda grad: grad.t().contiguous().t(),
    "16 bits, transposed": lambda grad: grad.bfloat16().t().contiguous().t(),
    "one row": lambda grad: grad[:1],
    "one number": lambda grad: grad[0, 0],
    "float64": lambda grad: grad.double(),
}


@pytest.mark.parametrize("kind", OTHER_GRADIENTS)
def test_gradients_that_no_kernel_takes(kernel_route: Route, launches: list[str], kind: str) -> None:
    """PyTorch's own result, bit for bit, with its strides."""
    out, grad_out = torch.sigmoid(_randn(kernel_route, 4, 6)), OTHER_GRADIENTS[kind](_randn(kernel_route, 4, 6))
    if kind.startswith("16 bits"):
        out = out.bfloat16()
    expected = aten.sigmoid_backward.default(grad_out, out)
    with enable():
        grad_in = aten.sigmoid_backward.default(grad_out, out)
    torch.testing.assert_close(grad_in, expected, rtol=0, atol=0)
    assert grad_in.stride() == expected.stride()
    assert launches == []


def test_small_tensors_take_torch(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the threshold PyTorch's kernel runs, forward and backward; at the threshold ours does."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(100))
    with enable():
        torch.sigmoid(torch.ones(99, device=kernel_route.device, requires_grad=True)).sum().backward()
        assert launches == []
        torch.sigmoid(torch.ones(100, device=kernel_route.device, requires_grad=True)).sum().backward()
    assert launches == ["sigmoid", "sigmoid_backward"]


# Results that PyTorch resizes, refuses, converts or writes through strides.
OUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "to be resized": lambda x: x.new_empty(0, 5),
    "float64": lambda x: x.new_empty(x.shape, dtype=torch.float64),
    "other strides": lambda x: x.new_empty(x.shape[::-1]).t(),
    "strided": lambda x: x.new_empty(*x.shape, 2)[..., 0],
    "int32": lambda x: x.new_empty(x.shape, dtype=torch.int32),
    "overlapping itself": lambda x: x.new_empty(1).expand(x.shape),
    "overlapping x": lambda x: x.as_strided(x.shape, x.stride(), 1),
    "overlapping the end of x": lambda x: x.as_strided(x.shape, x.stride(), 5),  # of 20 elements: 20 bytes further on
}

WRITERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda x, result: torch.sigmoid(x, out=result),
    "backward from out": lambda x, result: aten.sigmoid_backward.grad_input(x.clone(), x, grad_input=result),
    "backward from grad_out": lambda x, result: aten.sigmoid_backward.grad_input(x, x.clone(), grad_input=result),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", OUTS)
def test_out_that_does_not_match(kernel_route: Route, launches: list[str], kind: str, writer: str) -> None:
    """PyTorch's kernel decides: resized, converted or refused as without ``enable()``, and no launch."""

    def call() -> tuple[Tensor, tuple[int, ...]] | str:
        x = _randn(kernel_route, 5, 5).flatten()[:20].view(4, 5)  # in a storage with room behind it
        out = OUTS[kind](x)
        try:
            assert WRITERS[writer](x, out) is out
        except RuntimeError as error:
            return str(error)[:60]
        return out.clone(), out.stride()

    expected = call()
    with enable():
        got = call()
    if isinstance(expected, str) or isinstance(got, str):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert launches == []


def test_in_place(kernel_route: Route) -> None:
    """Versions are counted, once; a leaf and a tensor that overlaps itself are refused; gradients flow."""
    x = _randn(kernel_route, 5)
    leaf = _randn(kernel_route, 5).requires_grad_()
    with enable():
        x.sigmoid_()
        assert x._version == 1
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            leaf.sigmoid_()
        with pytest.raises(RuntimeError, match="more than one element"):
            x[:1].expand(3).sigmoid_()
        (grad,) = torch.autograd.grad((leaf * 1).sigmoid_().sum(), leaf)
        out = torch.sigmoid(leaf)
        torch.sigmoid(x, out=out.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    s = true_sigmoid(leaf)
    torch.testing.assert_close(grad.cpu().double(), s * (1 - s), rtol=0, atol=1e-6)


def test_modes_fakes_and_traces_see_the_operator(kernel_route: Route, launches: list[str]) -> None:
    """Operator modes, fake tensors and the tracer see ``aten::sigmoid``, and nothing of our kernels."""
    x = _randn(kernel_route, 5)
    with enable():
        with Watch() as mode:
            torch.sigmoid(x)
        graph = make_fx(torch.sigmoid)(x).graph
        launches.clear()
        with FakeTensorMode():
            assert torch.sigmoid(torch.empty(3, device=kernel_route.device)).device.type == kernel_route.device
    assert mode.seen == [aten.sigmoid.default]
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [aten.sigmoid.default]
    assert launches == []


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(kernel_route: Route, launches: list[str], backend: str) -> None:
    """One graph. Run operator by operator it reaches our kernels; Inductor writes its own, fused, as ever."""
    if backend == "inductor" and kernel_route is not CUDA and shutil.which("g++") is None:
        pytest.skip("Inductor needs a C++ compiler on the CPU")
    x = _randn(kernel_route, 3, 5).requires_grad_()
    with enable():
        out = torch.compile(lambda x: torch.sigmoid(x) * 2, fullgraph=True, backend=backend)(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
    s = true_sigmoid(x)
    torch.testing.assert_close(out.detach().cpu().double(), 2 * s, rtol=0, atol=1e-6)
    torch.testing.assert_close(grad.cpu().double(), 2 * s * (1 - s), rtol=0, atol=1e-6)
    assert launches == ([] if backend == "inductor" else ["sigmoid", "sigmoid_backward"])


@pytest.mark.gpu
def test_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured torch.sigmoid replays our kernel on new data."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(1))
    x = torch.zeros(1000, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with enable():
        torch.sigmoid(x)  # within a capture, drivers older than CUDA 12.3 load no kernel
        with torch.cuda.graph(graph):
            out = torch.sigmoid(x)
    x.fill_(2.0)
    graph.replay()
    assert_within_ulps(out, true_sigmoid(x), FORWARD_ULPS[x.dtype])
