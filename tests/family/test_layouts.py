"""Every memory layout gives the family's results and gradients: in place, without a copy, every element written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sigmoid_op import glu, swiglu
from tests.conftest import Route, formulas_of, replace_launches
from tests.members import MEMBERS, SIGMOID_GATE, Member, Shapes, every_broadcast, every_member
from tests.ulp import PRODUCT_GRADIENT_ULPS, PRODUCT_ULPS, assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

Layout = Callable[[Tensor], Tensor]


def _with_gaps(x: Tensor) -> Tensor:
    """Its rows in a tensor of wider rows."""
    wide = torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], dim=-1)
    return wide[..., x.shape[-1] : 2 * x.shape[-1]]


def _every_second(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]


def _misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape)


def _reversed(x: Tensor) -> Tensor:
    """The same values with the first dimension innermost in memory."""
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


# Each with the values it is given; an element of the layout that is none of the operand's is NaN.
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda x: x,
    "reversed": _reversed,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x,
    "with gaps": _with_gaps,
    "misaligned": _misaligned,
    "every second": _every_second,  # whose innermost step no kernel takes
}
# The incoming gradient's, from its values and the result.
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "same layout": lambda grad, out: torch.empty_like(out).copy_(grad),
    "contiguous": lambda grad, out: grad,
    "one number, expanded": lambda grad, out: grad.flatten()[0].expand(grad.shape),
    "a row, expanded": lambda grad, out: grad[:1].expand(grad.shape),
    "misaligned": lambda grad, out: _misaligned(grad),
    "every second": lambda grad, out: _every_second(grad),
}


def _check(member: Member, operands: tuple[Tensor, ...], launches: list[str], gradient: str = "same layout") -> None:
    """Result and gradients against the truth, strides against PyTorch's; the operands are left as they were.

    A result that no kernel computes is PyTorch's; a gradient, as good as PyTorch's, which loses digits in the tails.
    """
    leaves = tuple(operand.detach().requires_grad_() for operand in operands)
    before = [operand.clone() for operand in operands]
    out, theirs = member.ours(*leaves), member.theirs(*operands)
    assert (out.shape, out.stride()) == (theirs.shape, theirs.stride())
    if {member.kernels[0], member.launched(out.dtype)[0]} & set(launches):
        assert_within_ulps(out, member.truth(*operands), PRODUCT_ULPS[out.dtype])
    else:
        assert torch.equal(out, theirs)
    values = torch.linspace(-2, 3, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    grad_out = GRADIENTS[gradient](values, out.detach())
    gradients = torch.autograd.grad(out, leaves, grad_out)
    assert [g.dtype for g in gradients] == [operand.dtype for operand in operands]
    if {member.kernels[1], member.launched(out.dtype)[1]} & set(launches):
        member.assert_gradients_within(PRODUCT_GRADIENT_ULPS[out.dtype], gradients, grad_out, *operands)
    else:
        exact = [gradient.to(out.dtype) for gradient, _ in member.true_gradients(grad_out, *operands)]
        torch.testing.assert_close([part.cpu() for part in member.parts(*gradients)], exact)
    assert all(map(torch.equal, operands, before))


def _expected(member: Member, dtype: torch.dtype, layout: str) -> list[str]:
    """The launches. Interleaved pairs that cannot be read as one integer are copied."""
    if member.interleaved and layout in ("reversed", "channels_last", "misaligned", "every second"):
        return list(member.kernels)
    return [] if layout == "every second" else list(member.launched(dtype))


@every_member
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_layout(kernel_route: Route, launches: list[str], member: Member, layout: str, dtype: torch.dtype) -> None:
    """Operands of one layout take the kernels, or PyTorch's operators where every second element is skipped."""
    operands = tuple(map(LAYOUTS[layout], member.operands("image", dtype, kernel_route.device)))
    _check(member, operands, launches)
    assert formulas_of(launches) == _expected(member, dtype, layout)


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.arity == 2], ids=lambda member: member.name)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_two_layouts(kernel_route: Route, launches: list[str], member: Member, first: str, second: str) -> None:
    """The result takes its memory order from where PyTorch's takes it, whoever computes it."""
    x, gate = member.operands("image", torch.float32, kernel_route.device)
    _check(member, (LAYOUTS[first](x), LAYOUTS[second](gate)), launches)


@every_member
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_layouts(kernel_route: Route, launches: list[str], member: Member, layout: str, gradient: str) -> None:
    """Kernels make the gradients for every layout of the incoming one, the stride-0 one of ``sum()`` included."""
    operands = tuple(map(LAYOUTS[layout], member.operands("image", torch.float32, kernel_route.device)))
    _check(member, operands, launches, gradient)
    assert formulas_of(launches) == _expected(member, torch.float32, layout)


@every_broadcast
@pytest.mark.parametrize("layout", LAYOUTS)
def test_broadcast_gates(kernel_route: Route, launches: list[str], variant: str, layout: str) -> None:
    """A gate that broadcasts is right beside x of every layout, and takes the kernels beside a dense one."""
    x, gate = SIGMOID_GATE.operands(variant, torch.float32, kernel_route.device)
    for gradient in ("same layout", "one number, expanded"):
        launches.clear()
        _check(SIGMOID_GATE, (LAYOUTS[layout](x), gate), launches, gradient)
        if layout in ("contiguous", "channels_last", "misaligned"):
            assert formulas_of(launches) == list(SIGMOID_GATE.kernels)
    _check(SIGMOID_GATE, (LAYOUTS[layout](x), _every_second(gate)), launches)


def test_a_gate_that_is_one_number_expanded(kernel_route: Route, launches: list[str]) -> None:
    """A gate per row whose memory is one number is summed per row all the same, and not as one gate."""
    x, _ = SIGMOID_GATE.operands("matrix", torch.float32, kernel_route.device)
    gate = torch.full((1, 1), 0.5, device=x.device).expand(len(x), 1)
    _check(SIGMOID_GATE, (x, gate), launches)
    assert formulas_of(launches) == list(SIGMOID_GATE.kernels)


@pytest.mark.parametrize(
    ("x", "gate"),
    [
        ((2, 3, 8, 9), (2, 1, 8, 1)),
        ((2, 3, 8, 9), (1, 3, 1, 9)),
        ((2, 3, 4, 5), (2, 1, 4, 5)),
        ((2, 3, 2, 3, 2), (2, 1, 2, 1, 2)),
        ((2, 3, 2, 3, 2), (3, 1, 3, 1)),
    ],
)
def test_gates_that_no_kernel_takes(
    kernel_route: Route, launches: list[str], x: tuple[int, ...], gate: tuple[int, ...]
) -> None:
    """A gate broadcast in every second dimension goes to PyTorch, and so do batches too small for a program each."""
    member = replace(SIGMOID_GATE, shapes={"": (x, gate)})
    _check(member, member.operands("", torch.float32, kernel_route.device), launches)
    assert launches == []


# A tile of float32 has 2048 elements: 64 columns where its rows are summed, as many as there are where they are not.
TILED: list[tuple[str, Shapes]] = [
    ("sigmoid_gate", ((70, 130), (130,))),
    ("sigmoid_gate", ((2, 40, 70), (2, 1, 70))),
    ("sigmoid_gate", ((70, 40), (70, 1))),
    ("sigmoid_gate", ((3, 2050), (3, 1))),
    ("sigmoid_gate", ((2, 3, 700), (3, 1))),
    ("sigmoid_gate", ((4100,), ())),
    ("sigmoid_gate", ((64, 128), (128,))),
    ("packed swiglu", ((70, 80),)),
    ("packed swiglu", ((3, 4100),)),
    ("glu of dimension 1", ((3, 4, 1030),)),
    ("glu of dimension 1", ((2, 4, 70, 40),)),
]


@pytest.mark.parametrize(("name", "shapes"), TILED)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_many_tiles(kernel_route: Route, launches: list[str], name: str, shapes: Shapes, channels_last: bool) -> None:
    """Several tiles along rows, columns and batches, full ones and parts, are each written, and summed once."""
    (member,) = (replace(member, shapes={"": shapes}) for member in MEMBERS if member.name == name)
    operands = member.operands("", torch.float32, kernel_route.device)
    if channels_last:
        if operands[0].dim() < 3:
            pytest.skip("there is no other order")
        operands = (operands[0].movedim(1, -1).contiguous().movedim(-1, 1), *operands[1:])
    _check(member, operands, launches)
    assert formulas_of(launches) == list(member.launched(torch.float32))


@pytest.mark.parametrize(
    ("call", "shape"),
    [(swiglu, (5, 8)), (glu, (5, 8)), (lambda x: glu(x, 1), (2, 4, 3)), (lambda x: glu(x, 0), (4, 3))],
    ids=["packed swiglu", "glu, last", "glu, middle", "glu, first"],
)
def test_halves_are_not_copied(
    kernel_route: Route, monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """The kernel reads both halves where they are, and writes both gradients into the one tensor that is returned."""
    from sigmoid_op.kernels.launch import launch

    storages: list[list[set[int]]] = []

    def watch(kernel: object, programs: int, args: tuple[Any, ...], *options: Any) -> None:
        # Inputs and outputs; the tiled kernel's have their strides with them.
        tensors = [[x if isinstance(x, Tensor) else x[0] for x in operands] for operands in args[1:3]]
        storages.append([{x.untyped_storage().data_ptr() for x in operands} for operands in tensors])
        launch(kernel, programs, args, *options)

    replace_launches(monkeypatch, watch)
    x = torch.ones(shape, device=kernel_route.device, requires_grad=True)
    out = call(x)
    grad_out = torch.ones_like(out)
    (grad_x,) = torch.autograd.grad(out, x, grad_out)
    (read, written), (read_back, written_back) = storages
    assert (read, written) == ({x.data_ptr()}, {out.data_ptr()})
    assert (read_back, written_back) == ({x.data_ptr(), grad_out.data_ptr()}, {grad_x.data_ptr()})


def test_poison_catches_an_unwritten_element(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poison can fail a test: a launch that leaves the output alone gives NaN."""
    replace_launches(monkeypatch, lambda *args: None)
    with pytest.raises(AssertionError, match="ulp off"):
        _check(SIGMOID_GATE, SIGMOID_GATE.operands("matrix", torch.float32, kernel_route.device), ["sigmoid_gate"])
