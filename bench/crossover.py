"""From which size on the kernels are never slower than ``torch.sigmoid``: what sets ``dispatch.MIN_ELEMENTS``.

A part of ``python -m bench tune``. The library's size threshold is lifted, so its kernels run at every size.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.table import Table

from bench import clocks, providers
from bench.cases import DTYPES, Case, Layout, Pass, size_label
from bench.clocks import Effort
from bench.pace import keep_what_works
from bench.providers import OURS, TORCH, Provider
from bench.results import COLD, WALL, Measurement
from bench.runner import device_time, wall_time
from bench.verify import verify

SIZES = tuple(2**exponent for exponent in range(10, 27))
PASSES: tuple[Pass, ...] = ("forward", "forward+backward")
EFFORT = Effort(seconds=0.05, min_rounds=15, max_rounds=51)
TOLERANCES = {"never slower": 1.0, "never 3 % slower": 1.03}


def measure(device: torch.device, sizes: Sequence[int] = SIZES, effort: Effort = EFFORT) -> Iterator[Measurement]:
    """Ours and PyTorch's, size after size: wall time, and on CUDA device time, each after a comparison with float64."""
    for n_elements in sizes:
        for dtype in DTYPES.values():
            layout = Layout.contiguous([n_elements])
            case = Case(size_label(n_elements), "size", dtype, layout, layout, PASSES)
            rivals = {OURS: providers.ours(), TORCH: providers.pytorch()}
            with providers.kernels_for_all_sizes():
                failures: dict[str, str] = {}
                rivals = keep_what_works(partial(_verified, case=case, device=device), rivals, failures)
                n_operands = max(clocks.calls_per_replay(case.bytes_moved(pass_)) for pass_ in PASSES)
                operands = [case.inputs(device) for _ in range(n_operands if device.type == "cuda" else 1)]
                measured = [wall_time(case, pass_, operands[0], rivals, failures, effort) for pass_ in PASSES]
                if device.type == "cuda":
                    for pass_ in PASSES:
                        measured += device_time(case, pass_, operands, rivals, failures, effort)
            yield from measured


def _verified(provider: Provider, case: Case, device: torch.device) -> Provider:
    verify(provider, case, device)
    return provider


def threshold(measurements: Sequence[Measurement], tolerance: float) -> int | None:
    """The smallest size from which no median exceeds ``tolerance`` times torch's; None if the largest does."""
    found = None
    for m in sorted(measurements, key=lambda m: int(m.case["n_elements"]), reverse=True):
        ratio = m.ratio(TORCH, OURS)
        if ratio is None or ratio.median * tolerance < 1:
            break
        found = int(m.case["n_elements"])
    return found


def table(measurements: Sequence[Measurement]) -> Table:
    """A row for each clock, pass and dtype."""
    result = Table(title="Elements from which sigmoid_op's kernels are", title_justify="left")
    for name in ("clock", "pass", "dtype"):
        result.add_column(name)
    for name in TOLERANCES:
        result.add_column(name, justify="right")
    largest = max((int(m.case["n_elements"]) for m in measurements), default=0)
    for clock in (WALL, COLD):
        for pass_ in PASSES:
            for dtype in DTYPES:
                group = [m for m in measurements if (m.clock, m.pass_, m.case["dtype"]) == (clock, pass_, dtype)]
                if group:
                    sizes = [threshold(group, tolerance) for tolerance in TOLERANCES.values()]
                    cells = [size_label(size) if size else f"slower at {size_label(largest)}" for size in sizes]
                    result.add_row(clock, pass_, dtype, *cells)
        result.add_section()
    return result
