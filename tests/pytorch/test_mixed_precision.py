"""Autocast and gradient scaling: as with PyTorch's own operators."""

import pytest
import torch
from torch import nn

from sigmoid_op import sigmoid
from tests.conftest import Route
from tests.members import Member
from tests.pytorch.ops import every_op
from tests.ulp import true_sigmoid


@every_op
@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(route: Route, op: Member, inside: torch.dtype) -> None:
    """The result has the dtype of PyTorch's form, behind a lowered layer, too; gradients have those of the operands."""
    layer = nn.Linear(6, 6, device=route.device)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        leaves = [operand.requires_grad_() for operand in op.operands("matrix", dtype, route.device)]
        with torch.autocast(route.device, dtype=inside):
            out = op.ours(*leaves)
            assert out.dtype == op.theirs(*leaves).dtype
            if op.halved != 0:
                lowered = [layer(leaf) for leaf in leaves]
                assert op.ours(*lowered).dtype == op.theirs(*lowered).dtype == inside
        assert [grad.dtype for grad in torch.autograd.grad(out.float().sum(), leaves)] == [dtype] * len(leaves)


def test_grad_scaler(route: Route) -> None:
    """A step is by the gradient, unscaled; an overflow skips it, and halves the scale."""
    scaler = torch.amp.GradScaler(route.device, init_scale=1024.0)
    weight = torch.linspace(-3, 3, 5, device=route.device).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    before, s = weight.detach().cpu().double(), true_sigmoid(weight)
    for factor in (1, torch.inf):
        optimizer.zero_grad()
        scaler.scale((sigmoid(weight) * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(weight.detach().cpu().double(), before - s * (1 - s), rtol=0, atol=1e-6)
    assert scaler.get_scale() == 512.0
