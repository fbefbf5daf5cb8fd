"""Autocast and gradient scaling: as with ``torch.sigmoid``."""

import pytest
import torch
from torch import nn

from sigmoid_op import sigmoid
from tests.conftest import Route
from tests.ulp import true_sigmoid


@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_autocast(route: Route, inside: torch.dtype, dtype: torch.dtype) -> None:
    """Under autocast the result keeps the dtype of the input, which a linear layer before it has lowered."""
    x = torch.linspace(-8, 8, 12).to(route.device, dtype).view(3, 4).requires_grad_()
    layer = nn.Linear(4, 4, device=route.device)
    with torch.autocast(route.device, dtype=inside):
        out, lowered = sigmoid(x), sigmoid(layer(x))
        assert out.dtype == torch.sigmoid(x).dtype == dtype
        assert lowered.dtype == torch.sigmoid(layer(x)).dtype == inside
    (out.sum() + lowered.sum()).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_grad_scaler(route: Route) -> None:
    """Scaled gradients come back unscaled, and an overflow skips the step."""
    scaler = torch.amp.GradScaler(route.device, init_scale=1024.0)
    weight = torch.linspace(-3, 3, 5, device=route.device).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    s = true_sigmoid(weight)
    scaler.scale(sigmoid(weight).sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.cpu().double(), s * (1 - s), rtol=0, atol=1e-6)
    scaler.step(optimizer)
    scaler.update()

    before = weight.detach().clone()
    optimizer.zero_grad()
    scaler.scale((sigmoid(weight) * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight.detach(), before)
    assert scaler.get_scale() == 512.0
