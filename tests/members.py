"""The family's table of tests: a row for each op, with PyTorch's form of it and its formula over exact numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.reference import sigmoid64, ulp_of
from sigmoid_op import GLU, QuickGELU, SigmoidGate, SiLU, SwiGLU, glu, quick_gelu, sigmoid_gate, silu, swiglu

Op = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]
Number = Any  # a float64 tensor, or a NumPy array of mpmath's numbers: a formula is written once for both
Terms = tuple[Number, ...]


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
        maths, (grad, *numbers) = _exact_numbers((grad_out, *parts))
        with mpmath.workdps(40):
            gradients = self.exact_gradients(maths, grad, *numbers)
            return [
                (
                    _rounded(_sum_to(sum(terms[1:], start=terms[0]), part.shape)),
                    _rounded(_sum_to(sum((abs(term) for term in terms[1:]), start=abs(terms[0])), part.shape)),
                )
                for terms, part in zip(gradients, parts, strict=True)
            ]

    def assert_gradients_within(
        self, ulps: float, gradients: tuple[Tensor, ...], grad_out: Tensor, *operands: Tensor
    ) -> None:
        """Of the true gradients, in ulps of the magnitudes of what each is the sum of."""
        truth = self.true_gradients(grad_out, *operands)
        for gradient, (exact, magnitude) in zip(self.parts(*gradients), truth, strict=True):
            assert gradient.shape == exact.shape
            error = (gradient.cpu().double() - exact).abs() / ulp_of(magnitude, gradient.dtype)
            assert bool((error <= ulps).all()), f"{error.max():.2f} ulp off"


def _exact_numbers(tensors: tuple[Tensor, ...]) -> tuple[Maths, list[Number]]:
    """The tensors in float64, where they are that already as mpmath's numbers, and the maths for them."""
    if tensors[0].dtype != torch.float64:
        return FLOAT64, [tensor.detach().cpu().double() for tensor in tensors]
    to_mpmath = np.vectorize(mpmath.mpf, otypes=[object])
    return MPMATH, [np.asarray(to_mpmath(tensor.detach().cpu().numpy()), dtype=object) for tensor in tensors]


def _sum_to(value: Number, shape: tuple[int, ...]) -> Number:
    """The sum over what was broadcast."""
    value = (
        value if isinstance(value, Tensor) else np.asarray(value, dtype=object)
    )  # of no dimension, NumPy makes numbers
    leading = value.ndim - len(shape)
    ones = tuple(d for d, size in enumerate(shape, start=leading) if size == 1)
    return value.sum(axis=(*range(leading), *ones), keepdims=True).reshape(shape) if leading or ones else value


def _rounded(value: Number) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, dtype=object).astype(np.float64))


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


def _swiglu(m: Maths, gate: Number, up: Number) -> Number:
    return gate * m.sigmoid(gate) * up


def _swiglu_gradients(m: Maths, grad: Number, gate: Number, up: Number) -> tuple[Terms, ...]:
    return tuple(grad * up * term for term in _silu_terms(m, gate)), (grad * gate * m.sigmoid(gate),)


def _between(x: Number, low: float, high: float) -> Number:
    return x.clamp(low, high) if isinstance(x, Tensor) else np.clip(x, low, high)


class Clamped(NamedTuple):
    """swiglu with constants."""

    alpha: float
    limit: float
    up_offset: float

    def ours(self, *operands: Tensor, interleaved: bool = False) -> Tensor:
        return swiglu(*operands, **self._asdict(), interleaved=interleaved)

    def theirs(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit) + self.up_offset
        return gate * torch.sigmoid(self.alpha * gate) * up

    def interleaved(self, x: Tensor) -> Tensor:
        return self.theirs(x[..., ::2], x[..., 1::2])

    def _clamped(self, gate: Number, up: Number) -> tuple[Number, Number]:
        return _between(gate, -np.inf, self.limit), _between(up, -self.limit, self.limit) + self.up_offset

    def exact(self, m: Maths, gate: Number, up: Number) -> Number:
        gate, up = self._clamped(gate, up)
        return _silu(m, gate, self.alpha) * up

    def exact_gradients(self, m: Maths, grad: Number, gate: Number, up: Number) -> tuple[Terms, ...]:
        to_gate, to_up = grad * (gate <= self.limit), grad * (abs(up) <= self.limit)
        gate, up = self._clamped(gate, up)
        terms = tuple(to_gate * up * term for term in _silu_terms(m, gate, self.alpha))
        return terms, (to_up * _silu(m, gate, self.alpha),)


# gpt-oss's, but for the limit, which is such that a third of the operands is clamped.
CLAMPED = Clamped(alpha=1.702, limit=2.5, up_offset=1.0)


def _packed_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def _glu(dim: int, shapes: dict[str, Shapes]) -> Member:
    ours, module, theirs = partial(glu, dim=dim), partial(GLU, dim=dim), partial(F.glu, dim=dim)
    kernels = ("sigmoid_gate", "sigmoid_gate_backward")
    name = f"glu of dimension {dim}"
    exact, exact_gradients = _sigmoid_gate, _sigmoid_gate_gradients
    return Member(name, ours, module, theirs, kernels, shapes, exact, exact_gradients, dim)


MEMBERS = [
    Member(
        "silu",
        silu,
        SiLU,
        F.silu,
        ("silu", "silu_backward"),
        {"matrix": ((3, 6),), "scalar": ((),), "image": ((2, 3, 4, 5),)},
        _silu,
        _silu_gradients,
    ),
    Member(
        "quick_gelu",
        quick_gelu,
        QuickGELU,
        lambda x: x * torch.sigmoid(1.702 * x),
        ("silu", "silu_backward"),
        {"matrix": ((3, 6),), "image": ((2, 3, 4, 5),)},
        partial(_silu, beta=1.702),
        partial(_silu_gradients, beta=1.702),
        slope=1.702,
    ),
    Member(
        "silu of a negative beta",
        partial(silu, beta=-0.7),
        partial(SiLU, beta=-0.7),
        lambda x: x * torch.sigmoid(-0.7 * x),
        ("silu", "silu_backward"),
        {"matrix": ((3, 6),), "image": ((2, 3, 4, 5),)},
        partial(_silu, beta=-0.7),
        partial(_silu_gradients, beta=-0.7),
        slope=-0.7,
    ),
    Member(
        "sigmoid_gate",
        sigmoid_gate,
        SigmoidGate,
        lambda x, gate: x * torch.sigmoid(gate),
        ("sigmoid_gate", "sigmoid_gate_backward"),
        {
            "matrix": ((3, 6), (3, 6)),
            "scalar": ((), ()),
            "image": ((2, 3, 4, 5), (2, 3, 4, 5)),
            "per channel": ((2, 3, 8, 9), (2, 3, 1, 1)),
            "per channel, all samples": ((2, 3, 8, 9), (3, 1, 1)),
            "per pixel": ((2, 3, 8, 9), (2, 1, 8, 9)),
            "per feature": ((3, 6), (6,)),
            "per row": ((3, 6), (3, 1)),
            "per head": ((5, 3, 130), (5, 3, 1)),
            "per sample and feature": ((2, 9, 15), (2, 1, 15)),
            "one number": ((3, 6), ()),
            "one number of two dimensions": ((3, 6), (1, 1)),
        },
        _sigmoid_gate,
        _sigmoid_gate_gradients,
    ),
    Member(
        "swiglu",
        swiglu,
        SwiGLU,
        lambda gate, up: F.silu(gate) * up,
        ("swiglu", "swiglu_backward"),
        {"matrix": ((3, 6), (3, 6)), "scalar": ((), ()), "image": ((2, 3, 4, 5), (2, 3, 4, 5))},
        _swiglu,
        _swiglu_gradients,
    ),
    Member(
        "packed swiglu",
        swiglu,
        SwiGLU,
        _packed_swiglu,
        ("swiglu", "swiglu_backward"),
        {"matrix": ((3, 6),), "vector": ((4,),), "image": ((2, 3, 4, 6),)},
        _swiglu,
        _swiglu_gradients,
        -1,
    ),
    Member(
        "clamped swiglu",
        CLAMPED.ours,
        partial(SwiGLU, **CLAMPED._asdict()),
        CLAMPED.theirs,
        ("swiglu", "swiglu_backward"),
        {"matrix": ((3, 6), (3, 6)), "image": ((2, 3, 4, 5), (2, 3, 4, 5))},
        CLAMPED.exact,
        CLAMPED.exact_gradients,
        slope=CLAMPED.alpha,
    ),
    Member(
        "interleaved swiglu",
        partial(CLAMPED.ours, interleaved=True),
        partial(SwiGLU, **CLAMPED._asdict(), interleaved=True),
        CLAMPED.interleaved,
        ("swiglu", "swiglu_backward"),
        {"matrix": ((3, 6),), "vector": ((4,),), "image": ((2, 3, 4, 6),)},
        CLAMPED.exact,
        CLAMPED.exact_gradients,
        -1,
        interleaved=True,
        slope=CLAMPED.alpha,
        kernels_of_pairs=("interleaved_swiglu", "interleaved_swiglu_backward"),
    ),
    _glu(-1, {"matrix": ((3, 6),), "vector": ((4,),), "image": ((2, 3, 4, 6),)}),
    _glu(1, {"matrix": ((3, 6),), "image": ((2, 4, 8, 9),), "one image": ((1, 4, 6, 7),)}),
    _glu(0, {"matrix": ((4, 5),), "image": ((4, 3, 4, 5),)}),
]

every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
every_call = pytest.mark.parametrize(
    ("member", "variant"), [pytest.param(m, v, id=f"{m.name}-{v}") for m in MEMBERS for v in m.shapes]
)

SIGMOID_GATE = next(member for member in MEMBERS if member.name == "sigmoid_gate")
SWIGLU = next(member for member in MEMBERS if member.name == "swiglu")
every_broadcast = pytest.mark.parametrize("variant", [v for v, (x, gate) in SIGMOID_GATE.shapes.items() if x != gate])
