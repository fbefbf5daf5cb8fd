"""``python -m tests.compile_calls``: make every call of the tests' tables, and compile what it would launch on a GPU.

In a process of its own because the other tests run kernels in Triton's interpreter, which takes more than its compiler.
Prints the names of the formulas compiled, as JSON.
"""

import json

import pytest
import torch
from torch import Tensor

from bench.codegen.catalogue import recorded
from bench.codegen.compile import TARGETS, compile_launch
from sigmoid_op import dispatch, logsigmoid, sigmoid, sigmoid_, sigmoid_focal_loss
from tests.conftest import kernels_from
from tests.losses import LOSSES, REDUCTIONS
from tests.members import MEMBERS

DTYPE = torch.bfloat16


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
    logits = torch.zeros(3, 5, dtype=DTYPE, requires_grad=True)
    for loss in LOSSES:
        for reduction in REDUCTIONS:
            for mask in (None, torch.ones(3, 1, dtype=torch.bool)):
                differentiate(loss.ours(logits, torch.ones(3, 5), reduction=reduction, mask=mask, **loss.options))
    differentiate(sigmoid_focal_loss(logits, torch.tensor([0, 4, 5]), reduction="mean"))


def main() -> None:
    with pytest.MonkeyPatch.context() as patch, recorded() as launches:
        for name, value in (("AVAILABLE", True), ("INTERPRETED", True), ("MIN_ELEMENTS", kernels_from(1))):
            patch.setattr(dispatch, name, value)  # CPU tensors take the way of large CUDA tensors
        call_sigmoid()
        call_family()
    for launch in launches:
        compile_launch(launch, TARGETS["sm_90"])
    print(json.dumps(sorted({(launch.formula or launch.kernel).__name__ for launch in launches})))


if __name__ == "__main__":
    main()
