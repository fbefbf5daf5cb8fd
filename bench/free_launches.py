"""Triton's real runtime with launches that cost nothing, on CPU tensors: what is left of a call is its host time.

Kernels are compiled for an H100, bound and launched as on a GPU, by a driver whose launches do nothing.
"""

import os
import sys
from typing import Any


class _Utils:
    """What Triton asks of a GPU when it loads a compiled kernel."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads


class _Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *args: Any) -> None:
        pass


class FreeLaunches:
    """What Triton's runtime asks of a driver. The device is -1, the index of a CPU tensor."""

    launcher_cls = _Launcher

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.utils = _Utils()
        self.target = GPUTarget("cuda", 90, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return -1

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass


def install() -> None:
    """Make CPU tensors take compiled kernels, at every size. Before anything of sigmoid_op or Triton is imported.

    TRITON_INTERPRET tells the library that CPU tensors take kernels, and Triton, which reads it later, to interpret
    them: so it is set for the library alone.
    """
    if "triton" in sys.modules or "sigmoid_op" in sys.modules:
        raise RuntimeError("free launches must be installed before sigmoid_op and Triton are imported")
    os.environ["TRITON_INTERPRET"] = "1"
    from sigmoid_op import dispatch  # noqa: F401  # reads the variable

    del os.environ["TRITON_INTERPRET"]
    import torch
    from triton.runtime import driver

    driver.set_active(FreeLaunches())
    torch.cuda.current_device = lambda: -1
