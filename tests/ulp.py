"""How far a result is from the truth, in ulps; the truth, in float64 or better; and the one table of tolerances."""

import mpmath
import numpy as np
import torch
from torch import Tensor

from bench.reference import backward64, sigmoid64
from bench.reference import correctly_rounded as correctly_rounded
from bench.reference import every_16bit as every_16bit
from bench.reference import ulp_error as ulp_error
from bench.reference import ulp_of as ulp_of

FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALF_DTYPES = [torch.float16, torch.bfloat16]

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

# Of x·σ(gate), silu and swiglu, whose kernels round σ and at most two products; seen: 1.9 in float32, 3 in float64.
PRODUCT_ULPS = {**FORWARD_ULPS, torch.float32: 3.0, torch.float64: 4.0}
# Of their gradients, which have σ(x), σ(-x) and four roundings more; seen: 2.7 in float32, 5 in float64. Where a
# gradient is a sum, in ulps of its addends' magnitudes: of silu'(x) near its root, or of all that a gate is spread to.
PRODUCT_GRADIENT_ULPS = {**FORWARD_ULPS, torch.float32: 5.0, torch.float64: 7.0}


def assert_within_ulps(result: Tensor, exact: Tensor, ulps: float) -> None:
    assert result.shape == exact.shape
    error = ulp_error(result, exact)
    worst = int(error.argmax()) if error.numel() else 0
    assert error.numel() == 0 or error.max() <= ulps, (
        f"{error.max():.3f} ulp off at element {worst}: {result.flatten()[worst]!r}, exactly {exact.flatten()[worst]!r}"
    )


def true_sigmoid(x: Tensor) -> Tensor:
    """σ(x) to float64 accuracy, in the form that neither overflows nor cancels; by mpmath for float64 input."""
    if x.dtype == torch.float64:
        return torch.tensor([_mp_sigmoid(v) for v in x.flatten().tolist()], dtype=torch.float64).reshape(x.shape)
    return sigmoid64(x.cpu())


def _mp_sigmoid(x: float) -> float:
    if np.isinf(x) or np.isnan(x):
        return {np.inf: 1.0, -np.inf: 0.0}.get(x, np.nan)
    with mpmath.workdps(40):
        return float(1 / (1 + mpmath.exp(-mpmath.mpf(x))))


def true_backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_out·out·(1 - out) of the given tensors; by mpmath for float64."""
    if out.dtype == torch.float64:
        with mpmath.workdps(40):
            pairs = zip(grad_out.flatten().tolist(), out.flatten().tolist(), strict=True)
            values = [float(mpmath.mpf(g) * mpmath.mpf(o) * (1 - mpmath.mpf(o))) for g, o in pairs]
        return torch.tensor(values, dtype=torch.float64).reshape(out.shape)
    return backward64(grad_out.cpu(), out.cpu())
