"""The prepared launch: bound once for each kind of operands, where the tensor is and when its stream says."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from sigmoid_op import SigmoidFunction
from sigmoid_op.kernels import launch, pointwise
from sigmoid_op.kernels import sigmoid as formulas
from tests.fake_kernel import FakeDriver, FakeKernel


def _launch(x: Tensor, formula: Any = formulas.sigmoid) -> None:
    pointwise.launch(formula, (), (x,), (torch.empty_like(x),))


def test_compiles_once_for_each_kind(jit: FakeKernel) -> None:
    """A second call of the same kind, whatever its length, skips Triton's binding."""
    x = torch.zeros(5000)
    for y in (x, x[:1], x[:4096], x[:4999], x[4:]):  # the last is 16 bytes further on
        _launch(y)
    assert len(jit.launched) == 1
    assert [len(kernel.launched) for kernel in jit.compiled] == [4]


def test_no_kernel_serves_another_kind(jit: FakeKernel) -> None:
    """Whatever Triton specializes on makes a kind: formula and constants, scalars, each operand's dtype and alignment.

    A kernel compiled for pointers aligned to 16 bytes, whose wide accesses would fault, never sees another pointer.
    """
    x, y, one = torch.zeros(4096), torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(1)
    odd = torch.zeros(4098)[2:]
    assert (x.data_ptr() % 16, odd.data_ptr() % 16) == (0, 8)
    kinds: list[tuple[Any, ...]] = [
        ((), (x, x), (x,)),
        ((one,), (x,), (x,)),
        ((one,), (x,), (x,), (), None, 1),
        ((), (x, x), (x,), (0.25, 2.0)),
        ((), (x, x), (x,), (0.5, 2.0)),
        ((), (x, y), (x,)),
        ((), (y, x), (x,)),
        ((), (x, x), (y,)),
        ((), (x, odd), (x,)),
        ((), (odd, x), (x,)),
        ((), (x, x), (odd,)),
    ]
    for kind in kinds:
        assert jit.compiles(pointwise.launch, formulas.sigmoid_backward, *kind)
    for formula in (formulas.sigmoid, formulas.sigmoid_exact):
        assert jit.compiles(_launch, x, formula)


def test_every_launch_says_whether_to_fuse(jit: FakeKernel) -> None:
    """Multiplications and additions: results do not depend on Triton's default, which a user can set."""
    _launch(torch.zeros(64))
    assert jit.options["enable_fp_fusion"] is launch.FP_FUSION


def test_each_device_has_kernels_of_its_own(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled and launched on its device's stream, under its guard where another device is current."""
    entered: list[int] = []

    @contextmanager
    def guard(device: int) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(FakeDriver, "current", 0)
    for device in (0, 1, 0, 1):
        launch.launch(jit, 1, (), ("kernel", device))
    assert len(jit.launched) == 2
    assert [kernel.launched for kernel in jit.compiled] == [[(1, "stream of 0")], [(1, "stream of 1")]]
    assert entered == [1, 1]


def test_the_table_of_kernels_stays_small(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many kinds of calls there are, no more than the limit are remembered; a forgotten one works as before."""
    monkeypatch.setattr(launch, "LIMIT", 2)
    x = torch.zeros(5000)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        _launch(x.to(dtype))
        assert 0 < len(launch._compiled) <= 2
    assert len(jit.launched) == 4


def test_where_one_alignment_is_missing_none_is_known(jit: FakeKernel) -> None:
    """The kernel is then given a zero to add to its offsets, which hides the others' alignment from the compiler."""
    x = torch.zeros(5000)
    pointwise.launch(formulas.sigmoid, (), (x[4:],), (x[:-4],))
    pointwise.launch(formulas.sigmoid, (), (x[1:],), (x[:-1],))
    assert [args[7] for args in jit.launched] == [None, 0]


def test_profilers_see_every_launch(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a hook of Triton's is set, launches go Triton's own way, which calls it; afterwards they do not."""
    from triton import knobs

    x = torch.zeros(3)
    _launch(x)
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        with monkeypatch.context() as patch:
            patch.setattr(hook, "calls", [lambda metadata: None])
            assert jit.compiles(_launch, x)
        assert not jit.compiles(_launch, x)


def test_integers_of_one_kind_are_one_to_triton() -> None:
    """``kind`` tells apart whatever Triton's own binding does: a kernel never serves what it was not compiled for."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    def of_triton(x: int) -> Any:
        return native_specialize_impl(CUDABackend, x, False, True, True)

    values = [0, 1, 2, 3, 8, 16, -16, 17, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 16, -(2**31), -(2**31) - 1, 2**40]
    alike = [pair for pair in combinations(values, 2) if launch.kind(pair[0]) == launch.kind(pair[1])]
    assert alike
    for value, other in alike:
        assert of_triton(value) == of_triton(other), (value, other)


def _assert_sigmoid(x: Tensor, out: Tensor) -> None:
    s = torch.sigmoid(x.detach().double())
    torch.testing.assert_close(out.detach().double(), s, rtol=0, atol=1e-6)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), s * (1 - s), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_side_stream(launches: list[str]) -> None:
    """The kernels run on the current stream: behind slow work queued there, they see its result.

    Those of the second call are prepared launches.
    """
    x = torch.zeros(2**20, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        SigmoidFunction.apply(x).sum().backward()  # compiles, which would take longer than the sleep
        x.grad = None
        torch.cuda._sleep(200_000_000)  # clock cycles, about 0.1 s
        with torch.no_grad():
            x.fill_(3.0)
        out = SigmoidFunction.apply(x)
        out.sum().backward()
    stream.synchronize()
    _assert_sigmoid(x, out)
    assert launches == ["sigmoid", "sigmoid_backward"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_device_that_is_not_current(launches: list[str]) -> None:
    """A tensor of the second GPU is computed there while the first is current, and stays so."""
    x = torch.linspace(-3, 3, 1000, device="cuda:1").requires_grad_()
    with torch.cuda.device(0):
        out = SigmoidFunction.apply(x)
        out.sum().backward()
        assert torch.cuda.current_device() == 0
    _assert_sigmoid(x, out)
    assert launches == ["sigmoid", "sigmoid_backward"]


@pytest.mark.gpu
def test_cuda_graph_capture() -> None:
    """Forward and backward can be captured and replayed, the very first call inside the capture included.

    That one loads the kernels, which drivers from CUDA 12.3 on allow.
    """
    from sigmoid_op.kernels.sigmoid import launch_sigmoid, launch_sigmoid_backward

    launch._compiled.clear()
    pointwise.pointwise_kernel.device_caches.clear()  # Triton's own: the capture itself has to load the kernels
    x = torch.randn(4099, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = launch_sigmoid(x)
        grad_in = launch_sigmoid_backward(x, out)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = torch.sigmoid(x.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad_in.double(), x.double() * expected * (1 - expected), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_more_elements_than_32_bits_count() -> None:
    """Offsets are 64 bits wide: element 2^31 + 2 is right, and so is its neighbour across the boundary."""
    n = 2**31 + 3
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n:
        pytest.skip("needs 13 GB of free GPU memory")
    from sigmoid_op.kernels.sigmoid import launch_sigmoid

    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    x[2**31 - 2 :] = torch.tensor([1, 2, 3, 4, 5], dtype=torch.bfloat16)
    out = launch_sigmoid(x)
    torch.testing.assert_close(out[2**31 - 2 :], torch.sigmoid(x[2**31 - 2 :]))
    assert bool((out[: 2**31 - 2 : 4097] == 0.5).all())
