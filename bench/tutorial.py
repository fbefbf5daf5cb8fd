"""The sigmoid a reader of Triton's tutorials would write: every access masked, one block size, no dispatch.

Timed beside the library's kernels to show what they add to it.
"""

# ruff: noqa: N803 - BLOCK_SIZE is Triton's way to write a compile-time constant
# Triton reads a kernel's annotations as types of its arguments, and its decorator is untyped:
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE = 1024  # the tutorials' vector addition


@triton.jit
def _forward_kernel(x_ptr, out_ptr, n_elements, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < n_elements
    x = tl.load(x_ptr + offsets, mask=mask)
    x = x if x.dtype == tl.float64 else x.to(tl.float32)
    tl.store(out_ptr + offsets, 1 / (1 + tl.exp(-x)), mask=mask)


@triton.jit
def _backward_kernel(grad_out_ptr, out_ptr, grad_in_ptr, n_elements, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < n_elements
    grad_out = tl.load(grad_out_ptr + offsets, mask=mask)
    out = tl.load(out_ptr + offsets, mask=mask)
    out = out if out.dtype == tl.float64 else out.to(tl.float32)
    tl.store(grad_in_ptr + offsets, grad_out * out * (1 - out), mask=mask)


def forward(x: Tensor) -> Tensor:
    """out = 1/(1 + e^-x), in the contiguous order of ``x``."""
    x = x.contiguous()
    out = torch.empty_like(x)
    n_elements = x.numel()
    _forward_kernel[(triton.cdiv(n_elements, BLOCK_SIZE),)](x, out, n_elements, BLOCK_SIZE=BLOCK_SIZE)
    return out


def backward(grad_out: Tensor, out: Tensor) -> Tensor:
    """grad_in = grad_out · out · (1 - out)."""
    grad_out = grad_out.contiguous()
    grad_in = torch.empty_like(out)
    n_elements = out.numel()
    _backward_kernel[(triton.cdiv(n_elements, BLOCK_SIZE),)](grad_out, out, grad_in, n_elements, BLOCK_SIZE=BLOCK_SIZE)
    return grad_in
