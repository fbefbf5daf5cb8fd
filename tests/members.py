"""The family's table of tests: a row for each op, with PyTorch's form of it and its formula over exact numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.reference import sigmoid64
from sigmoid_op import GLU, QuickGELU, SigmoidGate, SiLU, SwiGLU, glu, quick_gelu, sigmoid_gate, silu, swiglu
from sigmoid_op._torch import CLAMP_PASSES_AT_BOUND
from tests.ulp import PRODUCT_GRADIENT_ULPS, PRODUCT_ULPS, assert_within_ulps, ulp_of

Op = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]
Number = Any  # a float64 tensor, or a NumPy array of mpmath's numbers: a formula is written once for both
Terms = tuple[Number, ...]
Gradient = Callable[[Tensor, Tensor], Tensor]


def as_laid_out(values: Tensor, out: Tensor) -> Tensor:
    """An incoming gradient of these values that lies in memory as the result does."""
    return torch.empty_like(out).copy_(values)


class Maths(NamedTuple):
    """What the formulas are made of besides products, for one kind of number."""

    sigmoid: Callable[[Number], Number]


FLOAT64 = Maths(sigmoid64)
MPMATH = Maths(np.vectorize(lambda x: 1 / (1 + mpmath.exp(-x)), otypes=[object]))


@dataclass(frozen=True)
class Member:
    """An op, its module, PyTorch's form, the formulas that it launches, shapes to call it with, and the truth of it."""

    name: str
    ours: Op
    module: Callable[[], nn.Module]
    theirs: Op
    kernels: tuple[str, str]  # forward and backward
    shapes: dict[str, Shapes]
    exact: Callable[..., Number]  # of Maths and the parts: the result
    exact_gradients: Callable[..., tuple[Terms, ...]]  # and of grad_out: for each part, terms to add up
    halved: int | None = None  # the dimension of the one operand that holds both parts side by side
    interleaved: bool = False  # or in turn
    slope: float = 1.0  # what σ is taken of is the gate times this
    kernels_of_pairs: tuple[str, str] | None = None  # for dtypes below 64 bits, if they are others

    @property
    def arity(self) -> int:
        """How many operands it takes."""
        return len(next(iter(self.shapes.values())))

    def launched(self, dtype: torch.dtype) -> tuple[str, str]:
        """The formulas for operands of ``dtype``."""
        return self.kernels if self.kernels_of_pairs is None or dtype == torch.float64 else self.kernels_of_pairs

    def parts(self, *operands: Tensor) -> tuple[Tensor, ...]:
        """What the formulas are about: the operands, or the halves of one."""
        if self.interleaved:
            return operands[0][..., ::2], operands[0][..., 1::2]
        return operands if self.halved is None else operands[0].chunk(2, self.halved)

    def whole(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Operands that have these parts."""
        if self.interleaved:
            return (torch.stack(parts, -1).flatten(-2),)
        return parts if self.halved is None else (torch.cat(parts, self.halved),)

    def operands(self, variant: str, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, ...]:
        """Normally distributed, three wide, so that both tails and the middle of σ are met."""
        generator = torch.Generator().manual_seed(seed)
        drawn = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes[variant])
        return tuple(operand.to(dtype).to(device) for operand in drawn)

    def truth(self, *operands: Tensor) -> Tensor:
        """The result, in float64."""
        maths, parts = _exact_numbers(self.parts(*operands))
        with mpmath.workdps(40):
            return _rounded(self.exact(maths, *parts))

    def true_gradients(self, grad_out: Tensor, *operands: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each part, the gradient, and the sum of the magnitudes of what it is the sum of; in float64.

        silu'(x) has a root at -1.28, and the gradient of a broadcast gate adds numbers of both signs: close to 0 a
        result can be right only to the digits of what was added.
        """
        parts = self.parts(*operands)
        maths, numbers = _exact_numbers((grad_out, *parts))
        with mpmath.workdps(40):
            gradients = self.exact_gradients(maths, *numbers)
            return [
                (_summed(sum(terms), part.shape), _summed(sum(map(abs, terms)), part.shape))
                for terms, part in zip(gradients, parts, strict=True)
            ]

    def assert_gradients_within(
        self, ulps: float, gradients: Sequence[Tensor], grad_out: Tensor, *operands: Tensor
    ) -> None:
        """Of the true gradients, in ulps of the magnitudes of what each is the sum of."""
        truth = self.true_gradients(grad_out, *operands)
        for gradient, (exact, magnitude) in zip(self.parts(*gradients), truth, strict=True):
            assert gradient.shape == exact.shape
            error = (gradient.cpu().double() - exact).abs() / ulp_of(magnitude, gradient.dtype)
            assert bool((error <= ulps).all()), f"{error.max():.2f} ulp off"

    def check(self, operands: tuple[Tensor, ...], launches: list[str], gradient: Gradient = as_laid_out) -> None:
        """A kernel's result and gradients are true, PyTorch's are its bits, strides are PyTorch's either way.

        Gradients of a result that our Function has from PyTorch's operators are as good as PyTorch's, which lose digits
        in the tails. The operands are left as they were.
        """
        leaves, theirs = ([operand.detach().requires_grad_() for operand in operands] for _ in range(2))
        before = [operand.clone() for operand in operands]
        out, expected = self.ours(*leaves), self.theirs(*theirs)
        values = torch.linspace(-2, 3, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
        grad_out = gradient(values, out.detach())
        out.backward(grad_out)
        expected.backward(grad_out)
        gradients, of_theirs = ([x.grad for x in of_form if x.grad is not None] for of_form in (leaves, theirs))
        for x, of_pytorch in zip((out, *gradients), (expected, *of_theirs), strict=True):
            assert (x.shape, x.dtype, x.device) == (of_pytorch.shape, of_pytorch.dtype, of_pytorch.device)
            assert x.stride() == of_pytorch.stride()
        forward, backward = zip(self.kernels, self.launched(out.dtype), strict=True)
        if {*forward} & {*launches}:
            assert_within_ulps(out, self.truth(*operands), PRODUCT_ULPS[out.dtype])
        else:
            assert torch.equal(out, expected)
        if {*backward} & {*launches}:
            self.assert_gradients_within(PRODUCT_GRADIENT_ULPS[out.dtype], gradients, grad_out, *operands)
        elif type(out.grad_fn) is type(expected.grad_fn):
            assert all(map(torch.equal, gradients, of_theirs))
        else:
            exact = [truth.to(out.dtype) for truth, _ in self.true_gradients(grad_out, *operands)]
            torch.testing.assert_close(list(self.parts(*gradients)), exact, check_device=False)
        assert all(map(torch.equal, operands, before))


def outcome(op: Op, *args: Any, **options: Any) -> Any:
    """The result, or the type and the message of the error."""
    try:
        return op(*args, **options)
    except Exception as error:
        return type(error), str(error)


def _exact_numbers(tensors: tuple[Tensor, ...]) -> tuple[Maths, list[Number]]:
    """The tensors in float64, where they are that already as mpmath's numbers, and the maths for them."""
    if tensors[0].dtype != torch.float64:
        return FLOAT64, [tensor.detach().cpu().double() for tensor in tensors]
    to_mpmath = np.vectorize(mpmath.mpf, otypes=[object])
    return MPMATH, [np.asarray(to_mpmath(tensor.detach().cpu().numpy()), dtype=object) for tensor in tensors]


def _rounded(value: Number) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, dtype=object).astype(np.float64))


def _summed(value: Number, shape: tuple[int, ...]) -> Tensor:
    """The sum over what was broadcast."""
    if isinstance(value, Tensor):
        return value.sum_to_size(shape)
    value = np.asarray(value, dtype=object)  # of no dimension, NumPy makes numbers
    leading = value.ndim - len(shape)
    ones = tuple(d for d, size in enumerate(shape, start=leading) if size == 1)
    return _rounded(np.reshape(value.sum(axis=(*range(leading), *ones), keepdims=True), shape))


def _sigmoid_gate(m: Maths, x: Number, gate: Number) -> Number:
    return x * m.sigmoid(gate)


def _sigmoid_gate_gradients(m: Maths, grad: Number, x: Number, gate: Number) -> tuple[Terms, ...]:
    return (grad * m.sigmoid(gate),), (grad * x * m.sigmoid(gate) * m.sigmoid(-gate),)


def _silu(m: Maths, x: Number, beta: float = 1.0) -> Number:
    return x * m.sigmoid(beta * x)


def _silu_terms(m: Maths, x: Number, beta: float = 1.0) -> Terms:
    return m.sigmoid(beta * x), beta * x * m.sigmoid(beta * x) * m.sigmoid(-beta * x)


def _silu_gradients(m: Maths, grad: Number, x: Number, beta: float = 1.0) -> tuple[Terms, ...]:
    return (tuple(grad * term for term in _silu_terms(m, x, beta)),)


class Clamped(NamedTuple):
    """swiglu with constants; a limit of infinity is none."""

    alpha: float
    limit: float
    up_offset: float

    def ours(self, *operands: Tensor, interleaved: bool = False) -> Tensor:
        return swiglu(*operands, **self._asdict(), interleaved=interleaved)

    def theirs(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit) + self.up_offset
        return gate * torch.sigmoid(self.alpha * gate) * up

    def _clamped(self, gate: Number, up: Number) -> tuple[Number, Number]:
        return gate.clip(max=self.limit), up.clip(-self.limit, self.limit) + self.up_offset

    def _passes(self, x: Number) -> Number:
        """Whether a clamp passes the gradient on; at the limit itself PyTorch does so up to 2.13."""
        return x <= self.limit if CLAMP_PASSES_AT_BOUND or self.limit == torch.inf else x < self.limit

    def exact(self, m: Maths, gate: Number, up: Number) -> Number:
        gate, up = self._clamped(gate, up)
        return _silu(m, gate, self.alpha) * up

    def exact_gradients(self, m: Maths, grad: Number, gate: Number, up: Number) -> tuple[Terms, ...]:
        to_gate, to_up = grad * self._passes(gate), grad * self._passes(abs(up))
        gate, up = self._clamped(gate, up)
        terms = tuple(to_gate * up * term for term in _silu_terms(m, gate, self.alpha))
        return terms, (to_up * _silu(m, gate, self.alpha),)


# gpt-oss's, but for the limit, which is such that a third of the operands is clamped.
CLAMPED = Clamped(alpha=1.702, limit=2.5, up_offset=1.0)
PLAIN = Clamped(alpha=1.0, limit=torch.inf, up_offset=0.0)

SILU_KERNELS, SWIGLU_KERNELS = ("silu", "silu_backward"), ("swiglu", "swiglu_backward")
GATE_KERNELS = ("sigmoid_gate", "sigmoid_gate_backward")
ONE: dict[str, Shapes] = {"matrix": ((3, 6),), "scalar": ((),), "image": ((2, 3, 4, 5),)}
TWO = {variant: shapes * 2 for variant, shapes in ONE.items()}
PACKED: dict[str, Shapes] = {"matrix": ((3, 6),), "vector": ((4,),), "image": ((2, 3, 4, 6),)}
BROADCAST: dict[str, Shapes] = {
    "per channel": ((2, 3, 8, 9), (2, 3, 1, 1)),
    "per channel, all samples": ((2, 3, 8, 9), (3, 1, 1)),
    "per pixel": ((2, 3, 8, 9), (2, 1, 8, 9)),
    "per feature": ((3, 6), (6,)),
    "per row": ((3, 6), (3, 1)),
    "per head": ((5, 3, 130), (5, 3, 1)),
    "per sample and feature": ((2, 9, 15), (2, 1, 15)),
    "one number": ((3, 6), ()),
    "one number of two dimensions": ((3, 6), (1, 1)),
}


def _packed_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _sloped(name: str, ours: Op, module: Callable[[], nn.Module], beta: float) -> Member:
    exact, exact_gradients = partial(_silu, beta=beta), partial(_silu_gradients, beta=beta)

    def theirs(x: Tensor) -> Tensor:
        return x * torch.sigmoid(beta * x)

    return Member(name, ours, module, theirs, SILU_KERNELS, ONE, exact, exact_gradients, slope=beta)


def _glu(dim: int, shapes: dict[str, Shapes]) -> Member:
    ours, module, theirs = partial(glu, dim=dim), partial(GLU, dim=dim), partial(F.glu, dim=dim)
    exact, exact_gradients = _sigmoid_gate, _sigmoid_gate_gradients
    return Member(f"glu of dimension {dim}", ours, module, theirs, GATE_KERNELS, shapes, exact, exact_gradients, dim)


SIGMOID_GATE = Member(
    "sigmoid_gate",
    sigmoid_gate,
    SigmoidGate,
    lambda x, gate: x * torch.sigmoid(gate),
    GATE_KERNELS,
    TWO | BROADCAST,
    _sigmoid_gate,
    _sigmoid_gate_gradients,
)
SWIGLU = Member(
    "swiglu",
    swiglu,
    SwiGLU,
    lambda gate, up: F.silu(gate) * up,
    SWIGLU_KERNELS,
    TWO,
    PLAIN.exact,
    PLAIN.exact_gradients,
)
CLAMPED_SWIGLU = Member(
    "clamped swiglu",
    CLAMPED.ours,
    partial(SwiGLU, **CLAMPED._asdict()),
    CLAMPED.theirs,
    SWIGLU_KERNELS,
    TWO,
    CLAMPED.exact,
    CLAMPED.exact_gradients,
    slope=CLAMPED.alpha,
)
MEMBERS = [
    Member("silu", silu, SiLU, F.silu, SILU_KERNELS, ONE, _silu, _silu_gradients),
    _sloped("quick_gelu", quick_gelu, QuickGELU, 1.702),
    _sloped("silu of a negative beta", partial(silu, beta=-0.7), partial(SiLU, beta=-0.7), -0.7),
    SIGMOID_GATE,
    SWIGLU,
    replace(SWIGLU, name="packed swiglu", theirs=_packed_swiglu, shapes=PACKED, halved=-1),
    CLAMPED_SWIGLU,
    replace(
        CLAMPED_SWIGLU,
        name="interleaved swiglu",
        ours=partial(CLAMPED.ours, interleaved=True),
        module=partial(SwiGLU, **CLAMPED._asdict(), interleaved=True),
        theirs=lambda x: CLAMPED.theirs(x[..., ::2], x[..., 1::2]),
        shapes=PACKED,
        halved=-1,
        interleaved=True,
        kernels_of_pairs=("interleaved_swiglu", "interleaved_swiglu_backward"),
    ),
    _glu(-1, PACKED),
    _glu(1, {"matrix": ((3, 6),), "image": ((2, 4, 8, 9),), "one image": ((1, 4, 6, 7),)}),
    _glu(0, {"matrix": ((4, 5),), "image": ((4, 3, 4, 5),)}),
]

every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
every_call = pytest.mark.parametrize(
    ("member", "variant"), [pytest.param(m, v, id=f"{m.name}-{v}") for m in MEMBERS for v in m.shapes]
)
every_broadcast = pytest.mark.parametrize("variant", BROADCAST)
