"""The second launch template: operands that broadcast, that are halves of a packed tensor, or that are summed.

What :mod:`.pointwise` does for operands of one dense layout, this does for any whose dimensions, merged where memory
allows, are three at most: batches of rows of columns. A program handles a tile of one batch.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .frame import Frame
from .intrinsics import round_to
from .launch import kind
from .launch import launch as launch_kernel
from .pointwise import BLOCK_SIZES, alignments, apply, dtype_of, load_scalars, store_sum

# Columns of a tile that is summed along its rows. 64 are whole sectors of memory in every dtype, and leave 32 rows to
# add up before a partial sum is written: by count 0.25 bytes an element, of 6 that a 16-bit gate's gradient moves.
COLUMNS_OF_SUMMED_ROWS = 64


@triton.jit
def _pointers(pointer, offset, steps, batch, row, column):
    """The addresses of a tile; of one column, or one row, where the operand is broadcast along the other side."""
    batch_step, row_step, column_step = steps
    if offset is not None:
        pointer += offset
    pointer += batch * batch_step
    if row_step is not None:
        pointer += row * row_step
    if column_step is not None:
        pointer += column
    return pointer


@triton.jit
def _load(operand, batch, row, column, row_mask, column_mask, FULL: tl.constexpr):
    pointer, offset, steps = operand
    _, row_step, column_step = steps
    pointers = _pointers(pointer, offset, steps, batch, row, column)
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
    offsets,
    steps,
    sizes,
    place,
    scale,
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
    uniform = load_scalars(scalars, scale, sums is not None)
    loaded = tl.tuple([_load(operand, batch, row, column, row_mask, column_mask, FULL) for operand in inputs])
    results = apply(formula, uniform + loaded, constants)
    for i in tl.static_range(len(outputs)):
        rounded = round_to(results[i], outputs[i].dtype.element_ty)
        tl.store(_pointers(outputs[i], offsets[i], steps[i], batch, row, column), rounded, mask=None if FULL else mask)
    if sums is not None:
        addends = tl.broadcast_to(results[len(outputs)], (ROWS, COLUMNS))
        if not FULL:
            addends = tl.where(mask, addends, 0.0)
        if AXIS == 0:
            pointers = sums + (batch * row_tiles + row_tile) * n_columns + columns
            store_sum(pointers, tl.sum(addends, axis=0), scale, None if FULL else columns < n_columns)
        elif AXIS == 1:
            pointers = sums + (batch * column_tiles + column_tile) * n_rows + rows
            store_sum(pointers, tl.sum(addends, axis=1), scale, None if FULL else rows < n_rows)
        else:
            store_sum(sums + tl.program_id(0), tl.sum(tl.sum(addends, axis=1), axis=0), scale)


@triton.jit(do_not_specialize=["n_rows", "n_columns", "row_tiles", "column_tiles", "scale"])
def tiled_kernel(
    scalars,
    inputs,
    outputs,
    sums,
    offsets,
    steps,
    n_rows: tl.int64,
    n_columns: tl.int64,
    row_tiles: tl.int32,
    column_tiles: tl.int32,
    scale,
    formula: tl.constexpr,
    constants: tl.constexpr,
    AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """outputs[i] = formula(*scalars, *inputs)[i]; where ``sums`` is given, one more result is summed over AXIS.

    ``inputs`` are a pointer each, with the offset of its first element (None: 0) and its steps, per batch, row and
    column; that of a row or a column is None where the input is broadcast along it. ``offsets`` and ``steps`` are those
    of the outputs, by themselves, as Triton 3.6 cannot take the ``len`` of a tuple that has a None within. ``sums`` lie
    in memory as [batch, tile, row] for AXIS 1, [batch, tile, column] for AXIS 0, and one per program for None, both
    axes; ``scale`` is as in ``pointwise_kernel``. The host counts the tiles: rounding up could overflow. WHOLE says
    that the columns are a multiple of 16, which keeps the accesses of the last tile wide. The order of every addition
    is fixed, so that two runs give the same bits. A full tile runs without masks, for the reason that
    ``pointwise_kernel`` gives.
    """
    if WHOLE:
        n_columns = n_columns // 16 * 16
    program = tl.program_id(0)
    column_tile = program % column_tiles
    row_tile = program // column_tiles % row_tiles
    batch = (program // column_tiles // row_tiles).to(tl.int64)
    place = (batch, row_tile, column_tile)
    sizes = (n_rows, n_columns, row_tiles, column_tiles)
    row_end, column_end = (row_tile.to(tl.int64) + 1) * ROWS, (column_tile.to(tl.int64) + 1) * COLUMNS
    if row_end <= n_rows and column_end <= n_columns:
        _tile(
            scalars, inputs, outputs, sums, offsets, steps, sizes, place, scale,
            formula, constants, AXIS, ROWS, COLUMNS, FULL=True,
        )  # fmt: skip
    else:
        _tile(
            scalars, inputs, outputs, sums, offsets, steps, sizes, place, scale,
            formula, constants, AXIS, ROWS, COLUMNS, FULL=False,
        )  # fmt: skip


_kinds: dict[tuple[Any, ...], int] = {}  # numbered, as a number is quicker to look up


class Tiling(NamedTuple):
    """How a frame is cut: what the kernel is given for it, the number of programs, and the shape of a sum.

    What the compiled kernel depends on leaves out the outermost sizes, so that other numbers of rows, or of elements,
    take the same kernel.
    """

    sizes: tuple[int, int, int, int]
    tile: tuple[int, int, bool]  # ROWS, COLUMNS, WHOLE
    kind: int  # what the compiled kernel depends on has this number
    programs: int
    shape_of_sums: tuple[int, int, int]


def tiling(frame: Frame, itemsize: int, axis: int | None) -> Tiling:
    """Tiles of as many elements as a block has: whole rows as far as they go, narrower where rows are summed."""
    known = frame.tilings.get((itemsize, axis))
    if known is None:
        known = frame.tilings[itemsize, axis] = _tiling(frame, itemsize, axis)
    return known


def _tiling(frame: Frame, itemsize: int, axis: int | None) -> Tiling:
    batch, n_rows, n_columns = frame.sizes
    size = BLOCK_SIZES[itemsize]
    columns = size if batch == n_rows == 1 else min(size, triton.next_power_of_2(n_columns))
    if axis == 0:
        columns = min(columns, COLUMNS_OF_SUMMED_ROWS)
    rows = size // columns if batch == 1 else min(size // columns, triton.next_power_of_2(n_rows))
    row_tiles, column_tiles = triton.cdiv(n_rows, rows), triton.cdiv(n_columns, columns)
    programs = batch * row_tiles * column_tiles
    shapes = {0: (batch, row_tiles, n_columns), 1: (batch, column_tiles, n_rows), None: (1, programs, 1)}
    tile = (rows, columns, n_columns % 16 == 0)
    steps = tuple(kind(step) for of_operand in frame.steps for step in of_operand)
    number = _kinds.setdefault((*tile, *steps, *map(kind, frame.offsets)), len(_kinds))
    return Tiling((n_rows, n_columns, row_tiles, column_tiles), tile, number, programs, shapes[axis])


def arguments(
    formula: Any,
    scalars: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    frame: Frame,
    tiles: Tiling,
    constants: tuple[Any, ...] = (),
    sums: Tensor | None = None,
    axis: int | None = None,
    scale: int | None = None,
) -> tuple[Any, ...]:
    """Those of :func:`tiled_kernel`."""
    n_outputs = len(outputs)
    offsets, steps = frame.offsets, frame.steps
    of_inputs = tuple(zip(inputs, offsets[n_outputs:], steps[n_outputs:], strict=True))
    of_outputs = offsets[:n_outputs], steps[:n_outputs]
    return (
        scalars, of_inputs, outputs, sums, *of_outputs, *tiles.sizes, scale, formula, constants, axis, *tiles.tile
    )  # fmt: skip


def launch_tiled(
    formula: Any,
    scalars: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    frame: Frame,
    constants: tuple[Any, ...] = (),
    sums: Tensor | None = None,
    axis: int | None = None,
    scale: int | None = None,
) -> None:
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, and to ``sums`` one more result, summed over ``axis``.

    ``sums`` has the elements of :func:`tiling`'s ``shape_of_sums``. ``frame`` is that of outputs and inputs in turn.
    Nothing is checked here: the callers in this package do.
    """
    first = outputs[0] if outputs else inputs[0]
    tiles = tiling(frame, first.element_size(), axis)
    tensors = (*scalars, *inputs, *outputs) if sums is None else (*scalars, *inputs, *outputs, sums)
    args = arguments(formula, scalars, inputs, outputs, frame, tiles, constants, sums, axis, scale)
    counts = (len(scalars), len(outputs), sums is None, scale is None, axis)
    key = (
        id(formula), first.get_device(), constants, counts, tiles.kind, alignments(tensors), *map(dtype_of, tensors)
    )  # fmt: skip
    launch_kernel(tiled_kernel, tiles.programs, args, key)
