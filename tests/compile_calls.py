"""``python -m tests.compile_calls``: make every call of the tests' tables, and compile what it would launch on a GPU.

In a process of its own because the other tests run kernels in Triton's interpreter, which takes more than its compiler.
Prints the names of the formulas compiled, as JSON.
"""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.codegen.compile import TARGETS, compiling_for
from sigmoid_op import dispatch, logsigmoid, sigmoid, sigmoid_, sigmoid_focal_loss
from sigmoid_op.kernels.launch import FP_FUSION, NUM_WARPS
from tests.conftest import kernels_from, launched_name, replace_launches
from tests.losses import LOSSES, REDUCTIONS
from tests.members import MEMBERS

DTYPE = torch.bfloat16
compiled: set[str] = set()


def compile_only(
    kernel: Any,
    programs: int,
    args: tuple[Any, ...],
    key: tuple[Any, ...],
    max_registers: int | None = None,
) -> None:
    """What ``launch`` does at first, up to the launch: the results stay as they were allocated."""
    kernel.warmup(*args, grid=(1, 1, 1), num_warps=NUM_WARPS, maxnreg=max_registers, enable_fp_fusion=FP_FUSION)
    compiled.add(launched_name(kernel, args))


def differentiate(out: Tensor) -> None:
    out.backward(torch.ones_like(out))


def call_sigmoid() -> None:
    """Aligned and not, differentiated twice, and with a gradient that is one number."""
    for x in (torch.zeros(64, dtype=DTYPE), torch.zeros(65, dtype=DTYPE)[1:]):
        sigmoid_(x.clone())
        for exact_grad in (False, True):
            leaf = x.detach().clone().requires_grad_()
            sigmoid(leaf, exact_grad=exact_grad).sum().backward()
            out = sigmoid(leaf, exact_grad=exact_grad)
            (grad_in,) = torch.autograd.grad(out, leaf, torch.ones_like(out), create_graph=True)
            differentiate(grad_in)


def call_family() -> None:
    """Every operand differentiated, and of two the second alone."""
    for member in MEMBERS:
        for variant in member.shapes:
            operands = [operand.requires_grad_() for operand in member.operands(variant, DTYPE, "cpu")]
            differentiate(member.ours(*operands))
            if len(operands) == 2:
                differentiate(member.ours(operands[0].detach(), operands[1]))
    differentiate(logsigmoid(torch.zeros(64, dtype=DTYPE, requires_grad=True)))
    for loss in LOSSES:
        for reduction in REDUCTIONS:
            logits = torch.zeros(3, 5, dtype=DTYPE, requires_grad=True)
            differentiate(loss.ours(logits, torch.ones(3, 5), reduction=reduction, **loss.options))
            mask = torch.ones(3, 1, dtype=torch.bool)
            differentiate(loss.ours(logits, torch.ones(3, 5), reduction=reduction, mask=mask, **loss.options))
    logits = torch.zeros(3, 5, dtype=DTYPE, requires_grad=True)
    differentiate(sigmoid_focal_loss(logits, torch.tensor([0, 4, 5]), reduction="mean"))


def main() -> None:
    with pytest.MonkeyPatch.context() as patch, compiling_for(TARGETS["sm_90"]):
        replace_launches(patch, compile_only)
        for name, value in (("AVAILABLE", True), ("INTERPRETED", True), ("MIN_ELEMENTS", kernels_from(1))):
            patch.setattr(dispatch, name, value)  # CPU tensors take the way of large CUDA tensors
        call_sigmoid()
        call_family()
    print(json.dumps(sorted(compiled)))


if __name__ == "__main__":
    main()
