"""The second launch template: operands that broadcast, that are halves of a packed tensor, or that are summed.

What :mod:`.pointwise` does for operands of one dense layout, this does for any whose dimensions, merged where memory
allows, are three at most: batches of rows of columns. A program handles a tile of one batch.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .intrinsics import round_to
from .pointwise import BLOCK_SIZES, apply
from .prepared import launch_prepared

# Columns of a tile that is summed along its rows. 64 are whole sectors of memory in every dtype, and leave 32 rows to
# add up before a partial sum is written: by count 0.25 bytes an element, of 6 that a 16-bit gate's gradient moves.
COLUMNS_OF_SUMMED_ROWS = 64

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """Operands of one shape as batches of rows of columns: the sizes, and for each operand the three strides.

    ``order`` is the order of the shape's dimensions in memory, outermost first.
    """

    sizes: tuple[int, int, int]
    strides: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]

    @property
    def is_flat(self) -> bool:
        """One dense stretch of memory, the same for each operand."""
        return self.sizes[:2] == (1, 1) and all(stride[2] == 1 for stride in self.strides)


@lru_cache(maxsize=4096)
def frame(shape: tuple[int, ...], strides: tuple[Strides, ...]) -> Frame | None:
    """Merge the dimensions of operands of one shape, in the memory order of the first; None where no kernel serves.

    Two neighbouring dimensions merge where every operand steps from the end of one to the next of the other. What
    remains may have three dimensions, and a step in the innermost one goes to the next element, or nowhere.
    """
    order = sorted(range(len(shape)), key=lambda d: strides[0][d], reverse=True)
    sizes: list[int] = []
    steps: list[list[int]] = []  # of each merged dimension, one per operand
    for d in order:
        step = [stride[d] for stride in strides]
        if shape[d] == 1:
            continue
        if sizes and all(outer == inner * shape[d] for outer, inner in zip(steps[-1], step, strict=True)):
            sizes[-1] *= shape[d]
            steps[-1] = step
        else:
            sizes.append(shape[d])
            steps.append(step)
    missing = 3 - len(sizes)
    if missing < 0 or (steps and any(step not in (0, 1) for step in steps[-1])):
        return None
    if not steps:  # one element
        steps, sizes, missing = [[1] * len(strides)], [1], 2
    batch, rows, columns = [1] * missing + sizes
    steps = [[0] * len(strides)] * missing + steps
    of_operands = tuple((b, r, c) for b, r, c in zip(*steps, strict=True))
    return Frame((batch, rows, columns), of_operands, tuple(order))


@triton.jit
def _pointers(operand, batch, row, column):
    """The addresses of a tile: those of one column where the operand steps along rows only, and the other way round."""
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
    n_rows,
    n_columns,
    batch,
    row_tile,
    column_tile,
    formula: tl.constexpr,
    constants: tl.constexpr,
    AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FULL: tl.constexpr,
):
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
            pointers = sums[i] + (batch * tl.cdiv(n_rows, ROWS) + row_tile) * n_columns + columns
            tl.store(pointers, tl.sum(addends, axis=0), mask=columns < n_columns)
        elif AXIS == 1:
            pointers = sums[i] + (batch * tl.cdiv(n_columns, COLUMNS) + column_tile) * n_rows + rows
            tl.store(pointers, tl.sum(addends, axis=1), mask=rows < n_rows)
        else:
            tl.store(sums[i] + tl.program_id(0), tl.sum(tl.sum(addends, axis=1), axis=0))


@triton.jit
def tiled_kernel(
    scalars,
    inputs,
    outputs,
    sums,
    n_rows,
    n_columns,
    formula: tl.constexpr,
    constants: tl.constexpr,
    AXIS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """outputs[i] = formula(*scalars, *inputs)[i]; the results after those are summed, each tile by itself, over AXIS.

    Inputs and outputs are (pointer, step per batch, per row, per column); the step of a row or a column is None where
    the operand is broadcast along it. ``sums`` lie in memory as [batch, tile, row] for AXIS 1, [batch, tile, column]
    for AXIS 0, and one per program for None, both axes. The order of every addition is fixed, so that two runs give the
    same bits. A full tile runs without masks, for the reason that ``pointwise_kernel`` gives.
    """
    column_tiles = tl.cdiv(n_columns, COLUMNS)
    row_tiles = tl.cdiv(n_rows, ROWS)
    program = tl.program_id(0)
    column_tile = program % column_tiles
    row_tile = program // column_tiles % row_tiles
    batch = (program // column_tiles // row_tiles).to(tl.int64)
    operands = (scalars, inputs, outputs, sums, n_rows, n_columns, batch, row_tile, column_tile)
    row_end, column_end = (row_tile.to(tl.int64) + 1) * ROWS, (column_tile.to(tl.int64) + 1) * COLUMNS
    if row_end <= n_rows and column_end <= n_columns:
        _tile(*operands, formula, constants, AXIS, ROWS, COLUMNS, True)
    else:
        _tile(*operands, formula, constants, AXIS, ROWS, COLUMNS, False)


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
    """Write ``formula(*scalars, *inputs)`` to ``outputs``, and return the sums over ``axis`` of the ``summed`` results
    after those, tile by tile: [batch, tile, row], [batch, tile, column] or [tile], in float32, for float64 in float64.

    ``frame`` is that of outputs and inputs in turn. Nothing is checked here: the callers in this package do.
    """
    tensors = outputs + inputs
    first = tensors[0]
    batch, n_rows, n_columns = frame.sizes
    size = BLOCK_SIZES[first.element_size()]
    columns = min(size if axis != 0 else COLUMNS_OF_SUMMED_ROWS, triton.next_power_of_2(n_columns))
    rows = min(size // columns, triton.next_power_of_2(n_rows))
    row_tiles, column_tiles = triton.cdiv(n_rows, rows), triton.cdiv(n_columns, columns)
    shapes = {
        0: (batch, row_tiles, n_columns),
        1: (batch, column_tiles, n_rows),
        None: (batch * row_tiles * column_tiles,),
    }
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    sums = tuple(torch.empty(shapes[axis], dtype=dtype, device=first.device) for _ in range(summed))
    operands = [(x, b, r or None, c or None) for x, (b, r, c) in zip(tensors, frame.strides, strict=True)]
    args = (
        scalars,
        tuple(operands[len(outputs) :]),
        tuple(operands[: len(outputs)]),
        sums,
        n_rows,
        n_columns,
        formula,
        constants,
        axis,
        rows,
        columns,
    )
    aligned = [tensor.data_ptr() % 16 == 0 for tensor in scalars + tensors]
    dtypes = [tensor.dtype for tensor in scalars + tensors]
    key = (formula, first.get_device(), constants, axis, summed, len(outputs), frame, *aligned, *dtypes)
    launch_prepared(tiled_kernel, (batch * row_tiles * column_tiles, 1, 1), args, key)
    return sums
