"""``sigmoid_gate(..., out=...)``: in place for decoding; refuses what ``torch.mul(..., out=...)`` does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_op import sigmoid_gate
from sigmoid_op.ops.overlap import are_apart, overlaps_itself
from tests.conftest import Route, formulas_of
from tests.members import SIGMOID_GATE, outcome
from tests.ulp import PRODUCT_ULPS, assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def _theirs(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    return torch.mul(x, torch.sigmoid(gate), out=out)


def _fused(route: Route, heads: int | None = None) -> Tensor:
    """A projection of 4 rows that holds q, k, v and gates beside each other."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3 * 128 + (heads or 128), generator=generator).to(route.device)


def _check(launches: list[str], route: Route, x: Tensor, gate: Tensor, out: Tensor) -> None:
    """One launch, the true result in ``out`` itself, whose version is new; nothing else is written."""
    truth, before = SIGMOID_GATE.truth(x, gate), out._version
    around = out._base.clone() if out._base is not None else out.clone()
    launches.clear()
    assert sigmoid_gate(x, gate, out=out) is out
    assert launches == (["sigmoid_gate"] if route.uses_kernels else [])
    assert out._version > before
    assert_within_ulps(out, truth, PRODUCT_ULPS[out.dtype])
    if out._base is not None:
        around.as_strided(out.shape, out.stride(), out.storage_offset()).copy_(out)
        assert torch.equal(around, out._base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("variant", SIGMOID_GATE.shapes)
def test_in_place(kernel_route: Route, launches: list[str], variant: str, dtype: torch.dtype) -> None:
    """x, the gate where it has the same shape, or a third tensor is overwritten by one launch."""
    for target in range(3):
        x, gate = SIGMOID_GATE.operands(variant, dtype, kernel_route.device)
        out = (x, gate, torch.full_like(x, torch.nan))[target]
        if out.shape == x.shape:
            _check(launches, kernel_route, x, gate, out)


def test_slices_of_a_fused_projection(kernel_route: Route, launches: list[str]) -> None:
    """x and gate lie in the rows of one tensor, and the result takes the place of x; so for heads with a gate each."""
    for width in (128, 1):
        fused = _fused(kernel_route)
        _check(launches, kernel_route, fused[:, :128], fused[:, 384 : 384 + width], fused[:, :128])
    fused = _fused(kernel_route, heads=2)
    x, gate = fused[:, 128:256].unflatten(1, (2, 64)), fused[:, 384:, None]
    _check(launches, kernel_route, x, gate, x)


@pytest.mark.parametrize("heads", [None, 2])
def test_slices_are_not_copied(kernel_route: Route, launches: list[str], heads: int | None) -> None:
    """Forward and backward read strided operands where they are: the gradients are right, in one launch each."""
    fused = _fused(kernel_route, heads).requires_grad_()
    x, gate = fused[:, :128], fused[:, 384:]
    if heads is not None:
        x, gate = x.unflatten(1, (2, 64)), gate[..., None]
    (gradient,) = torch.autograd.grad(sigmoid_gate(x, gate).sum(), fused)
    truth = SIGMOID_GATE.true_gradients(torch.ones_like(x), x, gate)
    expected = torch.zeros(fused.shape, dtype=torch.float64)
    expected[:, :128], expected[:, 384:] = (part.flatten(1) for part, _ in truth)
    torch.testing.assert_close(gradient.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    assert formulas_of(launches) == ["sigmoid_gate", "sigmoid_gate_backward"]


REFUSED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Any]]] = {
    "a gradient of x": lambda x: (x.clone().requires_grad_(), x, torch.zeros_like(x)),
    "a gradient of gate": lambda x: (x, x.clone().requires_grad_(), torch.zeros_like(x)),
    "a gradient of out": lambda x: (x, x, torch.zeros_like(x, requires_grad=True)),
    "a part of x": lambda x: (x.flatten()[:-4].view(3, 4), x[:3], x.flatten()[4:].view(3, 4)),
    "an expanded out": lambda x: (x, x, torch.zeros(1, 4).expand(4, 4)),
    "rows of one number": lambda x: (x, x, torch.zeros(4, 1).expand(4, 4)),
    "an integer out": lambda x: (x, x, torch.zeros(4, 4, dtype=torch.int32)),
    "x too small": lambda x: (small := x[:1].clone(), x, small),
    "shapes that do not match": lambda x: (x, x[:3], torch.zeros_like(x)),
    "no tensor": lambda x: (x, x, "out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_pytorch_refuses(kernel_route: Route, launches: list[str], case: str) -> None:
    """The same error as of torch.mul(..., out=...), and nothing is written."""
    x = torch.linspace(-3, 3, 16).view(4, 4)
    errors = []
    for op in (_theirs, lambda x, gate, out: sigmoid_gate(x, gate, out=out)):
        operands = REFUSED[case](x)
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        before = [tensor.detach().clone() for tensor in tensors]
        errors.append(outcome(op, *operands))
        assert all(map(torch.equal, before, tensors))
    assert errors[0] == errors[1]
    assert errors[0][0] in (RuntimeError, TypeError)
    assert launches == []


def test_an_inference_tensor_elsewhere(kernel_route: Route, launches: list[str]) -> None:
    """Outside of inference mode it cannot be written to, with PyTorch's error."""
    x = torch.ones(4, 4, device=kernel_route.device)
    with torch.inference_mode():
        out = torch.zeros_like(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        sigmoid_gate(x, x, out=out)
    assert launches == []


def test_another_dtype_or_shape(kernel_route: Route, launches: list[str]) -> None:
    """A narrower out is rounded to, an empty one grows, and one of another shape is resized with PyTorch's warning."""
    x = torch.linspace(-3, 3, 16, device=kernel_route.device).view(4, 4)
    for out in (torch.zeros(4, 4, dtype=torch.float16), torch.zeros(0), torch.zeros(4, 4).T):
        theirs = _theirs(x, x, out.clone().to(x.device))
        assert torch.equal(sigmoid_gate(x, x, out=out.to(x.device)), theirs)
    out = torch.zeros(3, 5, device=x.device)
    with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
        sigmoid_gate(x, x, out=out)
    assert torch.equal(out, _theirs(x, x, torch.zeros_like(x)))
    assert set(launches) <= {"sigmoid_gate"}


def test_a_gate_that_out_overlaps_in_part(kernel_route: Route, launches: list[str]) -> None:
    """PyTorch has σ(gate) before it writes; a kernel would read what another program has written, and is not taken."""
    memory = torch.linspace(-3, 3, 20, device=kernel_route.device)
    x, gate, out = torch.ones(4, 4, device=memory.device), memory[:16].view(4, 4), memory[4:].view(4, 4)
    expected = torch.sigmoid(gate)
    assert torch.equal(sigmoid_gate(x, gate, out=out), expected)
    assert launches == []


def test_leaves_under_no_grad(kernel_route: Route, launches: list[str]) -> None:
    """Where no gradient is recorded, tensors that require one take the kernel, in inference mode, too."""
    for mode in (torch.no_grad(), torch.inference_mode()):
        x = torch.ones(3, 4, device=kernel_route.device, requires_grad=True)
        launches.clear()
        with mode:
            y = x * 2
            sigmoid_gate(y, x, out=y)
        assert launches == ["sigmoid_gate"]


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled(kernel_route: Route, launches: list[str]) -> None:
    """Under torch.compile it is torch.mul(..., out=...)."""
    x, gate = SIGMOID_GATE.operands("per channel", torch.float64, kernel_route.device)
    out = torch.zeros_like(x)
    compiled = torch.compile(lambda x, gate, out: sigmoid_gate(x, gate, out=out), backend="aot_eager", fullgraph=True)
    compiled(x, gate, out)
    torch.testing.assert_close(out, SIGMOID_GATE.truth(x, gate), check_device=False)
    assert launches == []


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """A view of 64 elements whose values are their own places."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    steps = [draw(st.integers(0, 12)) for _ in shape]
    reach = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    start = draw(st.integers(0, max(0, 63 - reach)))
    return PLACES.as_strided(shape, steps, start)


PLACES = torch.arange(128)


@given(views(), views())
@settings(deadline=None, max_examples=300)
def test_overlap_is_never_overlooked(a: Tensor, b: Tensor) -> None:
    """Tensors that share an element are not apart, and one with an element twice overlaps itself."""
    places = [x.flatten().tolist() for x in (a, b)]
    assert not (are_apart(a, b) and set(places[0]) & set(places[1]))
    assert overlaps_itself(a) or len(set(places[0])) == len(places[0])


def test_slices_are_seen_to_be_apart() -> None:
    """Columns of one row, heads, halves and neighbouring rows are; a slice that reaches into the other is not."""
    rows = torch.zeros(6, 32)
    assert are_apart(rows[:, :16], rows[:, 16:])
    assert not are_apart(rows[:, :17], rows[:, 16:])
    assert are_apart(rows[:3], rows[3:])
    assert not are_apart(rows[:4], rows[3:])
    assert are_apart(rows[:, :8].unflatten(1, (2, 4)), rows[:, 8:10, None])
    assert are_apart(rows[:, 4:8], rows[:1, 8:12].expand(6, 4))
    assert are_apart(rows, torch.zeros(6, 32))
    assert not overlaps_itself(rows[:, :16].T)
