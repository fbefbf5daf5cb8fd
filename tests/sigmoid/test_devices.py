"""Kernels run where the tensor is and when its stream says: side streams, and devices that are not current."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from sigmoid_op import dispatch, sigmoid
from sigmoid_op.override import enable
from tests.conftest import kernels_from

Unary = Callable[[Tensor], Tensor]
Context = Callable[[], AbstractContextManager[Any]]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize(("function", "context"), [(sigmoid, nullcontext), (torch.sigmoid, enable)]),
]


@pytest.fixture(autouse=True)
def _every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(1))


def _assert_sigmoid(x: Tensor, out: Tensor) -> None:
    s = torch.sigmoid(x.detach().cpu().double())
    torch.testing.assert_close(out.detach().cpu().double(), s, rtol=0, atol=1e-6)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.cpu().double(), s * (1 - s), rtol=0, atol=1e-6)


def test_side_stream(launches: list[str], function: Unary, context: Context) -> None:
    """The kernels run on the current stream: behind slow work queued there, they see its result.

    Those of the second call are prepared launches.
    """
    x = torch.zeros(2**20, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), context():
        function(x).sum().backward()  # compiles, which would take longer than the sleep
        x.grad = None
        torch.cuda._sleep(200_000_000)  # clock cycles, about 0.1 s
        with torch.no_grad():
            x.fill_(3.0)
        out = function(x)
        out.sum().backward()
    stream.synchronize()
    _assert_sigmoid(x, out)
    assert launches == ["sigmoid", "sigmoid_backward"] * 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_device_that_is_not_current(launches: list[str], function: Unary, context: Context) -> None:
    """A tensor of the second GPU is computed there while the first is current, and stays so."""
    x = torch.linspace(-3, 3, 1000, device="cuda:1").requires_grad_()
    with torch.cuda.device(0), context():
        out = function(x)
        out.sum().backward()
        assert torch.cuda.current_device() == 0
    assert out.device == x.device
    _assert_sigmoid(x, out)
    assert launches == ["sigmoid", "sigmoid_backward"]
