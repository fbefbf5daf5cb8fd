"""A kernel and a driver that launch nothing: tests of the way there need no GPU."""

from collections.abc import Callable
from typing import Any


class FakeDriver:
    """What the launch asks of Triton's driver; -1 is the index of a CPU tensor."""

    current = -1

    def get_current_device(self) -> int:
        return self.current

    def get_current_stream(self, device: int) -> str:
        return f"stream of {device}"


class FakeKernel:
    """Stands for Triton's jit function, and for the kernels it compiles: it notes who was launched with what.

    ``launched`` has for each launch the number of programs, the device's stream (of Triton's own launch: None) and the
    arguments.
    """

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.compiled: list[FakeKernel] = []
        self.launched: list[tuple[Any, ...]] = []
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., "FakeKernel"]:
        def run(*args: Any, **options: Any) -> FakeKernel:
            self.launched.append((grid[0], None, *args))
            self.options = options
            self.compiled.append(FakeKernel())
            return self.compiled[-1]

        return run

    def compiles(self, launch: Callable[..., object], *args: Any) -> bool:
        """Whether ``launch(*args)`` goes Triton's own way, which compiles what is new."""
        before = len(self.launched)
        launch(*args)
        return len(self.launched) > before

    def run(self, x: int, y: int, z: int, stream: object, function: object, metadata: object, *args: Any) -> None:
        assert (y, z, function, metadata) == (1, 1, self.function, self.packed_metadata)
        assert args[:3] == (None, None, None)  # nothing for hooks, and no hooks
        self.launched.append((x, stream, *args[3:]))
