"""The prepared launch: Triton binds arguments once for each kind of operands, and a kernel serves only its own kind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from sigmoid_op.kernels import launch, pointwise
from sigmoid_op.kernels import sigmoid as formulas
from tests.fake_kernel import FakeDriver, FakeKernel


def _launch(x: Tensor, formula: Any = formulas.sigmoid) -> None:
    pointwise.launch(formula, (), (x,), (torch.empty_like(x),))


def test_compiles_once_for_each_kind(jit: FakeKernel) -> None:
    """A second call of the same kind, whatever its length, skips Triton's binding."""
    x = torch.zeros(5000)
    for length in (5000, 1, 4096, 4999):
        _launch(x[:length])
    _launch(x[4:])  # 16 bytes further on
    assert len(jit.launched) == 1
    assert [len(kernel.launched) for kernel in jit.compiled] == [4]


def test_no_kernel_serves_another_kind(jit: FakeKernel) -> None:
    """Whatever Triton specializes on makes a kind: formula and constants, scalars, each operand's dtype and alignment.

    A kernel compiled for pointers aligned to 16 bytes, whose wide accesses would fault, never sees another pointer.
    """
    x, y, one = torch.zeros(4096), torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(1)
    odd = torch.zeros(4098)[2:]
    assert (x.data_ptr() % 16, odd.data_ptr() % 16) == (0, 8)

    def launch_one_of(
        *inputs: Tensor,
        scalars: tuple[Tensor, ...] = (),
        output: Tensor = x,
        constants: Any = (),
        scale: int | None = None,
    ) -> None:
        pointwise.launch(formulas.sigmoid_backward, scalars, inputs, (output,), constants, None, scale)

    kinds: list[Callable[[], None]] = [
        lambda: launch_one_of(x, x),
        lambda: launch_one_of(x, scalars=(one,)),
        lambda: launch_one_of(x, scalars=(one,), scale=1),
        lambda: launch_one_of(x, x, constants=(0.25, 2.0)),
        lambda: launch_one_of(x, x, constants=(0.5, 2.0)),
        lambda: launch_one_of(x, y),
        lambda: launch_one_of(y, x),
        lambda: launch_one_of(x, x, output=y),
        lambda: launch_one_of(x, odd),
        lambda: launch_one_of(odd, x),
        lambda: launch_one_of(x, x, output=odd),
        lambda: _launch(x),
        lambda: _launch(x, formulas.sigmoid_exact),
    ]
    for count, launch_one in enumerate(kinds, start=1):
        launch_one()
        assert len(jit.launched) == count


def test_no_kernel_serves_another_device(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled kernel is loaded on one GPU: another's operands have their own."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for device in (0, 1, 0):
        launch.launch(jit, 1, (), ("kernel", device))
    assert len(jit.launched) == 2
    assert [stream for _, stream in jit.compiled[0].launched] == ["stream of 0"]


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


def test_another_device_is_made_current(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands on a device that is not the current one are launched under its guard; otherwise there is none."""
    entered: list[int] = []

    @contextmanager
    def guard(device: int) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", guard)
    _launch(torch.zeros(3))
    _launch(torch.zeros(3))
    assert entered == []
    monkeypatch.setattr(FakeDriver, "current", 1)
    _launch(torch.zeros(3))
    _launch(torch.zeros(3), formulas.sigmoid_exact)  # not compiled yet
    assert entered == [-1, -1]


def test_profilers_see_every_launch(jit: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a hook of Triton's is set, launches go Triton's own way, which calls it; afterwards they do not."""
    from triton import knobs

    _launch(torch.zeros(3))
    for count, hook in enumerate((knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook), start=2):
        with monkeypatch.context() as patch:
            patch.setattr(hook, "calls", [lambda metadata: None])
            _launch(torch.zeros(3))
        _launch(torch.zeros(3))
        assert len(jit.launched) == count


def test_integers_of_one_kind_are_one_to_triton() -> None:
    """``kind`` tells apart whatever Triton's own binding does: a kernel never serves what it was not compiled for."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    def of_triton(x: int) -> Any:
        return native_specialize_impl(CUDABackend, x, False, True, True)

    values = [0, 1, 2, 3, 16, -16, 17, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 16, -(2**31), -(2**31) - 1, 2**40]
    alike = [pair for pair in combinations(values, 2) if launch.kind(pair[0]) == launch.kind(pair[1])]
    assert alike
    for value, other in alike:
        assert of_triton(value) == of_triton(other), (value, other)


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
