"""The second launch template: operands that broadcast, that are halves of a packed tensor, or that are summed.

What :mod:`.pointwise` does for operands of one dense layout, this does for any whose dimensions, merged where memory
allows, are three at most: batches of rows of columns. A program handles a tile of one batch.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .frame import Frame
from .intrinsics import round_to
from .launch import launch_prepared
from .pointwise import BLOCK_SIZES, apply

# Columns of a tile that is summed along its rows. 64 are whole sectors of memory in every dtype, and leave 32 rows to
# add up before a partial sum is written: by count 0.25 bytes an element, of 6 that a 16-bit gate's gradient moves.
COLUMNS_OF_SUMMED_ROWS = 64


@triton.jit
def _pointers(operand, batch, row, column):
    """The addresses of a tile; of one column, or one row, where the operand is broadcast along the other side."""
    pointer, batch_step, row_step, column_step = operand
    pointer += batch * batch_step
    if row_step is not None:
        pointer += row * row_step
    if column_step is not None:
        pointer += column
    return pointer


@triton.jit
def _load(operand, batch, row, column, row_mask, column_mask, FULL: tl.constexpr):
    _, _, row_step, column_step = operand
    pointers = _pointers(operand, batch, row, column)
    if FULL or (row_step is None and column_step is None):
        return tl.load(pointers)
    elif column_step is None:
        return tl.load(pointers, mask=row_mask)
    elif row_step is None:
        return tl.load(pointers, mask=column_mask)
    else:
        return tl.load(pointers, mask=row_mask & column_mask)


@triton.jit
def _tile(
    scalars,
    inputs,
    outputs,
    sums,
    sizes,
    place,
    formula: tl.constexpr,
    constants: tl.constexpr,
    AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FULL: tl.constexpr,
):
    n_rows, n_columns, row_tiles, column_tiles = sizes
    batch, row_tile, column_tile = place
    rows = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = column_tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = rows[:, None], columns[None, :]
    row_mask, column_mask = row < n_rows, column < n_columns
    mask = row_mask & column_mask
    uniform = tl.tuple([tl.load(pointer) for pointer in scalars])
    loaded = tl.tuple([_load(operand, batch, row, column, row_mask, column_mask, FULL) for operand in inputs])
    results = apply(formula, uniform + loaded, constants)
    for i in tl.static_range(len(outputs)):
        rounded = round_to(results[i], outputs[i][0].dtype.element_ty)
        tl.store(_pointers(outputs[i], batch, row, column), rounded, mask=None if FULL else mask)
    for i in tl.static_range(len(sums)):
        addends = tl.broadcast_to(results[len(outputs) + i], (ROWS, COLUMNS))
        if not FULL:
            addends = tl.where(mask, addends, 0.0)
        if AXIS == 0:
            pointers = sums[i] + (batch * row_tiles + row_tile) * n_columns + columns
            tl.store(pointers, tl.sum(addends, axis=0), mask=None if FULL else columns < n_columns)
        elif AXIS == 1:
            pointers = sums[i] + (batch * column_tiles + column_tile) * n_rows + rows
            tl.store(pointers, tl.sum(addends, axis=1), mask=None if FULL else rows < n_rows)
        else:
            tl.store(sums[i] + tl.program_id(0), tl.sum(tl.sum(addends, axis=1), axis=0))


@triton.jit
def tiled_kernel(
    scalars,
    inputs,
    outputs,
    sums,
    sizes,
    formula: tl.constexpr,
    constants: tl.constexpr,
    AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """outputs[i] = formula(*scalars, *inputs)[i]; the results after those are summed, each tile by itself, over AXIS.

    Inputs and outputs are (pointer, step per batch, per row, per column); the step of a row or a column is None where
    an input is broadcast along it. ``sums`` lie in memory as [batch, tile, row] for AXIS 1, [batch, tile, column]
    for AXIS 0, and one per program for None, both axes. ``sizes`` are the rows, the columns, and the tiles along each,
    which the host counts: rounding up could overflow. The order of every addition is fixed, so that two runs give the
    same bits. A full tile runs without masks, for the reason that ``pointwise_kernel`` gives.
    """
    n_rows, n_columns, row_tiles, column_tiles = sizes
    program = tl.program_id(0)
    column_tile = program % column_tiles
    row_tile = program // column_tiles % row_tiles
    batch = (program // column_tiles // row_tiles).to(tl.int64)
    place = (batch, row_tile, column_tile)
    row_end, column_end = (row_tile.to(tl.int64) + 1) * ROWS, (column_tile.to(tl.int64) + 1) * COLUMNS
    if row_end <= n_rows and column_end <= n_columns:
        _tile(scalars, inputs, outputs, sums, sizes, place, formula, constants, AXIS, ROWS, COLUMNS, True)
    else:
        _tile(scalars, inputs, outputs, sums, sizes, place, formula, constants, AXIS, ROWS, COLUMNS, False)


class Tiling(NamedTuple):
    """How a frame is cut: the kernel's ``sizes``, a tile's rows and columns, the programs, and the shape of a sum."""

    sizes: tuple[int, int, int, int]
    rows: int
    columns: int
    programs: int
    shape_of_sums: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=4096)
def tiling(frame: Frame, itemsize: int, axis: int | None) -> Tiling:
    """Tiles of as many elements as a block has: whole rows as far as they go, narrower where rows are summed."""
    batch, n_rows, n_columns = frame.sizes
    size = BLOCK_SIZES[itemsize]
    columns = min(size if axis != 0 else COLUMNS_OF_SUMMED_ROWS, triton.next_power_of_2(n_columns))
    rows = min(size // columns, triton.next_power_of_2(n_rows))
    row_tiles, column_tiles = triton.cdiv(n_rows, rows), triton.cdiv(n_columns, columns)
    programs = batch * row_tiles * column_tiles
    shapes = {0: (batch, row_tiles, n_columns), 1: (batch, column_tiles, n_rows), None: (programs,)}
    return Tiling((n_rows, n_columns, row_tiles, column_tiles), rows, columns, programs, shapes[axis], frame.strides)


def arguments(
    formula: Any,
    scalars: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    tiles: Tiling,
    constants: tuple[Any, ...] = (),
    summed: int = 0,
    axis: int | None = None,
) -> tuple[Any, ...]:
    """Those of :func:`tiled_kernel`, with new tensors for its sums."""
    dtype = torch.float64 if torch.float64 in [x.dtype for x in inputs] else torch.float32
    sums = tuple([inputs[0].new_empty(tiles.shape_of_sums, dtype=dtype) for _ in range(summed)])
    first, rest = tiles.strides[: len(outputs)], tiles.strides[len(outputs) :]
    # An output has no None: it is not broadcast, and Triton 3.6 cannot take the ``len`` of a tuple that has one within.
    of_outputs = tuple([(x, *steps) for x, steps in zip(outputs, first, strict=True)])
    of_inputs = tuple([(x, b, r or None, c or None) for x, (b, r, c) in zip(inputs, rest, strict=True)])
    return (
        scalars, of_inputs, of_outputs, sums, tiles.sizes, formula, constants, axis, tiles.rows, tiles.columns
    )  # fmt: skip


def launch_tiled(
    formula: Any,
    scalars: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    frame: Frame,
    *,
    constants: tuple[Any, ...] = (),
    summed: int = 0,
    axis: int | None = None,
) -> tuple[Tensor, ...]:
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, and return the sums of the ``summed`` results after those.

    They are sums over ``axis``, tile by tile: [batch, tile, column] for 0, [batch, tile, row] for 1, [tile] for None;
    in float32, or in float64 where an input is. ``frame`` is that of outputs and inputs in turn. Nothing is checked
    here: the callers in this package do.
    """
    tensors = scalars + outputs + inputs
    tiles = tiling(frame, tensors[len(scalars)].element_size(), axis)
    args = arguments(formula, scalars, inputs, outputs, tiles, constants, summed, axis)
    kinds = [(x.dtype, x.data_ptr() % 16 == 0) for x in tensors]
    key = (formula, inputs[0].get_device(), constants, len(scalars), len(outputs), summed, axis, frame, *kinds)
    launch_prepared(tiled_kernel, (tiles.programs, 1, 1), args, key)
    sums: tuple[Tensor, ...] = args[3]
    return sums
