"""The truth in float64, and how far from it a result is, in ulps. On any device; tests and benchmarks share it."""

import torch
from torch import Tensor


def sigmoid64(x: Tensor) -> Tensor:
    """σ(x) in float64, from e^-|x|, which neither overflows nor cancels: within 3e-16 of its value."""
    x = x.detach().double()
    t = torch.exp(-x.abs())
    return torch.where(x < 0, t, 1.0) / (1.0 + t)


def derivative64(x: Tensor) -> Tensor:
    """σ'(x) = t / (1 + t)² with t = e^-|x|, in float64: no difference is taken, so nothing cancels."""
    t = torch.exp(-x.detach().double().abs())
    return t / ((1.0 + t) * (1.0 + t))


def backward64(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_out·out·(1 - out) of 16-bit values, rounded to odd in float64: rounded once more, it is as if never before.

    The first product is exact. So is the error of the sum (Dekker), whose sign decides the last bit.
    """
    grad_out, out = grad_out.detach().double(), out.detach().double()
    first = grad_out * out
    second = -first * out
    total = first + second
    error = second - (total - first)
    even = (total.view(torch.int64) & 1) == 0
    towards = torch.copysign(torch.full_like(error, torch.inf), error)
    return torch.where((error != 0) & even & total.isfinite(), torch.nextafter(total, towards), total)


def ulp_of(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of ``dtype`` around each exact value (float64)."""
    info = torch.finfo(dtype)
    # Without its mantissa a number is the power of two below it; below tiny, subnormals keep the spacing of tiny.
    power = (exact.abs().clamp(min=info.tiny).view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    return power * info.eps


def ulp_error(result: Tensor, exact: Tensor) -> Tensor:
    """|result - exact| in ulps; 0 where both are the same infinity or both NaN, infinite where only one is."""
    result64 = result.detach().to(exact.device).double()
    same = (result64 == exact) | (result64.isnan() & exact.isnan())
    error = (result64 - exact).abs() / ulp_of(exact, result.dtype)
    return torch.where(same, 0.0, torch.where(error.isnan(), float("inf"), error))


def correctly_rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of ``dtype``, ties to even, in one rounding.

    ``exact.to(dtype)`` goes through float32 and rounds twice, which is wrong on the very ties it should decide.
    """
    ulp = ulp_of(exact, dtype)
    return (torch.round(exact / ulp) * ulp).to(dtype)


def every_16bit(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns of a 16-bit dtype."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


def torchvision_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "mean"
) -> Tensor:
    """``torchvision.ops.sigmoid_focal_loss`` in its own operations: what the focal loss is compared with."""
    p = torch.sigmoid(inputs)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    out = (alpha * targets + (1 - alpha) * (1 - targets)) * (cross_entropy * ((1 - p_t) ** gamma))
    return out.mean() if reduction == "mean" else out.sum() if reduction == "sum" else out
