"""``enable()`` beside libraries that override the same operators: in any order of events, σ stays right."""

import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import Library, get_kernel

from sigmoid_op import dispatch, override
from sigmoid_op.override import Enabled, enable
from tests.conftest import CUDA, Route, kernels_from
from tests.ulp import true_sigmoid

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")  # theirs, not ours
        for name in OPERATORS:
            library.impl(name, kernel_of(name), key, with_keyset=with_keyset, allow_override=True)
    return library


def _formula(device: str) -> Library:
    return _other(device.upper(), FORMULAS.__getitem__)


def _formula_with_keyset(device: str) -> Library:
    return _other(
        device.upper(), lambda name: lambda _, *args, **kwargs: FORMULAS[name](*args, **kwargs), with_keyset=True
    )


def _captured(device: str) -> Library:
    """Calls the kernel that it found, as ``torch.library.get_kernel`` has it."""
    key = device.upper()
    found = {name: get_kernel(f"aten::{name}", key).call_boxed for name in OPERATORS}
    return _other(key, found.__getitem__, with_keyset=True)


def _decorated(device: str) -> Library:
    """By the decorator, which is for one operator at a time, and with no leave to override."""
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name in OPERATORS:
            torch.library.impl(f"aten::{name}", device, lib=library)(FORMULAS[name])
    return library


def _at_our_key(device: str) -> Library:
    return _other("BackendSelect", FORMULAS.__getitem__)


OTHERS: dict[str, Other] = {
    "a formula": _formula,
    "a formula with the key set": _formula_with_keyset,
    "the kernel it found": _captured,
    "by the decorator": _decorated,
    "a formula at our key": _at_our_key,
}


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


def _orders(*events: str) -> list[tuple[str, ...]]:
    """All orders in which every "+name" comes before "-name"."""
    return [
        order
        for order in permutations(events)
        if all(order.index(event) < order.index("-" + event[1:]) for event in events if event[0] == "+")
    ]


class _Scene:
    """Handles and libraries by name; whatever is left over at the end goes."""

    def __init__(self, device: str, others: dict[str, Other]) -> None:
        self.device, self.others = device, others
        self.present: dict[str, Any] = {}

    def play(self, event: str) -> None:
        sign, name = event[0], event[1:]
        if sign == "+":
            self.present[name] = self.others[name](self.device) if name in self.others else enable()
        else:
            gone = self.present.pop(name)
            gone.disable() if isinstance(gone, Enabled) else gone._destroy()

    def close(self) -> None:
        for name in list(self.present):
            self.play(f"-{name}")


@pytest.fixture
def scene(kernel_route: Route) -> Iterator[Callable[[dict[str, Other]], _Scene]]:
    scenes: list[_Scene] = []

    def make(others: dict[str, Other]) -> _Scene:
        scenes.append(_Scene(kernel_route.device, others))
        return scenes[-1]

    yield make
    for made in scenes:
        made.close()
    assert override._enabled == 0


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch, kernel_route: Route) -> None:
    """Tensors too small for our kernels, which go on to whoever is beneath."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(2**62))


@pytest.mark.usefixtures("forwarded")
@pytest.mark.parametrize("kind", OTHERS)
def test_one_other(scene: Callable[[dict[str, Other]], _Scene], kind: str) -> None:
    """Another library and two handles of ours, in every order: after each event all five operators are right."""
    for order in _orders("+other", "-other", "+ours", "-ours", "+again", "-again"):
        played = scene({"other": OTHERS[kind]})
        for event in order:
            played.play(event)
            _check(played.device)


@pytest.mark.parametrize("kind", OTHERS)
def test_one_other_and_our_kernels(scene: Callable[[dict[str, Other]], _Scene], kind: str) -> None:
    """The same with tensors that our kernels take."""
    for order in _orders("+other", "-other", "+ours", "-ours"):
        played = scene({"other": OTHERS[kind]})
        for event in order:
            played.play(event)
            _check(played.device)


@pytest.mark.usefixtures("forwarded")
@pytest.mark.parametrize("kind", ["a formula", "a formula with the key set", "a formula at our key"])
def test_two_others(scene: Callable[[dict[str, Other]], _Scene], kind: str) -> None:
    """Two other libraries above each other, and ours: every order."""
    for order in _orders("+first", "-first", "+second", "-second", "+ours", "-ours"):
        played = scene({"first": OTHERS[kind], "second": _formula})
        for event in order:
            played.play(event)
            _check(played.device)


def test_ours_comes_first(kernel_route: Route, launches: list[str]) -> None:
    """What our kernels take they are given, whether the other library came before or after."""
    for events in (("+ours", "+other"), ("+other", "+ours")):
        played = _Scene(kernel_route.device, {"other": _formula})
        for event in events:
            played.play(event)
        launches.clear()
        torch.sigmoid(torch.ones(3, device=kernel_route.device))
        played.close()
        assert launches == ["sigmoid"]


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
    other: Library | None = None
    for _ in range(20):
        if other:
            other._destroy()
            other = None
        else:
            other = _captured(kernel_route.device)
        rounds.wait()
        rounds.wait()
    for thread in threads:
        thread.join()
    if other:
        other._destroy()
    assert errors == []


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel can run, ours changes nothing, and the order of events is nothing to it."""
    monkeypatch.setattr(dispatch, "SUPPORTED", False)
    for order in _orders("+other", "-other", "+ours", "-ours"):
        played = _Scene("cpu", {"other": _captured})
        for event in order:
            played.play(event)
            _check("cpu")
