"""What ``python -m bench accuracy`` measures: every 16-bit input, float32 at a stride, a sample of float64."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import mpmath
import torch
from torch import Tensor

from bench.cases import dtype_name
from bench.reference import backward64, correctly_rounded, derivative64, every_16bit, sigmoid64, ulp_of

TORCH, OURS, EXACT = "torch", "sigmoid_op", "sigmoid_op, exact_grad"
# Where PyTorch's CPU kernel computes a bfloat16 gradient in float32, its CUDA kernel rounds after each operation.
TORCH_ON_CUDA = "torch's CUDA formula, recomputed"
FORWARD, BACKWARD, GRADIENT = "σ(x)", "grad_out·out·(1 - out) of the given out", "σ'(x)"
FLOAT64_POINTS = 2_000
NEIGHBOURS = 2**17
GRAD_OUTS = 16

# The picture's intervals of x: where a gradient dies, and some way before.
CURVE_REACH, CURVE_INTERVALS = 20.0, 160


@dataclass(frozen=True)
class Implementation:
    """``forward(x)`` gives the result, or also what ``backward(grad_out, saved)`` takes instead of it."""

    name: str
    forward: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what is saved for backward."""
        out = self.forward(x)
        return out if isinstance(out, tuple) else (out, out)


@dataclass
class Tally:
    """What was found of one implementation: counts over ``inputs``, errors in ulps of the result's dtype.

    ``misses``: results that are not the nearest number. ``flushed``: zeros where the nearest number is subnormal; they
    are misses, but stand apart from ``max_ulp``. ``decreases``: results below that of the next smaller x.
    ``first_dead``: the smallest positive x whose gradient is 0.
    """

    dtype: str
    quantity: str
    implementation: str
    inputs: int = 0
    max_ulp: float = 0.0
    max_ulp_at: float | None = None
    misses: int = 0
    flushed: int = 0
    decreases: int | None = None
    first_dead: float | None = None

    def add(self, at: Tensor, result: Tensor, exact: Tensor, rest: Tensor | float = 0.0) -> None:
        """Count results against their exact values, of which ``rest`` is what float64 leaves out, in ulps.

        ``at`` is what the report calls each of them by.
        """
        if not result.numel():
            return
        nearest = correctly_rounded(exact, result.dtype)
        flushed = (result == 0) & (nearest != 0) & (nearest.abs() < torch.finfo(result.dtype).tiny)
        error = ((result.double() - exact) / ulp_of(exact, result.dtype) - rest).abs().nan_to_num(nan=torch.inf)
        error[flushed] = 0.0
        worst = int(error.argmax())
        if self.max_ulp_at is None or error[worst] > self.max_ulp:
            self.max_ulp, self.max_ulp_at = float(error[worst]), float(at[worst])
        self.inputs += result.numel()
        self.misses += int((result != nearest).sum())
        self.flushed += int(flushed.sum())


@dataclass
class Nans:
    """Of NaN inputs: how many results are NaN, and how many have the bits of PyTorch's result on the same device."""

    dtype: str
    inputs: int = 0
    kept: int = 0
    same_bits: int = 0


@dataclass
class Sweep:
    """Everything found for one dtype. ``curves``: the largest relative error of σ'(x) in each interval of x."""

    tallies: list[Tally]
    nans: Nans | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)


def implementations() -> list[Implementation]:
    """PyTorch's operators and the kernels themselves, so that none can be taken for another. Needs Triton."""
    from sigmoid_op.kernels import sigmoid as kernels

    return [
        Implementation(TORCH, torch.sigmoid, torch.ops.aten.sigmoid_backward.default),
        Implementation(OURS, kernels.launch_sigmoid, kernels.launch_sigmoid_backward),
        Implementation(EXACT, kernels.launch_sigmoid_exact, kernels.launch_sigmoid_exact_backward),
    ]


def sweep(dtype: torch.dtype, device: torch.device, stride: int, chunk: int = 2**22) -> Sweep:
    """Forward and gradient at every ``stride``-th number of ``dtype``, in ascending order, against float64."""
    found = implementations()
    swept = _compare(found, dtype, ascending(dtype, device, stride, chunk), _by_float64, stride)
    if device.type == "cpu" and dtype.itemsize == 2:
        found.append(Implementation(TORCH_ON_CUDA, torch.sigmoid, lambda g, out: g * (1 - out) * out))
    swept.tallies += [_given_out(dtype, device, f) for f in found if f.name != EXACT]
    swept.nans = _nans(dtype, device, stride, found)
    return swept


def sweep_float64(device: torch.device) -> Sweep:
    """A dense sample, subnormal results, and neighbours of the places where the argument reduction is least accurate.

    Against mpmath with 40 digits; so each error is known to a small part of an ulp. Decreases are counted in random
    pairs of neighbours from -40 to 40.
    """
    lower = 80 * torch.rand(NEIGHBOURS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 40
    lower = lower.to(device)
    upper = torch.nextafter(lower, torch.full_like(lower, torch.inf))
    dense = torch.linspace(-746, 746, FLOAT64_POINTS, dtype=torch.float64)
    core = torch.linspace(-3, 3, FLOAT64_POINTS // 4, dtype=torch.float64)
    half_way = (torch.arange(-1074, 1075, 11, dtype=torch.float64) + 0.5) * 0.6931471805599453
    adverse = torch.cat([torch.nextafter(half_way, torch.full_like(half_way, s * torch.inf)) for s in (-1, 1)])
    small = torch.logspace(-17, 0, FLOAT64_POINTS // 8, dtype=torch.float64)
    x = torch.cat([dense, core, adverse, small, -small]).sort().values.to(device)
    found = implementations()
    swept = _compare(found, torch.float64, [x], _by_mpmath)
    for f, tally in zip(found, swept.tallies[: len(found)], strict=True):
        tally.decreases = int((f(upper)[0] < f(lower)[0]).sum())
    swept.curves = {}
    return swept


def _compare(
    found: list[Implementation],
    dtype: torch.dtype,
    numbers: Iterable[Tensor],
    truth: Callable[[Tensor], list[Tensor]],
    stride: int = 1,
) -> Sweep:
    """Results, then gradients, of each implementation, over chunks of ascending numbers."""
    name = dtype_name(dtype)
    forwards = [Tally(name, FORWARD, f.name, decreases=0) for f in found]
    gradients = [Tally(name, GRADIENT, f.name) for f in found]
    curves: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for x in numbers:
        exact, rest, derivative, rest_of_derivative = truth(x)
        normal = derivative >= torch.finfo(dtype).tiny
        for f, forward, gradient in zip(found, forwards, gradients, strict=True):
            out, saved = f(x)
            forward.add(x, out, exact, rest)
            decreases = torch.diff(out, prepend=last.get(f.name, out[:1])) < 0
            forward.decreases = (forward.decreases or 0) + int(decreases.sum())
            last[f.name] = out[-1:]
            grad = f.backward(torch.ones_like(x), saved)
            gradient.add(x[normal], grad[normal], derivative[normal], rest_of_derivative[normal])
            dead = x[(grad == 0) & (x > 0)]
            if gradient.first_dead is None and dead.numel():
                gradient.first_dead = _first_dead(f, dead[0], stride)
            curve = curves.setdefault(f.name, torch.zeros(CURVE_INTERVALS, dtype=torch.float64, device=x.device))
            _widen_curve(curve, x, grad, derivative)
    drawn = {name: [float(f"{error:.3g}") for error in curve.tolist()] for name, curve in curves.items()}
    return Sweep([*forwards, *gradients], curves=drawn)


def _by_float64(x: Tensor) -> list[Tensor]:
    exact, derivative = sigmoid64(x), derivative64(x)
    nothing = torch.zeros_like(exact)
    return [exact, nothing, derivative, nothing]


def _by_mpmath(x: Tensor) -> list[Tensor]:
    """σ and σ' as the nearest float64, each with what that leaves out, in ulps."""
    rows = []
    with mpmath.workdps(40):
        for at in x.tolist():
            t = mpmath.exp(-abs(mpmath.mpf(at)))
            values = (t if at < 0 else 1) / (1 + t), t / (1 + t) ** 2
            rows.append([part for value in values for part in _split(value)])
    return list(torch.tensor(rows, dtype=torch.float64, device=x.device).unbind(1))


def _split(value: mpmath.mpf) -> tuple[float, float]:
    ulp = mpmath.mpf(math.ulp(float(value)))
    nearest = mpmath.nint(value / ulp) * ulp  # mpmath's own conversion rounds a subnormal number twice
    return float(nearest), float((value - nearest) / ulp)


def _integers(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """The integers of the same width, and the one with the bits of infinity."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return integer, int(torch.tensor(torch.inf, dtype=dtype).view(integer))


def ascending(dtype: torch.dtype, device: torch.device, stride: int, chunk: int) -> Iterator[Tensor]:
    """Every ``stride``-th number of a 16- or 32-bit dtype from -inf to inf, both zeros included, chunk by chunk."""
    integer, infinity = _integers(dtype)
    n = 2 * (infinity + 1)
    for start in range(0, n, chunk * stride):
        index = torch.arange(start, min(start + chunk * stride, n), stride, device=device)
        bits = torch.where(index <= infinity, infinity - index + torch.iinfo(integer).min, index - infinity - 1)
        yield bits.to(integer).view(dtype)


def _first_dead(f: Implementation, found: Tensor, stride: int) -> float:
    """The smallest x with a gradient of 0 among ``found`` and the numbers that the stride left out before it."""
    integer, _ = _integers(found.dtype)
    x = (found.view(integer) - torch.arange(stride - 1, -1, -1, dtype=integer, device=found.device)).view(found.dtype)
    gradient = f.backward(torch.ones_like(x), f(x)[1])
    return float(x[gradient == 0][0])


def _widen_curve(curve: Tensor, x: Tensor, gradient: Tensor, derivative: Tensor) -> None:
    """Raise each interval of ``curve`` to the largest relative error among its ``x``, which are in ascending order.

    So an interval is a slice of them. A scatter would have half of all float32, those around 0, meet at two addresses.
    """
    error = (gradient.double() - derivative).abs() / derivative
    place = (x.double() + CURVE_REACH) * (CURVE_INTERVALS / (2 * CURVE_REACH))
    ends = torch.arange(CURVE_INTERVALS + 1, dtype=place.dtype, device=place.device)
    for i, (start, end) in enumerate(pairwise(torch.searchsorted(place, ends).tolist())):
        if start < end:
            curve[i] = torch.maximum(curve[i], error[start:end].max())


def _given_out(dtype: torch.dtype, device: torch.device, f: Implementation) -> Tally:
    """grad_in against the product of the given tensors: for 16-bit dtypes every out from 0 to 1 with each grad_out."""
    tally = Tally(dtype_name(dtype), BACKWARD, f.name)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([torch.tensor([1.0, -1.0]), torch.randn(GRAD_OUTS - 2, generator=generator)])
    out = every_16bit(dtype) if dtype.itemsize == 2 else torch.linspace(0, 1, 2**14, dtype=dtype)
    out = out[(out >= 0) & (out <= 1)].to(device)
    for value in drawn.tolist():
        grad_out = torch.full_like(out, value)
        exact = backward64(grad_out, out)
        normal = (exact.abs() >= torch.finfo(dtype).tiny) | (exact == 0)
        tally.add(out[normal], f.backward(grad_out, out)[normal], exact[normal])
    return tally


def _nans(dtype: torch.dtype, device: torch.device, stride: int, found: list[Implementation]) -> Nans:
    integer, infinity = _integers(dtype)
    positive = torch.arange(infinity + 1, torch.iinfo(integer).max + 1, stride, device=device)
    x = torch.cat([positive, positive + torch.iinfo(integer).min]).to(integer).view(dtype)
    theirs, ours = (f(x)[0] for f in found[:2])
    same = (ours.view(integer) == theirs.view(integer)).sum()
    return Nans(dtype_name(dtype), x.numel(), int(ours.isnan().sum()), int(same))
