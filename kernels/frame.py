"""Operands of one shape as batches of rows of columns: how the tiled template sees memory."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

# A program has 128 threads. Where each batch is a tile of fewer elements, PyTorch's kernels serve better.
SMALLEST_TILE = 128

Strides = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """Operands of one shape as batches of rows of columns: the sizes, and of each operand the steps along them.

    The step of a row or a column is None where the operand is broadcast along it, or there is but one. ``order`` is the
    order of the shape's dimensions in memory, outermost first. :func:`frame` returns the same frame for the same
    operands.
    """

    sizes: tuple[int, int, int]
    steps: tuple[tuple[int, int | None, int | None], ...]
    order: tuple[int, ...]
    is_flat: bool  # one dense stretch of memory, the same for each operand
    offsets: tuple[int | None, ...]  # of the first element, where that is not the tensor's
    tilings: dict[Any, Any] = field(default_factory=dict)  # how the tiled template cuts it, once it has


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
    if batch > 1 and rows * columns < SMALLEST_TILE:
        return None
    steps = [[0] * len(strides)] * missing + steps
    of_operands = tuple((b, r or None, c or None) for b, r, c in zip(*steps, strict=True))
    is_flat = batch == rows == 1 and all(step[2] for step in of_operands)
    return Frame((batch, rows, columns), of_operands, tuple(order), is_flat, (None,) * len(strides))


@lru_cache(maxsize=4096)
def frame_of_halves(shape: tuple[int, ...], dim: int, halves: tuple[int | None, ...]) -> Frame | None:
    """Operands of which some are the first or second half, 0 or 1, of a contiguous tensor of ``shape``.

    The others, None, are contiguous and as large as a half. None where no kernel serves, or the halves are dense, so
    that the pointwise template serves better.
    """
    strides = _contiguous(shape)
    half = half_of(shape, dim)
    found = frame(half, tuple([_contiguous(half) if which is None else strides for which in halves]))
    if found is None or found.is_flat:
        return None
    return replace(found, offsets=tuple(strides[dim] * half[dim] if which else None for which in halves), tilings={})


@lru_cache(maxsize=4096)
def frame_of_broadcast(
    shape: tuple[int, ...], strides: tuple[Strides, ...], small_shape: tuple[int, ...], small_strides: Strides
) -> Frame | None:
    """Operands of ``shape``, and a last one that broadcasts to it."""
    steps = [0 if size == 1 else step for size, step in zip(small_shape, small_strides, strict=True)]
    return frame(shape, (*strides, (*[0] * (len(shape) - len(steps)), *steps)))


@lru_cache(maxsize=4096)
def half_of(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """``shape`` with half the size along ``dim``."""
    sizes = list(shape)
    sizes[dim] //= 2
    return tuple(sizes)


def _contiguous(shape: tuple[int, ...]) -> Strides:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps))
