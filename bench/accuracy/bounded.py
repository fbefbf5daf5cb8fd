"""The 16-bit kernels' error on any NVIDIA GPU, bounded on paper: every result that the PTX manual's bounds permit.

Not a measurement. ``ex2.approx.ftz.f32`` is at most 2 ulp from the correctly rounded 2^a, ``rcp.approx.ftz.f32`` at
most 1 ulp from 1/d, both over the full range and with subnormal results flushed to zero; every other operation is
IEEE. So for each input there are 5 · 3 possible results, and all of them are compared with the truth.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import dtype_name
from bench.reference import backward64, correctly_rounded, derivative64, every_16bit, sigmoid64, ulp_error

EX2_ULPS = 2  # PTX ISA, 9.7.3.21, ex2: "maximum ulp error is 2 ulp from correctly rounded result"
RCP_ULPS = 1  # PTX ISA, 9.7.3.13, rcp: "maximum ulp error is 1"
# mantissa_bits and scale_exponent of kernels/scalar.py, _sigmoid_16bit
PARAMETERS = {torch.float16: (10, 0), torch.bfloat16: (7, -8)}


@dataclass(frozen=True)
class Bound:
    """Over all non-NaN inputs: how many results must be the nearest number, and the largest errors possible, in ulps.

    The gradient is that of ``exact_grad``, where the true derivative is a normal number.
    """

    dtype: str
    inputs: int
    certainly_nearest: int
    max_ulp: float
    gradient_max_ulp: float


def bound(dtype: torch.dtype) -> Bound:
    x = every_16bit(dtype)
    x = x[~x.isnan()]
    exact, derivative = sigmoid64(x), derivative64(x)
    nearest = correctly_rounded(exact, dtype)
    normal = derivative >= torch.finfo(dtype).tiny
    certain = torch.ones_like(x, dtype=torch.bool)
    max_ulp = gradient_max_ulp = 0.0
    for out in possible_results(x):
        certain &= out == nearest
        max_ulp = max(max_ulp, float(ulp_error(out, exact).max()))
    for t in possible_results(-x.abs()):
        gradient = correctly_rounded(backward64(torch.ones_like(t), t), dtype)  # t·(1 - t)
        gradient_max_ulp = max(gradient_max_ulp, float(ulp_error(gradient, derivative)[normal].max()))
    return Bound(dtype_name(dtype), x.numel(), int(certain.sum()), max_ulp, gradient_max_ulp)


def possible_results(x: Tensor) -> Iterator[Tensor]:
    """σ(x) as a GPU may compute it, once for each combination of the two instructions' errors."""
    mantissa_bits, scale_exponent = PARAMETERS[x.dtype]
    log2_e = 1.4426950408889634
    factor = torch.where(x.abs() < 2.0**-5, log2_e * (1.0 - 2.0 ** (-mantissa_bits - 1.5)), log2_e)
    factor = factor.float().double()
    scale = 2.0**scale_exponent
    power = _flushed(torch.exp2((x.double() * -factor + scale_exponent).float().double()).float())
    for ex2_off in range(-EX2_ULPS, EX2_ULPS + 1):
        reciprocal = _flushed(1.0 / (scale + _moved(power, ex2_off)))
        for rcp_off in range(-RCP_ULPS, RCP_ULPS + 1):
            yield (_moved(reciprocal, rcp_off) * scale).to(x.dtype)


def _moved(x: Tensor, ulps: int) -> Tensor:
    """The number ``ulps`` places on from each positive normal one. Zero and infinity are exact, and stay."""
    moved = _flushed((x.view(torch.int32) + ulps).view(torch.float32))
    return torch.where((x > 0) & x.isfinite(), moved, x)


def _flushed(x: Tensor) -> Tensor:
    return torch.where(x < torch.finfo(torch.float32).tiny, 0.0, x)
