"""A member of the family as it is called: its operands, who runs it, and whether what they give is right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.cases import PASSES, Pass, dtype_name, size_label
from bench.members import Member
from bench.providers import COMPILED, OURS, TORCH, Call, assert_compiled
from bench.rivals import Op
from bench.verify import WrongResultError

# The gradient of a mean is 1/n an element, 0 in float16 at 2^26 elements: the loss is scaled, as torch.amp does it. By
# no more, as PyTorch multiplies by this and by pos_weight before it divides by n.
LOSS_SCALE = 2.0**14

# In eps of the dtype, relative to the size of an element plus the mean size. They tell an op from a mistake; the tests
# hold the library to less. Eager PyTorch needs the room: in the gradient of a gate it takes 1 - σ from a rounded σ, and
# the larger the sample, the larger its largest error.
ALLOWED_EPS = {torch.float16: 16.0, torch.bfloat16: 16.0, torch.float32: 64.0, torch.float64: 64.0}


@dataclass(frozen=True)
class Operands:
    """``n_gradients`` of ``inputs`` are differentiated, the first ones; ``grad_out`` is given to backward."""

    inputs: tuple[Tensor, ...]
    n_gradients: int
    grad_out: Tensor

    def call(self, op: Op, pass_: Pass) -> Call:
        """What a user writes: forward without gradients; backward of one graph, which is kept; or both."""
        if pass_ == "forward":
            return partial(op, *self.inputs)
        leaves = [x.detach().requires_grad_() for x in self.inputs[: self.n_gradients]]
        inputs = (*leaves, *self.inputs[self.n_gradients :])
        if pass_ == "backward":
            return partial(torch.autograd.grad, op(*inputs), leaves, self.grad_out, retain_graph=True)
        return lambda: torch.autograd.grad(op(*inputs), leaves, self.grad_out)


@dataclass(frozen=True)
class FamilyCase:
    """A member in a dtype; ``n_elements`` are those of the result, for a loss of the logits."""

    member: Member
    dtype: torch.dtype
    n_elements: int

    @property
    def label(self) -> str:
        return f"{self.member.name} {size_label(self.n_elements)}"

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.dtype)

    def bytes_moved(self, pass_: Pass) -> int:
        return self.member.traffic.of(pass_) * self.n_elements * self.dtype.itemsize

    def operands(self, device: torch.device) -> Operands:
        """Drawn afresh for each provider: some, as Liger-Kernel, write their gradients over what they were given."""
        inputs = self.member.inputs(self.n_elements, self.dtype, device)
        # Its shape and strides, without computing it: what is in memory might pass for the result of another.
        out = self.member.eager(*(x.to("meta") for x in inputs))
        grad_out = torch.empty_like(out, device=device)
        grad_out = grad_out.normal_() if out.dim() else grad_out.fill_(LOSS_SCALE)
        return Operands(inputs, self.member.n_gradients, grad_out)

    def to_json(self) -> dict[str, Any]:
        n_bytes = self.n_elements * self.dtype.itemsize
        return {
            "label": self.label,
            "member": self.member.name,
            "dtype": self.dtype_name,
            "n_elements": self.n_elements,
            "eager_bytes_moved": {pass_: self.member.eager_traffic.of(pass_) * n_bytes for pass_ in PASSES},
            "goal": self.member.goal,
        }


def providers(case: FamilyCase, device: torch.device, *, with_compile: bool) -> dict[str, Callable[[], Op]]:
    """By name, how to get each form of the op; getting it may raise. Of other packages, those that are installed."""
    member = case.member
    makers: dict[str, Callable[[], Op]] = {OURS: lambda: member.ours, TORCH: lambda: member.eager}
    if with_compile:
        makers[COMPILED] = partial(compiled, case, device)
    if device.type == "cuda":
        makers |= {package: make for package, make in member.rivals.items() if find_spec(package)}
    return makers


def compiled(case: FamilyCase, device: torch.device) -> Op:
    """The eager form under torch.compile, for the static shapes of ``case``; every use of it is proven compiled."""
    torch._dynamo.reset()  # a fresh cache per shape: past its recompile limit, torch.compile would give up
    eager = case.member.eager

    def op(*inputs: Tensor) -> Tensor:
        return eager(*inputs)

    compiled_op = torch.compile(op, fullgraph=True, dynamic=False)
    operands = case.operands(device)
    assert_compiled(operands.call(compiled_op, "forward"), n_kernels=1)
    assert_compiled(operands.call(compiled_op, "forward+backward"), n_kernels=2)
    return compiled_op


def verify(op: Op, case: FamilyCase, device: torch.device) -> None:
    """Raise WrongResultError unless result and gradients are those of the eager form in float64."""
    operands = case.operands(device)
    exact = Operands(tuple(x.double() for x in operands.inputs), operands.n_gradients, operands.grad_out.double())
    _compare(op(*operands.inputs), case.member.eager(*exact.inputs), case.dtype, "forward")
    gradients = operands.call(op, "forward+backward")()
    for i, want in enumerate(exact.call(case.member.eager, "forward+backward")()):
        _compare(gradients[i], want, case.dtype, f"gradient of operand {i}")


def _compare(got: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    if got.shape != want.shape or got.dtype != dtype:
        raise WrongResultError(f"{what}: {got.dtype} {tuple(got.shape)} instead of {dtype} {tuple(want.shape)}")
    info = torch.finfo(dtype)
    size = want.abs()
    size = (size + size.mean()).clamp_(min=info.tiny)  # below that an eps is the distance of subnormal numbers
    error = float(((got.double() - want).abs_() / size).max()) / info.eps
    if not error <= ALLOWED_EPS[dtype]:  # so that NaN fails
        raise WrongResultError(f"{what}: {error:.3g} eps from float64, {ALLOWED_EPS[dtype]:g} allowed")
