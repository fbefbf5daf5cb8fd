"""Who is timed: the library, PyTorch, torch.compile, a copy of the same bytes, and a tutorial's Triton kernel.

Each gives the call a user would write (``sigmoid``, differentiable) for the wall clock, and its bare kernels
(``forward``, ``backward``) for the device clock, where autograd's host work has no place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sigmoid_op
from bench.cases import Case, Inputs, Pass
from sigmoid_op import dispatch
from sigmoid_op.ops.sigmoid import SigmoidBackwardFunction, SigmoidFunction

OURS, TORCH, COMPILED, COPY, TUTORIAL = "sigmoid_op", "torch", "torch.compile", "copy", "tutorial"

Call = Callable[[], Any]
_aten_backward = torch.ops.aten.sigmoid_backward.default


@dataclass(frozen=True)
class Provider:
    """``backward`` maps (grad_out, out) to grad_in; ``sigmoid`` is None for what is not a sigmoid, the copy.

    ``triton_exp``: e^x is Triton's, 2^(x·log2 e) with the product rounded once, which costs float32 some digits.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    sigmoid: Callable[[Tensor], Tensor] | None
    triton_exp: bool = False


class NotCompiledError(RuntimeError):
    """What was to be compiled ran eagerly."""


def providers(case: Case, device: torch.device, *, with_compile: bool) -> dict[str, Callable[[], Provider]]:
    """By name, how to make each provider that is timed for ``case``; making one may raise."""
    makers: dict[str, Callable[[], Provider]] = {OURS: ours, TORCH: pytorch, COPY: copy}
    if with_compile:
        makers[COMPILED] = partial(compiled, case, device)
    if device.type == "cuda":
        makers[TUTORIAL] = tutorial
    return makers


def ours() -> Provider:
    # The Functions' forward methods are the kernel launchers without the size threshold and without autograd.
    return Provider(SigmoidFunction.forward, SigmoidBackwardFunction.forward, sigmoid_op.sigmoid)


def pytorch() -> Provider:
    return Provider(torch.sigmoid, _aten_backward, torch.sigmoid)


def copy() -> Provider:
    """The same traffic without the mathematics: clone (1 read, 1 written), add (2 read, 1 written), or both in turn."""
    return Provider(torch.clone, torch.add, None)


def tutorial() -> Provider:
    from bench import baseline  # needs Triton

    return Provider(baseline.forward, baseline.backward, baseline.TutorialSigmoid.apply, triton_exp=True)


def compiled(case: Case, device: torch.device) -> Provider:
    """torch.compile with its default backend for the static shape of ``case``; every use of it is proven compiled."""
    torch._dynamo.reset()  # a fresh cache per shape: past its recompile limit, torch.compile would give up

    def sigmoid(x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def sigmoid_backward(grad_out: Tensor, out: Tensor) -> Tensor:
        result: Tensor = _aten_backward(grad_out, out)
        return result

    provider = Provider(
        forward := torch.compile(sigmoid, fullgraph=True, dynamic=False),
        torch.compile(sigmoid_backward, fullgraph=True, dynamic=False),
        forward,
        triton_exp=True,
    )
    inputs = case.inputs(device)
    assert_compiled(kernel_call(provider, "forward", inputs), n_kernels=1)
    assert_compiled(kernel_call(provider, "backward", inputs), n_kernels=1)
    assert_compiled(user_call(provider, "forward+backward", inputs), n_kernels=2)
    return provider


def assert_compiled(call: Call, n_kernels: int) -> None:
    """Make the first call; raise NotCompiledError unless Inductor generated ``n_kernels`` or more for it.

    The second call may not compile again, nor fall back: with the stance set here it would raise.
    """
    from torch._inductor import metrics

    generated = metrics.generated_kernel_count
    call()
    generated = metrics.generated_kernel_count - generated
    if generated < n_kernels:
        raise NotCompiledError(f"torch.compile generated {generated} kernels, {n_kernels} expected: this ran eagerly")
    with torch.compiler.set_stance("fail_on_recompile"):
        call()


def user_call(provider: Provider, pass_: Pass, inputs: Inputs) -> Call:
    """The call that the wall clock times; the backward pass is autograd's, on a retained graph."""
    sigmoid = provider.sigmoid
    if sigmoid is None:
        return kernel_call(provider, pass_, inputs)
    if pass_ == "forward":
        return partial(sigmoid, inputs.x)
    x, grad_out = inputs.x.detach().requires_grad_(), inputs.grad_out
    if pass_ == "backward":
        return partial(torch.autograd.grad, sigmoid(x), x, grad_out, retain_graph=True)
    return lambda: torch.autograd.grad(sigmoid(x), x, grad_out)


def kernel_call(provider: Provider, pass_: Pass, inputs: Inputs) -> Call:
    """The bare kernels that the device clock times."""
    if pass_ == "forward":
        return partial(provider.forward, inputs.x)
    if pass_ == "backward":
        return partial(provider.backward, inputs.grad_out, inputs.out)
    return lambda: (provider.forward(inputs.x), provider.backward(inputs.grad_out, inputs.out))


@contextmanager
def kernels_from(n_elements: int) -> Iterator[None]:
    """Set the library's size threshold, below which CUDA runs PyTorch's kernel for it."""
    threshold = dispatch.MIN_ELEMENTS
    dispatch.MIN_ELEMENTS = dict.fromkeys(threshold, n_elements)
    try:
        yield
    finally:
        dispatch.MIN_ELEMENTS = threshold


kernels_for_all_sizes = partial(kernels_from, 1)


def route(x: Tensor, *, by_user: bool) -> str:
    """What runs for the library: its kernel, or PyTorch's behind the wrapper. A user's call has the size threshold."""
    takes_kernel = dispatch.takes("sigmoid", x) if by_user else dispatch.supported(x)
    return "kernel" if takes_kernel else "torch"
