"""Tables of a run of ``python -m bench --ops``: times, bytes, and how the goals are met."""

from collections.abc import Callable, Iterator
from itertools import product

from rich.table import Table

from bench.cases import PASSES, size_label
from bench.cells import number, peak_cell, ratio_cell
from bench.providers import COMPILED, OURS, TORCH
from bench.results import CLOCKS, COLD, WALL, Measurement, Results

GOAL_ELEMENTS = 2**24  # the goals hold from this size up, in device time
GOAL_AGAINST_COMPILED = 1.0
BOTH = "forward+backward"


def tables(results: Results) -> Iterator[Table]:
    """Every measurement, a table for each clock and pass; on CUDA then the goals beside what was reached."""
    for clock, pass_ in product(CLOCKS, PASSES):
        group = [m for m in results.measurements if (m.clock, m.pass_) == (clock, pass_)]
        if group:
            yield _table(f"{pass_}: {clock} time", group)
    if results.environment["device_type"] != "cpu":
        yield _goals(results)


def markdown(results: Results) -> str:
    """A row for each op and dtype: the lowest ratio over all sizes of each pass, in device time, and the memory."""
    env = results.environment
    lines = [
        f"{env['device']}, torch {env['torch']}, Triton {env['triton']}, Python {env['python']}, "
        f"commit {(env['commit'] or 'unknown')[:12]}{' with changes' if env['dirty'] else ''}, {env['date'][:10]}. "
        "The device time of eager PyTorch over ours (above 1: ours is faster), the lowest of all sizes from "
        f"{size_label(GOAL_ELEMENTS)} elements; then that of torch.compile over ours, and our peak memory over "
        "eager's, both of forward and backward.",
        "",
        f"| op | dtype | {' | '.join(PASSES)} | torch.compile | peak memory |",
        f"|---|---|{'--:|' * (len(PASSES) + 2)}",
    ]
    for member, dtype in _groups(results):
        group = [m for m in _large(results, member) if m.case["dtype"] == dtype]
        cells = [_lowest(group, COLD, pass_, TORCH) for pass_ in PASSES]
        cells += [_lowest(group, COLD, BOTH, COMPILED), _highest_peak(group)]
        shown = (f"{cell:.2f}" if cell is not None else "not measured" for cell in cells)
        lines.append(f"| {member} | {dtype} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _table(title: str, measurements: list[Measurement]) -> Table:
    others = list(dict.fromkeys(name for m in measurements for name in m.samples_ns if name not in (OURS, TORCH)))
    with_memory = any(m.peak_bytes for m in measurements)
    table = Table(title=title, caption="medians; ratio (p20–p80) above 1: sigmoid_op is faster")
    table.add_column("op, elements", no_wrap=True)
    table.add_column("dtype")
    headers = [f"{name}\nµs" for name in (OURS, TORCH, *others)]
    headers += [f"ratio to\n{name}" for name in (TORCH, *others)]
    headers += ["bytes/element,\ntorch's", "GB/s,\ntorch's", *(["peak MiB,\ntorch's"] if with_memory else []), "route"]
    for name in headers:
        table.add_column(name, justify="right")
    previous = None
    for m in measurements:
        if previous not in (None, m.case["member"]):
            table.add_section()
        previous = m.case["member"]
        eager_bytes = m.case["eager_bytes_moved"][m.pass_]
        ours, torchs = (moved // m.case["n_elements"] for moved in (m.bytes_moved, eager_bytes))
        cells = [
            *(_time(m, name) for name in (OURS, TORCH, *others)),
            *(ratio_cell(m.ratio(name, OURS)) for name in (TORCH, *others)),
            f"{ours}, {torchs} ({torchs / ours:.3g}×)",
            f"{_rate(m, OURS, m.bytes_moved if m.route == 'kernel' else eager_bytes)}, {_rate(m, TORCH, eager_bytes)}",
            *([peak_cell(m, OURS, TORCH)] if with_memory else []),
            m.route,
        ]
        table.add_row(m.case["label"], m.case["dtype"], *cells)
    return table


def _time(m: Measurement, provider: str) -> str:
    if provider in m.failures:
        return "failed"
    time_us = m.time_us(provider)
    return number(time_us.median) if time_us else ""


def _rate(m: Measurement, provider: str, n_bytes: int) -> str:
    time_us = m.time_us(provider)
    return number(n_bytes / time_us.median / 1e3) if time_us else "-"


def _goals(results: Results) -> Table:
    """The worst of all sizes and dtypes beside each goal, met or not."""
    table = Table(title=f"Goals, from {size_label(GOAL_ELEMENTS)} elements, in device time: the worst of all cases")
    for name in (
        "op",
        "against torch, forward and backward",
        "against torch.compile, forward, and both",
        "peak memory",
    ):
        table.add_column(name)
    for member in dict.fromkeys(m.case["member"] for m in results.measurements):
        group = _large(results, member)
        goal = next((m.case["goal"] for m in group), None)
        compiled = [ratio for pass_ in PASSES if (ratio := _lowest(group, COLD, pass_, COMPILED)) is not None]
        table.add_row(
            member,
            _judged(_lowest(group, COLD, BOTH, TORCH), goal, lambda ratio, goal: ratio >= goal),
            _judged(min(compiled, default=None), GOAL_AGAINST_COMPILED, lambda ratio, goal: ratio >= goal),
            _judged(_highest_peak(group), 1.0, lambda ratio, goal: ratio <= goal),
        )
    table.caption = "ratios as in the tables above; peak memory: ours over torch's"
    return table


def _judged(reached: float | None, goal: float | None, met: Callable[[float, float], bool]) -> str:
    if reached is None:
        return "not measured"
    if goal is None:
        return f"{reached:.3f} (no goal)"
    return f"{reached:.3f} of {goal:g}: " + ("met" if met(reached, goal) else "[bold red]missed[/]")


def _groups(results: Results) -> list[tuple[str, str]]:
    return list(dict.fromkeys((m.case["member"], m.case["dtype"]) for m in results.measurements))


def _large(results: Results, member: str) -> list[Measurement]:
    return [m for m in results.measurements if m.case["member"] == member and m.case["n_elements"] >= GOAL_ELEMENTS]


def _lowest(measurements: list[Measurement], clock: str, pass_: str, other: str) -> float | None:
    group = [m for m in measurements if (m.clock, m.pass_) == (clock, pass_)]
    return min((ratio.median for m in group if (ratio := m.ratio(other, OURS))), default=None)


def _highest_peak(measurements: list[Measurement]) -> float | None:
    """Our peak memory over eager PyTorch's, of forward and backward."""
    group = [m.peak_bytes for m in measurements if (m.clock, m.pass_) == (WALL, BOTH)]
    return max((peak[OURS] / peak[TORCH] for peak in group if OURS in peak and TORCH in peak), default=None)
