"""Every memory layout gives the family's results and gradients: in place, without a copy, every element written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sigmoid_op import glu, swiglu
from tests.conftest import Route, formulas_of, replace_launches
from tests.members import MEMBERS, SIGMOID_GATE, Gradient, Member, Shapes, as_laid_out, every_broadcast, every_member

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


def _with_strides_of_channels_last(x: Tensor) -> Tensor:
    """Also where ``x`` is channels_last as it is."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


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
GRADIENTS: dict[str, Gradient] = {
    "same layout": as_laid_out,
    "contiguous": lambda grad, out: grad,
    "one number, expanded": lambda grad, out: grad.flatten()[0].expand(grad.shape),
    "a row, expanded": lambda grad, out: grad[:1].expand(grad.shape),
    "misaligned": lambda grad, out: _misaligned(grad),
    "every second": lambda grad, out: _every_second(grad),
}


# Those in which interleaved pairs cannot be read as one integer, and are copied.
COPIED = {
    "matrix": ("reversed", "swapped", "misaligned", "every second"),
    "image": ("reversed", "channels_last", "misaligned", "every second"),
}


@every_member
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("variant", "dtype", "gradient"),
    [
        ("matrix", torch.float32, "same layout"),
        ("image", torch.bfloat16, "same layout"),
        *(("image", torch.float32, gradient) for gradient in GRADIENTS),
    ],
    ids=str,
)
def test_one_layout(
    kernel_route: Route,
    launches: list[str],
    member: Member,
    layout: str,
    variant: str,
    dtype: torch.dtype,
    gradient: str,
) -> None:
    """Operands of one layout take the kernels, whatever that of the gradient, the stride-0 one of ``sum()`` included.

    Where every second element is skipped, they take PyTorch's operators.
    """
    operands = tuple(map(LAYOUTS[layout], member.operands(variant, dtype, kernel_route.device)))
    member.check(operands, launches, GRADIENTS[gradient])
    if member.interleaved and layout in COPIED[variant]:
        assert launches == list(member.kernels)
    else:
        assert formulas_of(launches) == ([] if layout == "every second" else list(member.launched(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_interleaved_rows_an_odd_step_apart(kernel_route: Route, launches: list[str], dtype: torch.dtype) -> None:
    """No pair of every second row is one integer in memory: the columns are copied."""
    (member,) = (member for member in MEMBERS if member.interleaved)
    x = torch.linspace(-3, 3, 28, dtype=dtype, device=kernel_route.device).view(4, 7)[:, :6]
    member.check((x,), launches)
    assert launches == list(member.kernels)


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.arity == 2], ids=lambda member: member.name)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_two_layouts(kernel_route: Route, launches: list[str], member: Member, first: str, second: str) -> None:
    """The result takes its memory order from where PyTorch's takes it, whoever computes it."""
    x, gate = member.operands("image", torch.float32, kernel_route.device)
    member.check((LAYOUTS[first](x), LAYOUTS[second](gate)), launches)


@every_broadcast
@pytest.mark.parametrize("layout", LAYOUTS)
def test_broadcast_gates(kernel_route: Route, launches: list[str], variant: str, layout: str) -> None:
    """A gate that broadcasts is right in and beside every layout, and takes the kernels beside a dense x."""
    x, gate = SIGMOID_GATE.operands(variant, torch.float32, kernel_route.device)
    for gradient in ("same layout", "one number, expanded"):
        launches.clear()
        SIGMOID_GATE.check((LAYOUTS[layout](x), gate), launches, GRADIENTS[gradient])
        if layout in ("contiguous", "channels_last", "misaligned"):
            assert formulas_of(launches) == list(SIGMOID_GATE.kernels)
    for laid_out in (_every_second(gate), LAYOUTS[layout](gate) if gate.dim() else gate):
        SIGMOID_GATE.check((LAYOUTS[layout](x), laid_out), launches)


def test_a_gate_that_is_one_number_expanded(kernel_route: Route, launches: list[str]) -> None:
    """A gate per row whose memory is one number is summed per row all the same, and not as one gate."""
    x, _ = SIGMOID_GATE.operands("matrix", torch.float32, kernel_route.device)
    gate = torch.full((1, 1), 0.5, device=x.device).expand(len(x), 1)
    SIGMOID_GATE.check((x, gate), launches)
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
    member.check(member.operands("", torch.float32, kernel_route.device), launches)
    assert launches == []


# Dimensions of size 1 have strides that no element feels, but optimizers and DDP compare them all the same.
SIZES_OF_ONE: list[Shapes] = [((2, 6, 1, 1),), ((2, 2, 5, 6),), ((1, 6, 1, 8),), ((6, 2, 1, 2),), ((2, 1, 4, 4),)]


@pytest.mark.parametrize("shapes", SIZES_OF_ONE, ids=str)
@pytest.mark.parametrize("member", [m for m in MEMBERS if m.halved in (None, 1)], ids=lambda member: member.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "with gaps", "misaligned"])
def test_sizes_of_one(kernel_route: Route, launches: list[str], member: Member, shapes: Shapes, layout: str) -> None:
    """Tensors that are contiguous and channels_last at once have the strides that PyTorch gives them."""
    member = replace(member, shapes={"": shapes * member.arity})
    operands = member.operands("", torch.float32, kernel_route.device)
    if member.halved is not None and operands[0].shape[1] % 2:
        pytest.skip("of odd size")
    # Beside strides of 0, after a clamp, and for halves, PyTorch keeps what strides an operand happens to have there.
    keeps = member.name == "clamped swiglu" or member.halved is not None
    laid_out = LAYOUTS[layout] if keeps or layout != "channels_last" else _with_strides_of_channels_last
    member.check(tuple(map(laid_out, operands)), launches)
    launches.clear()
    member.check(tuple(map(LAYOUTS[layout], operands)), launches, GRADIENTS["one number, expanded"])


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
    member.check(operands, launches)
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

    storages: list[set[int]] = []

    def watch(kernel: object, programs: int, args: tuple[Any, ...], *options: Any) -> None:
        storages.append({x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)})
        launch(kernel, programs, args, *options)

    replace_launches(monkeypatch, watch)
    x = torch.ones(shape, device=kernel_route.device, requires_grad=True)
    out = call(x)
    grad_out = torch.ones_like(out)
    (grad_x,) = torch.autograd.grad(out, x, grad_out)
    assert storages == [{y.data_ptr() for y in operands} for operands in ((x, out), (grad_out, x, grad_x))]
