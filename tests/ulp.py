"""How far a result is from the truth, in ulps; the truth, in float64 or better; and the one table of tolerances."""

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

from bench.reference import backward64, derivative64, sigmoid64
from bench.reference import correctly_rounded as correctly_rounded
from bench.reference import every_16bit as every_16bit
from bench.reference import ulp_error as ulp_error
from bench.reference import ulp_of as ulp_of

FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALF_DTYPES = [torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)

# Largest error in ulps of the exact result. A correctly rounded result is within 0.5; a 16-bit σ, computed in float32
# and rounded once, exceeds that only where float32 falls on the wrong side of a tie, by less than 0.01. float64 has
# Triton's own exponential; seen: 1.9.
FORWARD_ULPS = {torch.float16: 0.51, torch.bfloat16: 0.51, torch.float32: 1.0, torch.float64: 2.0}
# PyTorch's own forward on the CPU, which the fallback is: up to 2.3 seen in float32.
FALLBACK_FORWARD_ULPS = {**FORWARD_ULPS, torch.float32: 2.5}
# Of grad_out·out·(1 - out) for the given, rounded out: correctly rounded in 16 bits, two roundings in float32, three in
# float64.
BACKWARD_ULPS = {torch.float16: 0.5, torch.bfloat16: 0.5, torch.float32: 1.5, torch.float64: 2.5}
# PyTorch's own backward, which serves the fallback and layouts that no kernel reads, rounds three times; for 16-bit
# dtypes it does so in float32.
FALLBACK_BACKWARD_ULPS = {torch.float16: 0.51, torch.bfloat16: 0.51, torch.float32: 2.5, torch.float64: 2.5}

# Of the gradient with ``exact_grad``, where it is a normal number: the promise of sigmoid's docstring.
EXACT_GRADIENT_ULPS = {torch.float16: 2.0, torch.bfloat16: 2.0, torch.float32: 3.0, torch.float64: 3.0}

# Of x·σ(gate), silu and swiglu, whose kernels round σ and at most two products; seen: 1.9 in float32, 3 in float64.
PRODUCT_ULPS = {**FORWARD_ULPS, torch.float32: 3.0, torch.float64: 4.0}
# Of their gradients, which have σ(x), σ(-x) and four roundings more; seen: 2.7 in float32, 5 in float64. Where a
# gradient is a sum, in ulps of its addends' magnitudes: of silu'(x) near its root, or of all that a gate is spread to.
PRODUCT_GRADIENT_ULPS = {**FORWARD_ULPS, torch.float32: 5.0, torch.float64: 7.0}


def forward_ulps(dtype: torch.dtype, *, by_kernel: bool) -> float:
    """What σ may be off: by a kernel, or by PyTorch's own."""
    return (FORWARD_ULPS if by_kernel else FALLBACK_FORWARD_ULPS)[dtype]


def assert_within_ulps(result: Tensor, exact: Tensor, ulps: float) -> None:
    assert result.shape == exact.shape
    error = ulp_error(result, exact)
    worst = int(error.argmax()) if error.numel() else 0
    assert error.numel() == 0 or error.max() <= ulps, (
        f"{error.max():.3f} ulp off at element {worst}: {result.flatten()[worst]!r}, exactly {exact.flatten()[worst]!r}"
    )


def sample(dtype: torch.dtype) -> Tensor:
    """Every 16-bit pattern; of wider dtypes the range where σ is neither 0 nor 1, densely, and values beyond; NaN."""
    if dtype in HALF_DTYPES:
        return every_16bit(dtype)
    reach, n = {torch.float32: (106, 100_000), torch.float64: (760, 2_000)}[dtype]
    linear = torch.linspace(-reach, reach, n, dtype=torch.float64)
    small = torch.logspace(-12, 0, n // 10, dtype=torch.float64)
    huge = torch.tensor([1e3, 3e4, torch.inf, torch.nan], dtype=torch.float64)
    return torch.cat([linear, small, -small, huge, -huge]).to(dtype)


def true_sigmoid(x: Tensor) -> Tensor:
    """σ(x) to float64 accuracy, in the form that neither overflows nor cancels; by mpmath for float64 input."""
    return _by_mpmath(_sigmoid, x) if x.dtype == torch.float64 else sigmoid64(x.cpu())


def true_derivative(x: Tensor) -> Tensor:
    """σ'(x), likewise."""
    if x.dtype == torch.float64:
        return _by_mpmath(lambda v: _sigmoid(v) * _sigmoid(-v), x)
    return derivative64(x.cpu())


def true_backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_out·out·(1 - out) of the given tensors; by mpmath for float64."""
    if out.dtype == torch.float64:
        return _by_mpmath(lambda g, o: g * o * (1 - o), grad_out, out)
    return backward64(grad_out.cpu(), out.cpu())


def _sigmoid(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-x))


def _by_mpmath(function: Callable[..., mpmath.mpf], *tensors: Tensor) -> Tensor:
    """``function`` of each element, in float64."""
    with mpmath.workdps(40):
        columns = [map(mpmath.mpf, x.flatten().tolist()) for x in tensors]
        values = [float(function(*row)) for row in zip(*columns, strict=True)]
    return torch.tensor(values, dtype=torch.float64).reshape(tensors[0].shape)
