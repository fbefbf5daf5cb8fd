"""Whether tensors share memory: what an op that writes to a given tensor must know."""

import sys

from torch import Tensor


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of ``x`` may be one place in memory."""
    end = 0  # of what the dimensions so far reach
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride <= end:
            return True
        end += (size - 1) * stride
    return False


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether both, of one dtype, are the same elements in the same places."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def are_apart(a: Tensor, b: Tensor) -> bool:
    """Whether no element of one is known to be an element of the other; both of one dtype.

    They may be slices of one tensor, as of the rows of a fused projection: then all that one has lies in one part of
    each row, and all of the other in another.
    """
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return True
    if not a.numel() or not b.numel():
        return True
    return any(_in_other_columns(a, b, row) for row in (None, *{step for step in a.stride() + b.stride() if step}))


def _in_other_columns(a: Tensor, b: Tensor, row: int | None) -> bool:
    """Whether rows of ``row`` elements, or all memory as one row, have ``a`` and ``b`` in different columns."""
    spans: list[tuple[int, int]] = []
    for x in (a, b):
        within = [
            (size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True) if row is None or step % row
        ]
        start = int(x.storage_offset()) % (row or sys.maxsize)
        end = start + sum(within) + 1
        if row is not None and end > row:
            return False
        spans.append((start, end))
    (a_start, a_end), (b_start, b_end) = spans
    return a_end <= b_start or b_end <= a_start
