"""Nothing is timed before its results are compared with float64."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.cases import Case
from bench.providers import Provider
from bench.reference import sigmoid64, ulp_error

# In ulps of the dtype. They tell a sigmoid from a mistake, for every provider; the tests hold the library to less.
# Forward: float32 allows for CUDA's expf, within 2 ulp, which are up to 4 of the result.
# Backward: PyTorch rounds a 16-bit gradient three times, up to 3 ulp.
FORWARD_ULPS = {torch.float16: 1.0, torch.bfloat16: 1.0, torch.float32: 5.0, torch.float64: 4.0}
BACKWARD_ULPS = {torch.float16: 4.0, torch.bfloat16: 4.0, torch.float32: 4.0, torch.float64: 4.0}

# Triton's e^-x in float32: for |x| up to 6.3, beyond which no standard normal number of 2^30 is likely, the rounding of
# x·log2 e costs 6.9 ulp of the result, and the approximations of 2^x and of the division, each within 2 ulp, up to 4
# and 2 more. To be less accurate is no mistake.
TRITON_EXP_ULPS = 13.0

CHUNK = 2**24  # elements compared at once: float64 temporaries of 128 MiB each


class WrongResultError(RuntimeError):
    """A provider's result is further from float64 than its dtype allows."""


def verify(provider: Provider, case: Case, device: torch.device) -> None:
    """Raise WrongResultError unless every call of ``provider`` that ``case`` times is right.

    The inputs are drawn afresh for each provider: a right result that another one left in memory would be wrong here.
    """
    inputs = case.inputs(device)
    x, grad_out = inputs.x, inputs.grad_out
    if provider.sigmoid is None:
        _compare(provider.forward(x), lambda a: a, (x,), 0.0, "copy of x")
        _compare(provider.backward(grad_out, inputs.out), torch.add, (grad_out, inputs.out), 1.0, "grad_out + out")
        return
    less_accurate = provider.triton_exp and case.dtype == torch.float32
    forward_bound = TRITON_EXP_ULPS if less_accurate else FORWARD_ULPS[case.dtype]
    for name, forward in (("kernel", provider.forward), ("call", provider.sigmoid)):
        _compare(forward(x), sigmoid64, (x,), forward_bound, f"forward {name}")
    grad_in = provider.backward(grad_out, inputs.out)
    bound = BACKWARD_ULPS[case.dtype]
    _compare(grad_in, sigmoid_backward_float64, (grad_out, inputs.out), bound, "backward kernel")

    leaf = x.detach().requires_grad_()
    out = provider.sigmoid(leaf)
    (grad_in,) = torch.autograd.grad(out, leaf, grad_out)
    _compare(out.detach(), sigmoid64, (x,), forward_bound, "forward with grad")
    _compare(grad_in, sigmoid_backward_float64, (grad_out, out.detach()), bound, "backward through autograd")


def sigmoid_backward_float64(grad_out: Tensor, out: Tensor) -> Tensor:
    """Not ``reference.backward64``, whose difference cancels for float64 operands."""
    return grad_out * out * (1.0 - out)


def _compare(
    got: Tensor, reference: Callable[..., Tensor], operands: tuple[Tensor, ...], bound: float, what: str
) -> None:
    shape, dtype = operands[0].shape, operands[0].dtype
    if got.shape != shape or got.dtype != dtype:
        raise WrongResultError(f"{what}: {got.dtype} {tuple(got.shape)} instead of {dtype} {tuple(shape)}")
    worst = 0.0
    for got_chunk, *chunks in zip(_chunks(got), *map(_chunks, operands), strict=True):
        error = float(ulp_error(got_chunk, reference(*(chunk.double() for chunk in chunks))).max())
        if error > bound:
            raise WrongResultError(f"{what}: {error:.3g} ulp from float64, {bound:g} allowed")
        worst = max(worst, error)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    yield from (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))
