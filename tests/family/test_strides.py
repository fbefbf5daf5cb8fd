"""Gradients lie in memory as PyTorch's do: optimizers and DDP compare their strides with those of the parameter."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import Route
from tests.family.test_layouts import GRADIENTS, LAYOUTS
from tests.members import MEMBERS, SIGMOID_GATE, Member, Op, Shapes, every_broadcast, every_call

ORDINARY = ["contiguous", "channels_last", "with gaps", "misaligned"]

# Sizes of 1 have strides that no element feels, but that are compared all the same.
SIZES_OF_ONE: list[Shapes] = [((2, 6, 1, 1),), ((2, 2, 5, 6),), ((1, 6, 1, 8),), ((6, 2, 1, 2),), ((2, 1, 4, 4),)]


def _strides(op: Op, operands: tuple[Tensor, ...], gradient: str) -> list[tuple[int, ...]]:
    """Of the result and of what ``backward`` leaves in ``.grad``."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    out = op(*leaves)
    values = torch.ones(out.shape, dtype=out.dtype, device=out.device)
    out.backward(GRADIENTS[gradient](values, out.detach()))
    return [x.stride() for x in (out, *(leaf.grad for leaf in leaves)) if x is not None]


def _check(member: Member, operands: tuple[Tensor, ...], gradient: str) -> None:
    assert _strides(member.ours, operands, gradient) == _strides(member.theirs, operands, gradient)


@every_call
@pytest.mark.parametrize("gradient", ["same layout", "contiguous", "one number, expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_layout(kernel_route: Route, member: Member, variant: str, layout: str, gradient: str) -> None:
    """Of operands of one layout, whatever that of the incoming gradient; a small operand is laid out, too."""
    operands = member.operands(variant, torch.float32, kernel_route.device)
    if layout in ("reversed", "swapped") and len({x.shape for x in operands}) > 1:
        pytest.skip("the order of a small operand is that of what it is summed from: see test_small_operands")
    _check(member, tuple(LAYOUTS[layout](x) if x.dim() else x for x in operands), gradient)


@every_broadcast
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_operands(kernel_route: Route, variant: str, layout: str) -> None:
    """The gradient of a dense gate that broadcasts has the strides of the gate."""
    x, gate = SIGMOID_GATE.operands(variant, torch.float32, kernel_route.device)
    out, of_x, of_gate = _strides(SIGMOID_GATE.ours, (LAYOUTS[layout](x), gate), "same layout")
    assert of_gate == gate.stride()
    assert (out, of_x) == tuple(_strides(SIGMOID_GATE.theirs, (LAYOUTS[layout](x), gate), "same layout")[:2])


def _channels_last(x: Tensor) -> Tensor:
    """With its strides also where ``x`` is channels_last as it is."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


@pytest.mark.parametrize("shapes", SIZES_OF_ONE, ids=str)
@pytest.mark.parametrize("member", [m for m in MEMBERS if m.halved is None or m.halved == 1], ids=lambda m: m.name)
@pytest.mark.parametrize("layout", ORDINARY)
def test_sizes_of_one(kernel_route: Route, member: Member, shapes: Shapes, layout: str) -> None:
    """Dimensions of size 1, and tensors that are contiguous and channels_last at once."""
    member = replace(member, shapes={"": shapes * member.arity})
    operands = member.operands("", torch.float32, kernel_route.device)
    if member.halved is not None and operands[0].shape[member.halved] % 2:
        pytest.skip("of odd size")
    # Beside strides of 0, after a clamp, and for halves, PyTorch keeps what strides an operand happens to have there.
    keeps = member.name == "clamped swiglu" or member.halved is not None
    laid_out = LAYOUTS[layout] if keeps or layout != "channels_last" else _channels_last
    _check(member, tuple(map(laid_out, operands)), "same layout")
    _check(member, tuple(map(LAYOUTS[layout], operands)), "one number, expanded")


def test_gate_of_a_channels_last_image(kernel_route: Route) -> None:
    """A parameter per channel gets the gradient that DDP expects, though the image has its channels innermost."""
    x = torch.randn(2, 64, 5, 7, device=kernel_route.device).contiguous(memory_format=torch.channels_last)
    gate = torch.nn.Parameter(torch.zeros(1, 64, 1, 1, device=x.device))
    SIGMOID_GATE.ours(x, gate).sum().backward()
    assert gate.grad is not None
    assert gate.grad.stride() == gate.stride() == (64, 1, 1, 1)
