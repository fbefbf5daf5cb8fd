"""The tiled template: it finds every operand's elements where they lie, refuses what it cannot, and sums every one."""

from collections.abc import Callable
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.reference import sigmoid64, ulp_of
from sigmoid_op.kernels import frame as frames
from sigmoid_op.kernels import gates as gate_formulas
from sigmoid_op.kernels import pointwise, sums, swiglu, tiled
from sigmoid_op.kernels.frame import Frame
from tests.conftest import Route
from tests.fake_kernel import FakeKernel


def _frame(*tensors: Tensor, smallest_tile: int = 0) -> Frame | None:
    with mock.patch.object(frames, "SMALLEST_TILE", smallest_tile):
        return frames.frame.__wrapped__(tuple(tensors[0].shape), tuple(tensor.stride() for tensor in tensors))


def _found(*tensors: Tensor) -> Frame:
    found = _frame(*tensors)
    assert found is not None
    return found


@st.composite
def operands(draw: st.DrawFn) -> list[Tensor]:
    """Three of one shape, the first dense; dimensions in any order, in which the others may skip elements or stay."""
    shape = draw(st.lists(st.integers(1, 4), max_size=5))
    order = draw(st.permutations(range(len(shape))))
    tensors: list[Tensor] = []
    for first in (True, False, False):
        order = order if draw(st.booleans()) else draw(st.permutations(order))
        sizes = [shape[d] for d in order]
        broadcast = [not first and draw(st.integers(0, 3)) == 0 for _ in order]
        steps = [1 if first else draw(st.sampled_from([1, 1, 1, 2])) for _ in order]
        base = torch.empty([1 if b else s * step for b, s, step in zip(broadcast, sizes, steps, strict=True)])
        for d, step in enumerate(steps):
            base = base if broadcast[d] else base.unflatten(d, (-1, step)).select(d + 1, 0)
        tensors.append(base.expand(sizes).permute([order.index(d) for d in range(len(order))]))
    return tensors


@given(operands())
@settings(deadline=None, max_examples=300)
def test_frame_finds_every_element(tensors: list[Tensor]) -> None:
    """For all operands at once, stepping through the frame is stepping through the tensor in the order it states.

    Operands of one dense layout are one stretch of memory: one row.
    """
    found = _frame(*tensors)
    assert _found(tensors[0], tensors[0]).is_flat
    if found is None:
        return
    batch, rows, columns = found.sizes
    for tensor, (batch_step, row_step, column_step) in zip(tensors, found.steps, strict=True):
        offsets = torch.arange(tensor.untyped_storage().nbytes() // 4).as_strided(tensor.shape, tensor.stride())
        expected = offsets.permute(found.order).flatten().tolist()
        steps = product(range(batch), range(rows), range(columns))
        assert expected == [b * batch_step + r * (row_step or 0) + c * (column_step or 0) for b, r, c in steps]
        assert column_step in (None, 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


# How a tensor of [2, 3, 4, 5] is merged with another one beside it.
MERGED: list[tuple[Callable[[Tensor], tuple[Tensor, Tensor]], tuple[int, int, int] | None]] = [
    (lambda x: (x, x), (1, 1, 120)),
    (lambda x: (x, x[:, :, :1, :1].contiguous().expand_as(x)), (1, 6, 20)),
    (lambda x: (x, x[:1, :1].expand_as(x)), (1, 6, 20)),
    (lambda x: (x, x[:, :1].expand_as(x)), (2, 3, 20)),
    (lambda x: (x, x[:1, :, :1, :1].expand_as(x)), (2, 3, 20)),
    (lambda x: (x, x[:, :1, :, :1].expand_as(x)), None),
    (lambda x: (x, torch.cat([x, x], -1)[..., :5]), (1, 24, 5)),
    (lambda x: (x, torch.cat([x, x], 1)[:, :3]), (1, 2, 60)),
    (lambda x: (x, torch.stack([x, x], -1)[..., 0]), None),
    (lambda x: (_channels_last(x), x), None),
    (lambda x: (_channels_last(x), x[:, :, :1, :1].contiguous().expand_as(x)), (2, 20, 3)),
]


@pytest.mark.parametrize(("operands", "sizes"), MERGED)
def test_frame_merges_all_it_can(
    operands: Callable[[Tensor], tuple[Tensor, Tensor]], sizes: tuple[int, int, int] | None
) -> None:
    """Batches, rows and columns are the largest there are; no more than three dimensions, and no skipped element."""
    found = _frame(*operands(torch.empty(2, 3, 4, 5)))
    assert (found.sizes if found else None) == sizes


def test_frames_of_small_batches_are_refused() -> None:
    """Where each batch is a tile too small to fill a program no kernel serves; a single one may have any size."""
    x = torch.empty(2, 3, 5)
    assert _frame(x, x[:, :1].expand_as(x), smallest_tile=15) is not None
    assert _frame(x, x[:, :1].expand_as(x), smallest_tile=16) is None
    assert _frame(x, x[:1, :1].expand_as(x), smallest_tile=16) is not None


def _addends(route: Route, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The first has gaps between rows and batches, so that nothing merges."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((2, shape[0], shape[1] + 1, shape[2] + 1), generator=generator).to(route.device, dtype)
    x, gate = drawn[:, :, : shape[1], : shape[2]]
    return x, gate.contiguous()


def _sums(layout: Frame, axis: int | None, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """Of inputs[0] · σ(inputs[1]), tile by tile; every element starts as NaN."""
    dtype = inputs[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = tiled.tiling(layout, dtype.itemsize, axis).shape_of_sums
    sums = torch.full(shape, torch.nan, dtype=wide, device=inputs[0].device)
    tiled.launch_tiled(gate_formulas.sigmoid_gate, (), inputs, (), layout, (), sums, axis)
    return sums


# A full tile of rows and columns and parts of one, whichever axis is summed; batches; one element.
SHAPES = [(2, 40, 70), (2, 3, 2060), (1, 3, 2060), (1, 1, 1), (1, 64, 128)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_sums(kernel_route: Route, shape: tuple[int, int, int], axis: int | None, dtype: torch.dtype) -> None:
    """Every element is in one tile's sum, those past the end add nothing; a second run gives the same bits.

    Bounds are relative to the sum of magnitudes; bfloat16 has a σ made for a result of 8 bits.
    """
    x, gate = _addends(kernel_route, dtype, shape)
    layout = _found(x, gate)
    assert layout.sizes == shape
    total = _sums(layout, axis, (x, gate))
    assert torch.equal(total, _sums(layout, axis, (x, gate)))
    exact = x.double() * sigmoid64(gate)
    over = (0, 1, 2) if axis is None else (1 + axis,)
    kept = total.double().sum(None if axis is None else 1)
    bound = {torch.bfloat16: 1e-4, torch.float32: 1e-6, torch.float64: 2e-15}[dtype] * exact.abs().sum(over)
    assert bool(((kept - exact.sum(over)).abs() <= bound).all())


@pytest.mark.parametrize("scale", [None, 1 / 3])
def test_scalars_and_outputs(kernel_route: Route, scale: float | None) -> None:
    """A scalar operand, which comes first, is one number for all, times the scale; outputs stand beside a sum."""
    x, gate = _addends(kernel_route, torch.float32, (1, 70, 130))
    grad_out = torch.tensor(1.5, device=kernel_route.device)
    grad_x, grad_gate = torch.full_like(gate, torch.nan), torch.full_like(gate, torch.nan)
    formula, layout = gate_formulas.sigmoid_gate_backward, _found(grad_x, grad_gate, x, gate)
    s, s_minus = sigmoid64(gate), sigmoid64(-gate)
    bits = None if scale is None else pointwise.factor(scale, torch.float32)
    tiled.launch_tiled(formula, (grad_out,), (x, gate), (grad_x, grad_gate), layout, scale=bits)
    factor = 1.5 * (scale or 1)
    torch.testing.assert_close(grad_x.double(), factor * s, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_gate.double(), factor * x.double() * s * s_minus, rtol=1e-6, atol=0)
    layout = _found(grad_x, x, gate)
    sums = torch.full(tiled.tiling(layout, 4, 1).shape_of_sums, torch.nan, device=kernel_route.device)
    tiled.launch_tiled(formula, (grad_out,), (x, gate), (grad_x,), layout, (), sums, 1)
    exact = (1.5 * x.double() * s * s_minus).sum(2)
    torch.testing.assert_close(sums.double().sum(1), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9000, 1), (3, 70, 5), (2, 33, 65), (1, 1, 40)], ids=str)
def test_partial_sums_are_added_up(kernel_route: Route, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """In float64, rounded once to the dtype of the result, times the scale, where the result's steps say."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    partials = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=wide).to(kernel_route.device)
    out = torch.full((shape[2], shape[0]), torch.nan, dtype=dtype, device=kernel_route.device)
    sums.add_up(partials, out, (1, shape[0]), pointwise.bits_of(1 / 3))
    exact = partials.double().sum(1).mul(1 / 3).t()
    bound = ulp_of(exact, dtype) * (0.5 if dtype != torch.float64 else 2) + 1e-13 * partials.double().abs().sum()
    assert bool(((out.double() - exact).abs() <= bound).all())


def test_a_frame_is_cut_for_each_sum_and_dtype() -> None:
    """However it was cut before: a forward and a gradient may find the same frame."""
    layout = _found(torch.empty(6, 4096), torch.empty(4096).expand(6, 4096))
    for _ in range(2):
        shapes = [tiled.tiling(layout, 4, axis).shape_of_sums for axis in (None, 0, 1)]
        assert shapes == [(1, 12, 1), (1, 1, 4096), (1, 2, 6)]
        assert [tiled.tiling(layout, itemsize, None).tile[1] for itemsize in (4, 8)] == [2048, 1024]


def _launch(
    x: Tensor, gate: Tensor, formula: Any = gate_formulas.sigmoid_gate, summed: bool = False, **keywords: Any
) -> None:
    out, gate = torch.empty_like(x), gate.expand_as(x)
    if summed:
        keywords["sums"] = x.new_empty(0)
    tiled.launch_tiled(formula, (), (x, gate), (out,), _found(out, x, gate), **keywords)


def _launch_halves(x: Tensor, halves: tuple[int | None, ...]) -> None:
    """The first is the result, as large as a half; the others are halves of ``x``."""
    layout = frames.frame_of_halves(tuple(x.shape), 1, halves)
    assert layout is not None
    tiled.launch_tiled(gate_formulas.sigmoid_gate, (), (x, x), (torch.empty(len(x), x.shape[1] // 2),), layout)


def test_compiles_once_for_each_kind(jit: FakeKernel) -> None:
    """A second launch of one kind skips Triton's binding; whatever Triton would specialize on makes another kind."""
    x, gate = torch.zeros(6, 16), torch.zeros(16)
    for _ in range(3):
        _launch(x, gate)
    assert (len(jit.launched), [len(kernel.launched) for kernel in jit.compiled]) == (1, [2])
    others: list[Callable[[], None]] = [
        lambda: _launch(x, torch.zeros(6, 1)),
        lambda: _launch(x, torch.zeros(6, 16)),
        lambda: _launch(torch.zeros(6, 17), torch.zeros(17)),
        lambda: _launch(torch.zeros(2, 6, 64).transpose(0, 1), torch.zeros(64)),
        lambda: _launch(x.bfloat16(), gate),
        lambda: _launch(x, gate.bfloat16()),
        lambda: _launch(x, torch.zeros(17)[1:]),
        lambda: _launch(torch.zeros(6 * 16 + 1)[1:].view(6, 16), gate),
        lambda: _launch(x, gate, swiglu.swiglu),
        lambda: _launch(x, gate, constants=(1,)),
        lambda: _launch(x, gate, summed=True, axis=0),
        lambda: _launch(x, gate, summed=True, axis=1),
        lambda: _launch(x, gate, summed=True, axis=1, scale=1),
        lambda: _launch_halves(x, (None, 0, 1)),
        lambda: _launch_halves(x, (None, 1, 0)),
        lambda: _launch_halves(x, (None, 0, 0)),
    ]
    for launch in others:
        assert jit.compiles(launch)


def test_sums_of_partials_compile_once_for_each_kind(jit: FakeKernel) -> None:
    """The same of the kernel that adds up what the tiles added up, whatever the number of partial sums."""
    many, one, steps = torch.zeros(2, 64, 48), torch.zeros(2, 4097, 1), (48, 1)
    for partials in (many, many[:1], torch.zeros(3, 5, 48)):
        sums.add_up(partials, torch.zeros(200), steps)
    assert len(jit.launched) == 1
    others: list[Callable[[], None]] = [
        lambda: sums.add_up(many, torch.zeros(200), steps, scale=1),
        lambda: sums.add_up(many, torch.zeros(200), (1, 2)),
        lambda: sums.add_up(many, torch.zeros(200), (3, 1)),
        lambda: sums.add_up(one, torch.zeros(200), steps),
        lambda: sums.add_up(many.double(), torch.zeros(200), steps),
        lambda: sums.add_up(many, torch.zeros(200).bfloat16(), steps),
        lambda: sums.add_up(many, torch.zeros(201)[1:], steps),
    ]
    for launch in others:
        assert jit.compiles(launch)
