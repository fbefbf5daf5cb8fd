"""Nothing is timed before its results and gradients are compared with PyTorch's form in float64."""

import torch
from torch import Tensor

from bench.cases import Case, Operands
from bench.ops import Form

# In eps of the dtype, relative to the size of an element plus the mean size. They tell an op from a mistake, whoever's
# it is; the tests hold the library to less. PyTorch needs the room: in the gradient of a gate it takes 1 - σ from a
# rounded σ. Forward in 16 bits it rounds a few times.
FORWARD_EPS = {torch.float16: 4.0, torch.bfloat16: 4.0, torch.float32: 64.0, torch.float64: 64.0}
GRADIENT_EPS = {torch.float16: 16.0, torch.bfloat16: 16.0, torch.float32: 64.0, torch.float64: 64.0}
CHUNK = 2**22  # elements compared at once, as PyTorch's form holds dozens of float64 tensors for a loss


class WrongResultError(RuntimeError):
    """A result is further from float64 than its dtype allows."""


def verify(form: Form, case: Case, device: torch.device) -> None:
    """Raise WrongResultError unless results, with and without gradients, and gradients are right."""
    operands = case.operands(device)
    exact_out, exact_gradients = reference(operands, case.row.pytorch)
    _compare(form(*operands.inputs), exact_out, case.dtype, FORWARD_EPS[case.dtype], "forward")
    leaves, inputs = operands.leaves()
    out = form(*inputs)
    _compare(out.detach(), exact_out, case.dtype, FORWARD_EPS[case.dtype], "forward with grad")
    gradients = torch.autograd.grad(out, leaves, operands.grad_out)
    for i, (gradient, want) in enumerate(zip(gradients, exact_gradients, strict=True)):
        _compare(gradient, want, case.dtype, GRADIENT_EPS[case.dtype], f"gradient of operand {i}")


def reference(operands: Operands, op: Form) -> tuple[Tensor, list[Tensor]]:
    """The result and the gradients in float64, by chunks of the first dimension; a scalar is the mean of its chunks."""
    first = operands.inputs[0]
    n_rows = len(first)
    chunk = max(1, CHUNK * n_rows // first.numel())
    outs, gradients = [], []
    for start in range(0, n_rows, chunk):
        part = slice(start, start + chunk)
        share = len(first[part]) / n_rows
        inputs = tuple((x[part] if x.dim() == first.dim() else x).double() for x in operands.inputs)
        scalar = operands.grad_out.dim() == 0
        grad_out = operands.grad_out.double() * share if scalar else operands.grad_out[part].double()
        leaves, inputs = Operands(inputs, operands.n_gradients, grad_out).leaves()
        out = op(*inputs)
        gradients.append(torch.autograd.grad(out, leaves, grad_out))
        outs.append(out.detach() * share if scalar else out.detach())
    out = torch.stack(outs).sum() if scalar else torch.cat(outs)
    return out, [torch.cat(of_leaf) for of_leaf in zip(*gradients, strict=True)]


def _compare(got: Tensor, want: Tensor, dtype: torch.dtype, allowed: float, what: str) -> None:
    if got.shape != want.shape or got.dtype != dtype:
        raise WrongResultError(f"{what}: {got.dtype} {tuple(got.shape)} instead of {dtype} {tuple(want.shape)}")
    info = torch.finfo(dtype)
    mean = want.abs().mean()
    chunks = (x.reshape(-1).split(4 * CHUNK) for x in (got, want))
    for got_part, want_part in zip(*chunks, strict=True):
        size = (want_part.abs() + mean).clamp_(min=info.tiny)  # below it an eps is the distance of subnormal numbers
        error = float(((got_part.double() - want_part).abs_() / size).max()) / info.eps
        if not error <= allowed:  # so that NaN fails
            raise WrongResultError(f"{what}: {error:.3g} eps from float64, {allowed:g} allowed")
