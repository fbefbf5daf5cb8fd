"""``enable()`` lasts as long as it says, for all threads, and leaves PyTorch as it was."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from sigmoid_op import override
from sigmoid_op.override import enable
from tests.conftest import Route


@pytest.fixture(autouse=True)
def _balanced() -> None:
    """No test inherits another's handle: what follows would not test what it says."""
    assert override._enabled == 0


def _launches_one(launches: list[str], route: Route) -> bool:
    launches.clear()
    torch.sigmoid(torch.ones(3, device=route.device))
    return launches == ["sigmoid"]


def test_lifetime(kernel_route: Route, launches: list[str]) -> None:
    """From the call to ``disable()``, whose repetition does nothing; over a ``with`` block, even if it raises."""
    assert not _launches_one(launches, kernel_route)
    handle = enable()
    assert _launches_one(launches, kernel_route)
    handle.disable()
    handle.disable()
    assert not _launches_one(launches, kernel_route)
    with enable() as handle:
        assert _launches_one(launches, kernel_route)
        handle.disable()
        assert not _launches_one(launches, kernel_route)
    with pytest.raises(ZeroDivisionError), enable():
        1 / 0  # noqa: B018 - for its exception
    assert not _launches_one(launches, kernel_route)


def test_nesting(kernel_route: Route, launches: list[str]) -> None:
    """It lasts until the last handle is disabled, in whatever order they are."""
    first, second = enable(), enable()
    first.disable()
    with enable():
        assert _launches_one(launches, kernel_route)
    assert _launches_one(launches, kernel_route)
    second.disable()
    assert not _launches_one(launches, kernel_route)


def test_the_operator_table_is_restored() -> None:
    """In a program of one thread, PyTorch's operator table is afterwards what it was, line by line; and no one warns.

    With another thread alive the table is left alone, and the next ``disable()`` in a single thread restores it.
    """
    _run(
        """
        before = table()
        with enable(), enable():
            assert table() != before
            out = torch.sigmoid(x)
            torch.testing.assert_close(out.double(), 1 / (1 + torch.exp(-x.double())), rtol=1e-6, atol=0)
        assert table() == before

        done = threading.Event()
        other = threading.Thread(target=done.wait, daemon=True)
        other.start()
        enable().disable()
        assert table() != before
        assert torch.equal(torch.sigmoid(x), original(x))
        done.set()
        other.join()
        enable().disable()
        assert table() == before
        """,
        interpret=True,
    )


def test_no_effect_on_the_cpu() -> None:
    """Without the interpreter, CPU tensors go on to PyTorch's kernel, and no Triton is imported for them."""
    _run(
        """
        large = torch.randn(2**23)
        with enable():
            assert any("override.py" in line for line in table()) == (torch.version.cuda is not None)
            assert torch.equal(torch.sigmoid(x), original(x))
            assert torch.equal(torch.sigmoid(large), original(large))
        assert "triton" not in sys.modules
        """,
        interpret=False,
    )


_PRELUDE = """
import sys, threading, torch
from functools import partial
from sigmoid_op.override import enable

x = torch.randn(100)
original = partial(torch.library.get_kernel("aten::sigmoid", "CPU").call_boxed, torch._C._dispatch_keys(x))
names = ["sigmoid", "sigmoid_", "sigmoid.out", "sigmoid_backward", "sigmoid_backward.grad_input"]

def table():
    return [line for name in names for line in torch._C._dispatch_dump("aten::" + name).splitlines()]
"""


def _run(body: str, *, interpret: bool) -> None:
    """A program of its own, for what a test process with other threads and earlier warnings cannot show."""
    program = _PRELUDE + textwrap.dedent(body)
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment, timeout=300)
