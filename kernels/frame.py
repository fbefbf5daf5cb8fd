"""Operands of one shape as batches of rows of columns: how the tiled template sees memory."""

from dataclasses import dataclass
from functools import lru_cache

# A program has 128 threads. Where each batch is a tile of fewer elements, PyTorch's kernels serve better.
SMALLEST_TILE = 128

Strides = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """Operands of one shape as batches of rows of columns: the sizes, and for each operand the three strides.

    ``order`` is the order of the shape's dimensions in memory, outermost first. A frame equals none but itself, which
    makes it quick to look up; :func:`frame` returns the same one for the same operands.
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
    if batch > 1 and rows * columns < SMALLEST_TILE:
        return None
    steps = [[0] * len(strides)] * missing + steps
    of_operands = tuple((b, r, c) for b, r, c in zip(*steps, strict=True))
    return Frame((batch, rows, columns), of_operands, tuple(order))
