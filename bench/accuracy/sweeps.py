"""What ``python -m bench accuracy`` measures: every 16-bit input, float32 at a stride, a sample of float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import mpmath
import torch
from torch import Tensor

from bench.cases import dtype_name
from bench.reference import backward64, correctly_rounded, derivative64, every_16bit, sigmoid64, ulp_error

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
    """``forward(x)`` gives the result and what is saved; ``backward(grad_out, saved)`` the gradient."""

    name: str
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]


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

    def add(self, at: Tensor, result: Tensor, exact: Tensor) -> None:
        """Count results against their exact values; ``at`` is what the report calls each of them by."""
        if not result.numel():
            return
        nearest = correctly_rounded(exact, result.dtype)
        flushed = (result == 0) & (nearest != 0) & (nearest.abs() < torch.finfo(result.dtype).tiny)
        error = torch.where(flushed, 0.0, ulp_error(result, exact))
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

    def saves_out(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def forward_and_saved(x: Tensor) -> tuple[Tensor, Tensor]:
            out = forward(x)
            return out, out

        return forward_and_saved

    return [
        Implementation(TORCH, saves_out(torch.sigmoid), torch.ops.aten.sigmoid_backward.default),
        Implementation(OURS, saves_out(kernels.launch_sigmoid), kernels.launch_sigmoid_backward),
        Implementation(EXACT, kernels.launch_sigmoid_exact, kernels.launch_sigmoid_exact_backward),
    ]


def sweep(dtype: torch.dtype, device: torch.device, stride: int, chunk: int = 2**22) -> Sweep:
    """Forward and gradient at every ``stride``-th number of ``dtype``, in ascending order, against float64."""
    found = implementations()
    name = dtype_name(dtype)
    forwards = {f.name: Tally(name, FORWARD, f.name, decreases=0) for f in found}
    gradients = {f.name: Tally(name, GRADIENT, f.name) for f in found}
    last = dict.fromkeys(forwards, torch.zeros(1, dtype=dtype, device=device))
    curves = {f.name: torch.zeros(CURVE_INTERVALS, dtype=torch.float64, device=device) for f in found}
    for x in ascending(dtype, device, stride, chunk):
        exact, derivative = sigmoid64(x), derivative64(x)
        normal = derivative >= torch.finfo(dtype).tiny
        grad_out = torch.ones_like(x)
        for f in found:
            out, saved = f.forward(x)
            tally = forwards[f.name]
            tally.add(x, out, exact)
            tally.decreases = (tally.decreases or 0) + int((torch.diff(out, prepend=last[f.name]) < 0).sum())
            last[f.name] = out[-1:]
            gradient = f.backward(grad_out, saved)
            tally = gradients[f.name]
            tally.add(x[normal], gradient[normal], derivative[normal])
            dead = x[(gradient == 0) & (x > 0)]
            if tally.first_dead is None and dead.numel():
                tally.first_dead = _first_dead(f, dead[0], stride)
            _widen_curve(curves[f.name], x, gradient, derivative)
    given_out = [f for f in found if f.name != EXACT]
    if device.type == "cpu" and dtype.itemsize == 2:
        given_out.append(Implementation(TORCH_ON_CUDA, found[0].forward, lambda g, out: g * (1 - out) * out))
    tallies = [*forwards.values(), *(_given_out(dtype, device, f) for f in given_out), *gradients.values()]
    return Sweep(tallies, _nans(dtype, device, stride, found), {key: c.tolist() for key, c in curves.items()})


def ascending(dtype: torch.dtype, device: torch.device, stride: int, chunk: int) -> Iterator[Tensor]:
    """Every ``stride``-th number of a 16- or 32-bit dtype from -inf to inf, both zeros included, chunk by chunk."""
    wide, narrow = (torch.int64, torch.int32) if dtype == torch.float32 else (torch.int32, torch.int16)
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(narrow))
    n = 2 * (infinity + 1)
    for start in range(0, n, chunk * stride):
        index = torch.arange(start, min(start + chunk * stride, n), stride, dtype=wide, device=device)
        bits = torch.where(index <= infinity, infinity - index + torch.iinfo(narrow).min, index - infinity - 1)
        yield bits.to(narrow).view(dtype)


def _first_dead(f: Implementation, found: Tensor, stride: int) -> float:
    """The smallest x with a gradient of 0 among ``found`` and the numbers that the stride left out before it."""
    narrow = torch.int32 if found.dtype == torch.float32 else torch.int16
    bits = found.view(narrow) - torch.arange(stride - 1, -1, -1, dtype=narrow, device=found.device)
    x = bits.view(found.dtype)
    gradient = f.backward(torch.ones_like(x), f.forward(x)[1])
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
    narrow = torch.int32 if dtype == torch.float32 else torch.int16
    infinity = int(torch.tensor(torch.inf, dtype=dtype).view(narrow))
    positive = torch.arange(infinity + 1, torch.iinfo(narrow).max + 1, stride, device=device)
    x = torch.cat([positive, positive + torch.iinfo(narrow).min]).to(narrow).view(dtype)
    theirs, ours = (f.forward(x)[0] for f in found[:2])
    same = (ours.view(narrow) == theirs.view(narrow)).sum()
    return Nans(dtype_name(dtype), x.numel(), int(ours.isnan().sum()), int(same))


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
    tallies: list[Tally] = []
    gradients: list[Tally] = []
    for f in implementations():
        out, saved = f.forward(x)
        gradient = f.backward(torch.ones_like(x), saved)
        tallies.append(_tally_mpmath(FORWARD, f.name, x, out, _mp_sigmoid))
        tallies[-1].decreases = int((f.forward(upper)[0] < f.forward(lower)[0]).sum())
        normal = derivative64(x) >= torch.finfo(torch.float64).tiny
        gradients.append(_tally_mpmath(GRADIENT, f.name, x[normal], gradient[normal], _mp_derivative))
        dead = x[(gradient == 0) & (x > 0)]
        gradients[-1].first_dead = float(dead[0]) if dead.numel() else None
    return Sweep([*tallies, *gradients])


def _tally_mpmath(
    quantity: str, name: str, x: Tensor, result: Tensor, function: Callable[[mpmath.mpf], mpmath.mpf]
) -> Tally:
    tally = Tally("float64", quantity, name, inputs=x.numel())
    with mpmath.workdps(40):
        for at, value in zip(x.tolist(), result.tolist(), strict=True):
            exact = function(mpmath.mpf(at))
            exponent = max(mpmath.frexp(exact)[1] - 1, -1022)
            error = float(abs(mpmath.mpf(value) - exact) * mpmath.mpf(2) ** (52 - exponent))
            tally.misses += error > 0.5
            if value == 0 and exponent == -1022 and error > 0.5:
                tally.flushed += 1
            elif error > tally.max_ulp:
                tally.max_ulp, tally.max_ulp_at = error, at
    return tally


def _mp_sigmoid(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-x))


def _mp_derivative(x: mpmath.mpf) -> mpmath.mpf:
    t = mpmath.exp(-abs(x))
    return t / (1 + t) ** 2
