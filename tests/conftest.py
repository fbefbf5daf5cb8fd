"""The routes a call can take, as fixtures: the fallback, the kernels in Triton's interpreter, the kernels on CUDA."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

# Triton reads this once, when it is imported: without a GPU, the kernels of this session run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from sigmoid_op import dispatch
from tests.fake_kernel import FakeDriver, FakeKernel

ROOT = Path(__file__).parents[1]

# A shell starts what it runs in the background with SIGINT ignored. What a test interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test files run side by side, each in a process: with a thread for every core in each, they would wait for one another.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Route:
    """Which implementation a test runs, and on which device."""

    name: str
    device: str

    @property
    def uses_kernels(self) -> bool:
        return self.name != "fallback"


FALLBACK = Route("fallback", "cpu")
INTERPRETER = Route("interpreter", "cpu")
CUDA = Route("cuda", "cuda")

KERNEL_ROUTES = [pytest.param(INTERPRETER, id="interpreter"), pytest.param(CUDA, id="cuda", marks=pytest.mark.gpu)]
ALL_ROUTES = [pytest.param(FALLBACK, id="fallback"), *KERNEL_ROUTES]


def _interpret_faster() -> None:
    """Let Triton's interpreter change ``triton.language`` once a kernel, and not again for each function it calls.

    Searching its modules for what to change takes most of the time of an interpreted kernel.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch_lang, nothing_to_restore = interpreter._patch_lang, interpreter._LangPatchScope

    def patch_once(fn: Any) -> Any:
        modules = [module for module in fn.__globals__.values() if module is tl or module is tl.core]
        is_patched = not any(tl.core.is_builtin(module.load) for module in modules)
        return nothing_to_restore() if is_patched else patch_lang(fn)

    interpreter._patch_lang = patch_once


if dispatch.INTERPRETED:
    _interpret_faster()


def kernels_from(n_elements: int) -> dict[str, int]:
    """The table of thresholds, with one number for all ops."""
    return dict.fromkeys(dispatch.MIN_ELEMENTS, n_elements)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _take(route: Route, monkeypatch: pytest.MonkeyPatch) -> Route:
    if route is INTERPRETER and not dispatch.INTERPRETED:
        pytest.skip("compiled kernels run in this process; TRITON_INTERPRET=1 runs them in the interpreter")
    if route is FALLBACK:
        monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", kernels_from(1))
    return route


@pytest.fixture(params=ALL_ROUTES)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Route:
    """Each implementation in turn, at every size."""
    return _take(request.param, monkeypatch)


@pytest.fixture(params=KERNEL_ROUTES)
def kernel_route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Route:
    """The Triton kernels, at every size: interpreted, and compiled where there is a GPU."""
    return _take(request.param, monkeypatch)


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch) -> Route:
    """PyTorch's own operators behind our functions."""
    return _take(FALLBACK, monkeypatch)


def replace_launches(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., None]) -> None:
    """``launch(kernel, programs, args, key, max_registers)`` in place of every launch of the library."""
    from sigmoid_op.kernels import pointwise, sums, tiled

    for template in (pointwise, tiled, sums):
        monkeypatch.setattr(template, "launch_kernel", launch)


def launched_name(kernel: Any, args: tuple[Any, ...]) -> str:
    """That of the formula launched, or of a kernel that has none."""
    name: str = next((arg for arg in args if callable(arg)), kernel).__name__
    return name


def formulas_of(launches: list[str]) -> list[str]:
    """Those of the launches that have one: the others add up sums."""
    return [name for name in launches if name != "sums_kernel"]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was launched so far: the formulas, and ``sums_kernel``."""
    from sigmoid_op.kernels.launch import launch

    names: list[str] = []

    def record(kernel: Any, programs: int, args: tuple[Any, ...], *options: Any) -> None:
        names.append(launched_name(kernel, args))
        launch(kernel, programs, args, *options)

    replace_launches(monkeypatch, record)
    return names


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """The launch path of a GPU, up to the launch itself, on CPU tensors: one fake stands for all templates."""
    from sigmoid_op.kernels import launch, pointwise, sums, tiled

    kernel = FakeKernel()
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=FakeDriver()))
    monkeypatch.setattr(pointwise, "pointwise_kernel", kernel)
    monkeypatch.setattr(tiled, "tiled_kernel", kernel)
    monkeypatch.setattr(sums, "sums_kernel", kernel)
    return kernel


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Dynamo as in a new process, before and after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiling_environment() -> dict[str, str]:
    """For a process in which kernels are compiled, not interpreted."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def printed_by(module: str) -> Any:
    """What ``python -m module`` prints as JSON, in a process in which kernels are compiled."""
    command, environment = [sys.executable, "-m", module], compiling_environment()
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@contextmanager
def saved_tensors() -> Iterator[list[torch.Tensor]]:
    """What is saved for backward in the meantime."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


@pytest.fixture
def poisoned_empty() -> Iterator[None]:
    """Every ``torch.empty*`` comes filled with NaN, so that an element nobody writes cannot pass for a result."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
