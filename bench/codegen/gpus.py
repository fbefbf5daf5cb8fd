"""What a few GPUs can do at best, from NVIDIA's documents, and which of it binds a kernel."""

from dataclasses import dataclass
from typing import Any

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one SM, and double-precision results per clock.

    Source: CUDA C++ Programming Guide, "Compute Capabilities": "Technical Specifications per Compute Capability" and
    the "Architecture" of 8.x, 9.0, 10.0 and 12.0. On all of these: 4 schedulers, each issuing one warp instruction per
    clock, 16 special-function (MUFU) results per clock, 65,536 registers. How these are given out, in units of 256 to
    a warp, is in cuda_occupancy.h of the CUDA toolkit.
    """

    warps: int
    blocks: int
    shared_kib: int
    fp64_per_clock: int

    issue_per_clock: int = 4 * WARP
    mufu_per_clock: int = 16
    registers: int = 65536

    def occupancy(self, registers: int, shared_bytes: int, num_warps: int) -> float:
        """Resident warps over the most possible ones, for blocks of ``num_warps`` warps."""
        per_warp = -(-registers * WARP // 256) * 256
        # Registers belong to one of the 4 schedulers, so each holds a whole number of warps.
        by_registers = 4 * (self.registers // 4 // per_warp) // num_warps
        # The driver keeps 1 KiB of shared memory for each block.
        by_shared = self.shared_kib * 1024 // (shared_bytes + 1024)
        blocks = min(self.blocks, self.warps // num_warps, by_registers, by_shared)
        return blocks * num_warps / self.warps


MULTIPROCESSORS: dict[str, Multiprocessor] = {
    "sm_80": Multiprocessor(warps=64, blocks=32, shared_kib=164, fp64_per_clock=32),
    "sm_89": Multiprocessor(warps=48, blocks=24, shared_kib=100, fp64_per_clock=2),
    "sm_90": Multiprocessor(warps=64, blocks=32, shared_kib=228, fp64_per_clock=64),
    "sm_100": Multiprocessor(warps=64, blocks=32, shared_kib=228, fp64_per_clock=64),
    "sm_120": Multiprocessor(warps=48, blocks=24, shared_kib=100, fp64_per_clock=2),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU at its boost clock. ``bytes_per_second`` is the data sheet's: no copy is faster, most reach 90 % of it."""

    name: str
    target: str
    bytes_per_second: float
    multiprocessors: int
    clock_hz: float
    source: str

    def predict(self, n_bytes: float, instructions: float, mufu: float, fp64: float = 0.0) -> dict[str, Any]:
        """Of what an element needs, the resource that takes longest sets the pace; the others hide behind it.

        Returns which ``binds``, the speed over that of a copy of the same bytes, and the bytes per second that the
        arithmetic allows: below the memory's the kernel is slower than a copy.
        """
        sm, clocks = MULTIPROCESSORS[self.target], self.multiprocessors * self.clock_hz
        seconds = {
            "memory": n_bytes / self.bytes_per_second,
            "issue": instructions / (clocks * sm.issue_per_clock),
            "MUFU": mufu / (clocks * sm.mufu_per_clock),
            "FP64": fp64 / (clocks * sm.fp64_per_clock),
        }
        binds = max(seconds, key=lambda resource: seconds[resource])
        compute = max(seconds[resource] for resource in seconds if resource != "memory")
        return {
            "binds": binds,
            "copy_fraction": seconds["memory"] / seconds[binds],
            "compute_bytes_per_second": n_bytes / compute,
        }


# SMs and clocks: as the driver reports them. With 2 · 64 operations an SM and clock on the A100, 2 · 128 on the others,
# they make the data sheets' FP32 peaks (the B200's 74.4 TFLOPS are given as 75). The DGX B200's data sheet, older,
# rounds up to 64 TB/s for 8; the driver's 7,680 bits at 3,996 MHz make 7.67 TB/s.
GPUS: tuple[Gpu, ...] = (
    Gpu("A100", "sm_80", 2.039e12, 108, 1.41e9,
        "A100 data sheet, 80GB SXM: 2,039 GB/s, 19.5 TFLOPS; driver: 108 SMs, 1,410 MHz"),
    Gpu("H100", "sm_90", 3.35e12, 132, 1.98e9,
        "H100 data sheet, SXM: 3.35 TB/s, 67 TFLOPS; driver: 132 SMs, 1,980 MHz"),
    Gpu("H200", "sm_90", 4.8e12, 132, 1.98e9, "H200 data sheet, SXM: 4.8 TB/s, 67 TFLOPS; SMs and clock: as H100"),
    Gpu("B200", "sm_100", 7.7e12, 148, 1.965e9,
        "Blackwell Architecture Technical Brief 2.1, HGX B200: 7.7 TB/s, 75 TFLOPS; driver: 148 SMs, 1,965 MHz"),
)  # fmt: skip
