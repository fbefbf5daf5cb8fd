"""``enable()`` beside libraries that override the same operators: in any order of events, σ stays right."""

import threading
from collections.abc import Callable, Iterator
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.library import Library, get_kernel

from sigmoid_op import dispatch, override
from sigmoid_op.override import enable
from tests.conftest import CUDA, Route, kernels_from
from tests.ulp import true_sigmoid

# Which PyTorch says of the others; that ours is silent, test_override_lifetime.py checks.
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators")

OPERATORS = ("sigmoid", "sigmoid_", "sigmoid.out", "sigmoid_backward", "sigmoid_backward.grad_input")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program of one thread, where ``disable()`` takes back what ``enable()`` registered."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


# How other libraries write the five operators: by a formula of their own, in operators that nobody overrides here.
def _forward(x: Tensor) -> Tensor:
    return (1 / (1 + torch.exp(-x.double()))).to(x.dtype if x.is_floating_point() else torch.get_default_dtype())


def _backward(grad_out: Tensor, out: Tensor) -> Tensor:
    return (grad_out.double() * out * (1 - out.double())).to(out.dtype)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": _forward,
    "sigmoid_": lambda x: x.copy_(_forward(x)),
    "sigmoid.out": lambda x, *, out: out.copy_(_forward(x)),
    "sigmoid_backward": _backward,
    "sigmoid_backward.grad_input": lambda grad_out, out, *, grad_input: grad_input.copy_(_backward(grad_out, out)),
}

Other = Callable[[str], Library]


def _other(key: str, kernel_of: Callable[[str], Callable[..., Tensor]], *, with_keyset: bool = False) -> Library:
    library = Library("aten", "IMPL")
    for name in OPERATORS:
        library.impl(name, kernel_of(name), key, with_keyset=with_keyset, allow_override=True)
    return library


def _formula(device: str) -> Library:
    return _other(device.upper(), FORMULAS.__getitem__)


def _captured(device: str) -> Library:
    """Calls the kernel that it found, as ``torch.library.get_kernel`` has it."""
    key = device.upper()
    found = {name: get_kernel(f"aten::{name}", key).call_boxed for name in OPERATORS}
    return _other(key, found.__getitem__, with_keyset=True)


def _decorated(device: str) -> Library:
    """By the decorator, which is for one operator at a time, and with no leave to override."""
    library = Library("aten", "IMPL")
    for name in OPERATORS:
        torch.library.impl(f"aten::{name}", device, lib=library)(FORMULAS[name])
    return library


def _at_our_key(device: str) -> Library:
    return _other("BackendSelect", FORMULAS.__getitem__)


def _check(device: str) -> None:
    """All five operators give the right values: a kernel's or another library's, within a rounding or two."""
    x = torch.linspace(-2, 2, 3, device=device)
    s = true_sigmoid(x).to(device)
    out, leaf = torch.empty_like(x), x.clone().requires_grad_()
    torch.sigmoid(x, out=out)
    torch.ops.aten.sigmoid_backward.grad_input(torch.ones_like(x), out, grad_input=(grad_in := torch.empty_like(x)))
    result = torch.sigmoid(leaf)
    result.sum().backward()
    assert leaf.grad is not None
    for got in (result.detach(), out, x.clone().sigmoid_()):
        torch.testing.assert_close(got.double(), s, rtol=1e-6, atol=0)
    for got in (leaf.grad, grad_in):
        torch.testing.assert_close(got.double(), s * (1 - s), rtol=2e-6, atol=0)
    integers = torch.sigmoid(torch.arange(-2, 3, device=device))  # which no kernel takes
    torch.testing.assert_close(integers, 1 / (1 + torch.exp(-torch.arange(-2.0, 3, device=device))))


def _orders(*names: str) -> Iterator[list[str]]:
    """All orders in which each comes, "+name", and goes, "-name"."""
    for events in permutations(f"{sign}{name}" for name in names for sign in "+-"):
        if all(events.index(f"+{name}") < events.index(f"-{name}") for name in names):
            yield list(events)


def _play(events: list[str], others: dict[str, Other], device: str) -> Iterator[set[str]]:
    """Who is there after each event, at which all operators are right. What is no other library is ours."""
    present: dict[str, Callable[[], None]] = {}  # and how each goes
    try:
        for event in events:
            sign, name = event[0], event[1:]
            if sign == "-":
                present.pop(name)()
            else:
                present[name] = others[name](device)._destroy if name in others else enable().disable
            _check(device)
            yield set(present)
    finally:
        for go in present.values():
            go()
    assert override._enabled == 0


# The other libraries, the handles of ours, and whether tensors are too small for our kernels, which then pass them on.
CASES: dict[str, tuple[dict[str, Other], tuple[str, ...], bool]] = {
    "a formula, and our kernels": ({"other": _formula}, ("ours",), False),
    "a formula": ({"other": _formula}, ("ours", "again"), True),
    "two formulas": ({"first": _formula, "second": _formula}, ("ours",), True),
    "the kernel it found": ({"other": _captured}, ("ours", "again"), True),
    "by the decorator": ({"other": _decorated}, ("ours",), True),
    "a formula at our key": ({"other": _at_our_key}, ("ours", "again"), True),
    "at our key, and above": ({"first": _at_our_key, "second": _formula}, ("ours",), True),
}


@pytest.mark.parametrize("case", CASES)
def test_every_order(kernel_route: Route, launches: list[str], monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """After each event all five operators are right, and where ours are on, our kernels are given what they take."""
    others, handles, too_small = CASES[case]
    if too_small:
        monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(2**62))
    for events in _orders(*others, *handles):
        for present in _play(events, others, kernel_route.device):
            assert bool(launches) == ("ours" in present and not too_small)
            launches.clear()


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel can run, ours changes nothing, and the order of events is nothing to it."""
    monkeypatch.setattr(dispatch, "SUPPORTED", False)
    for events in _orders("other", "ours"):
        assert len(list(_play(events, {"other": _captured}, "cpu"))) == 4


def test_threads(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads compute and switch ours on and off; another library comes and goes between their calls."""
    monkeypatch.undo()  # here threads are counted
    if kernel_route is not CUDA:  # Triton's interpreter serves one thread at a time: here calls are forwarded
        monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(2**62))
    rounds, errors = threading.Barrier(4, timeout=120), list[BaseException]()

    def work(switch: bool) -> None:
        try:
            for _ in range(20):
                rounds.wait()
                for _ in range(5):
                    handle = enable() if switch else None
                    _check(kernel_route.device)
                    if handle:
                        handle.disable()
                rounds.wait()
        except BaseException as error:
            errors.append(error)
            rounds.abort()

    threads = [threading.Thread(target=work, args=(switch,)) for switch in (True, True, False)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        other = _captured(kernel_route.device)
        rounds.wait()
        rounds.wait()
        other._destroy()
        rounds.wait()
        rounds.wait()
    for thread in threads:
        thread.join()
    assert errors == []
    assert override._enabled == 0
