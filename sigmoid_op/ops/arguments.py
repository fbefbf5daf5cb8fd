"""Numbers that a kernel is compiled for: checked before anything runs."""

import sys
from typing import Any


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise TypeError for what is no Python number, and ValueError for one that is not finite, or not above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not abs(value) <= sys.float_info.max or (positive and value <= 0):
        raise ValueError(f"{name} must be a finite number{' above 0' if positive else ''}, got {value!r}")
