"""A kernel that is not launched: tests of the way there need no GPU."""

from collections.abc import Callable
from typing import Any


class FakeKernel:
    """Stands for Triton's jit function, and for the kernels it compiles: it notes who was launched with what grid."""

    def __init__(self) -> None:
        self.compiled: list[FakeKernel] = []
        self.launched: list[tuple[Any, ...]] = []
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., "FakeKernel"]:
        def run(*args: Any, **options: Any) -> FakeKernel:
            self.launched.append((grid, *args))
            if options:
                self.options = options
                self.compiled.append(FakeKernel())
                return self.compiled[-1]
            return self

        return run
