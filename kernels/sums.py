"""The second launch of a sum: what each tile added up is added up once more, in one order for all runs."""

import triton
import triton.language as tl
from torch import Tensor

from .intrinsics import widen
from .launch import kind
from .launch import launch as launch_kernel
from .pointwise import alignments, dtype_of, store_sum

# Partial sums by results that a program handles at a time: of one result, and of many.
SHAPE_OF_ONE, SHAPE_OF_MANY = (4096, 1), (32, 32)


@triton.jit(do_not_specialize=["n_partials", "n_results", "blocks", "scale"])
def sums_kernel(
    partials,
    out,
    divisor,
    steps,
    n_partials: tl.int64,
    n_results: tl.int64,
    blocks: tl.int32,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[batch, i] = the sum of partials[batch, :, i], taken in float64; ``steps`` are those of out, per batch and i.

    ``scale``, the bits of a float64 or None, multiplies it; ``divisor``, an address or None, divides it. ``blocks`` of
    COLUMNS results make up a batch.
    """
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    pointers = partials + (batch * n_partials + row[:, None]) * n_results + column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    left = n_partials
    while left > 0:  # Triton 3.6 interprets no range over a tensor
        mask = (row < left)[:, None] & (column < n_results)[None, :]
        total += tl.load(pointers, mask=mask, other=0.0).to(tl.float64)
        pointers += ROWS * n_results
        left -= ROWS
    total = tl.sum(total, axis=0)
    if divisor is not None:
        total = total / widen(tl.load(divisor)).to(tl.float64)
    store_sum(out + batch * steps[0] + column * steps[1], total, scale, column < n_results)


def add_up(
    partials: Tensor, out: Tensor, steps: tuple[int, int], scale: int | None = None, divisor: Tensor | None = None
) -> None:
    """Write the sums of ``partials``, [batch, partial, result], to ``out``, where ``steps`` say.

    They are multiplied by ``scale``, the bits of a float64, or divided by ``divisor``, a tensor of one number.
    """
    batch, n_partials, n_results = partials.shape
    rows, columns = SHAPE_OF_ONE if n_results == 1 else SHAPE_OF_MANY
    blocks = (n_results - 1) // columns + 1
    args = (partials, out, divisor, steps, n_partials, n_results, blocks, scale, rows, columns)
    tensors = (partials, out) if divisor is None else (partials, out, divisor)
    classes = (*map(kind, steps), scale is None, rows)
    key = (id(sums_kernel), out.get_device(), classes, alignments(tensors), *map(dtype_of, tensors))
    launch_kernel(sums_kernel, batch * blocks, args, key)
