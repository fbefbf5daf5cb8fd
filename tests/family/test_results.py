"""Each op of the family is a drop-in: PyTorch's values, shape, dtype, strides, errors; a kernel where one serves."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sigmoid_op import SiLU, dispatch, glu, silu, swiglu
from tests.conftest import Route, formulas_of
from tests.members import SIGMOID_GATE, SWIGLU, Member, Op, every_call, every_member, outcome
from tests.ulp import FLOAT_DTYPES

pytestmark = pytest.mark.usefixtures("poisoned_empty")


PAIRS: dict[str, tuple[Any, Any]] = {
    "a narrower gate": (torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bfloat16)),
    "a wider gate": (torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(3, 4)),
    "a wider number": (torch.ones(3, 4, dtype=torch.float16), torch.ones((), dtype=torch.float64)),
    "an integer gate": (torch.ones(3, 4), torch.arange(4)),
    "a larger gate": (torch.ones(4), torch.ones(3, 4)),
    "both broadcast": (torch.ones(3, 1), torch.ones(1, 4)),
    "a gate of more dimensions": (torch.ones(3, 4), torch.ones(1, 3, 4)),
    "sizes that do not match": (torch.ones(3, 4), torch.ones(3, 5)),
    "a Python number as gate": (torch.ones(3, 4), 2.0),
    "a Python number first": (2.0, torch.ones(3, 4)),
    "sparse": (torch.ones(3, 4).to_sparse(), torch.ones(3, 4)),
    "on two devices": (torch.ones(3, 4), torch.ones(3, 4, device="meta")),
}


@every_call
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_result_and_gradients(
    route: Route, launches: list[str], member: Member, variant: str, dtype: torch.dtype
) -> None:
    """The fallback's are PyTorch's, bit for bit; the kernels', one launch each, within the table's ulps of the truth.

    Shapes, dtypes, devices and strides are PyTorch's on every route, and the operands are left as they were.
    """
    member.check(member.operands(variant, dtype, route.device), launches)
    assert formulas_of(launches) == (list(member.launched(dtype)) if route.uses_kernels else [])


@every_member
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_special_values(route: Route, member: Member, dtype: torch.dtype) -> None:
    """Infinities, NaN, zeros of both signs and the largest numbers give what PyTorch gives, the sign of a zero too."""
    largest = torch.finfo(dtype).max
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, largest, -largest, 1.0], dtype=dtype)
    pairs = torch.meshgrid(special.to(route.device), special.to(route.device), indexing="ij")
    operands = member.whole(*pairs)[: member.arity]
    out, theirs = member.ours(*operands), member.theirs(*operands)
    torch.testing.assert_close(out, theirs, equal_nan=True)
    assert torch.equal(out.signbit()[out == 0], theirs.signbit()[out == 0])


@every_member
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.to(torch.complex64),
        lambda x: x.to(torch.int32),
        lambda x: x > 0,
        lambda x: x[..., :0, :],
        lambda x: x[..., :0],
        lambda x: x.to(torch.float8_e5m2),
    ],
    ids=["complex", "integer", "bool", "no rows", "no columns", "float8"],
)
def test_what_no_kernel_takes(
    kernel_route: Route, launches: list[str], member: Member, convert: Callable[[Tensor], Tensor]
) -> None:
    """Other dtypes and empty tensors go to PyTorch, which computes or raises as it does."""
    operands = tuple(map(convert, member.operands("matrix", torch.float32, kernel_route.device)))
    assert_same_outcome(member.ours, member.theirs, *operands)
    assert launches == []


@pytest.mark.parametrize("member", [SIGMOID_GATE, SWIGLU], ids=lambda member: member.name)
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_that_no_kernel_takes(kernel_route: Route, launches: list[str], member: Member, pair: str) -> None:
    """Pairs of two dtypes, two devices, or shapes of which the first is not the result's: as with PyTorch's form."""
    operands = (x.to(kernel_route.device) if isinstance(x, Tensor) and not x.is_meta else x for x in PAIRS[pair])
    assert_same_outcome(member.ours, member.theirs, *operands)
    assert launches == []


def test_operands_on_two_devices_that_kernels_read(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel runs on one device: beside a tensor of another, as of a second GPU, none is taken."""
    x, y = torch.ones(2, 3, 4, device=kernel_route.device)
    assert dispatch.takes("gate", x, y)
    monkeypatch.setattr(Tensor, "get_device", lambda self: int(self is y))
    assert not dispatch.takes("gate", x, y)


@pytest.mark.parametrize(
    ("shape", "dim"), [((), -1), ((3, 5), -1), ((3, 4), 0), ((4, 4), 2), ((4, 4), -3), ((4, 4), 1.5), ((4, 4), None)]
)
def test_errors_of_glu(route: Route, launches: list[str], shape: tuple[int, ...], dim: Any) -> None:
    """A dimension that is not there, of odd size or no number raises F.glu's error, before any launch."""
    x = torch.ones(shape, device=route.device)
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        F.glu(x, dim)
    assert_same_outcome(glu, F.glu, x, dim)
    assert launches == []


@pytest.mark.parametrize("shape", [(), (3, 5), (0,), (4, 1)], ids=str)
def test_errors_of_packed_swiglu(route: Route, launches: list[str], shape: tuple[int, ...]) -> None:
    """What has no last dimension of even size raises ValueError, which names the shape; an empty one does not."""
    x = torch.ones(shape, device=route.device)
    if shape == (0,):
        assert swiglu(x).shape == (0,)
    else:
        with pytest.raises(ValueError, match=rf"even size to halve, got shape {re.escape(str(shape))}"):
            swiglu(x)
    assert launches == []


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_in_place(route: Route, launches: list[str], beta: float) -> None:
    """silu overwrites its input where told to, by position or by name; the gradient flows through.

    A leaf that requires a gradient is refused, as PyTorch does.
    """
    leaf = torch.linspace(-3, 3, 5, dtype=torch.float64, device=route.device, requires_grad=True)
    exact = leaf * torch.sigmoid(beta * leaf)
    (exact_gradient,) = torch.autograd.grad(exact.sum(), leaf)
    by_position, by_name = partial(silu, beta=beta), partial(silu, inplace=True, beta=beta)
    for call in (lambda x: by_position(x, True), lambda x: by_name(input=x), SiLU(inplace=True, beta=beta)):
        for x in (leaf.detach() * 1, leaf * 1):
            assert call(x) is x
            torch.testing.assert_close(x, exact)
        torch.testing.assert_close(torch.autograd.grad(x.sum(), leaf), (exact_gradient,))
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        by_name(leaf)
    assert launches == []


@pytest.mark.parametrize(("ours", "theirs"), [(silu, F.silu), (glu, F.glu)])
def test_signatures(ours: Op, theirs: Op) -> None:
    """Parameters have the names, the order and the defaults that PyTorch gives them; more are keyword-only."""
    parameters = [
        [(p.name, p.kind, p.default) for p in inspect.signature(op).parameters.values()] for op in (ours, theirs)
    ]
    count = len(parameters[1])
    assert parameters[0][:count] == parameters[1]
    assert {kind for _, kind, _ in parameters[0][count:]} <= {inspect.Parameter.KEYWORD_ONLY}


def assert_same_outcome(ours: Op, theirs: Op, *args: Any) -> None:
    """The same bits, or an error of the same type and message."""
    found, expected = outcome(ours, *args), outcome(theirs, *args)
    if not isinstance(expected, Tensor):
        assert found == expected
    elif expected.is_meta or expected.is_sparse:
        assert found.layout == expected.layout
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert found.stride() == expected.stride()
