"""Tables and pictures: wins and losses as they are, a clock by itself, readable axes."""

from io import StringIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bench import plot, tables
from bench.ops import BOTH, PASSES
from bench.results import COLD, COPY, OURS, TORCH, WARM, Measurement


def _on_paper(op: str, n_elements: int, ratio: float, clock: str = COLD) -> Measurement:
    """Ours takes 1 µs for 8 bytes an element, PyTorch ``ratio`` times as long, a copy 0.9 times."""
    case = {
        "op": op, "label": f"{op} {n_elements}", "kind": "size", "dtype": "float32", "n_elements": n_elements,
        "goal": 1.6, "count": 1, "pytorch_bytes": dict.fromkeys(PASSES, 20 * n_elements),
    }  # fmt: skip
    samples = {OURS: [1000.0] * 3, TORCH: [1000.0 * ratio] * 3, COPY: [900.0] * 3}
    return Measurement(case, BOTH, clock, "kernel", 8 * n_elements, 1, samples)


def _rows(table: Table) -> list[list[str]]:
    """The cells of what is printed, row by row."""
    console = Console(width=250, record=True, file=StringIO())
    console.print(table)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_wins_and_losses_are_told_as_they_are() -> None:
    """By hand: a ratio above 1 is ours being faster; the lowest is named, every loss counted, a goal judged by it."""
    won = [_on_paper("won", n, ratio) for n, ratio in ((2**24, 1.7), (2**20, 0.5), (2**26, 2.0))]
    lost = [_on_paper("lost", n, ratio) for n, ratio in ((2**24, 1.7), (2**26, 1.5))]
    times, *_ = tables.all_measurements([*won, *lost])
    assert [row[4:8] for row in _rows(times)][:2] == [
        ["1.700 (1.70–1.70)", "8, 20", "134218, 197379", "90"],
        ["0.500 (0.50–0.50)", "8, 20", "8389, 41943", "90"],
    ]
    assert _rows(tables.summary([*won, *lost])) == [
        ["won", COLD, BOTH, "3", "1.193", "0.500 at float32 2^20", "1", "1.6: met"],
        ["lost", COLD, BOTH, "2", "1.597", "1.500 at float32 2^26", "0", "1.6: missed"],
    ]


def test_a_picture_is_of_one_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a cold and of a warm cache never share one."""
    drawn: list[list[str]] = []

    def note(measurements: list[Measurement]) -> Figure:
        drawn.append([m.clock for m in measurements])
        return Figure()

    monkeypatch.setattr(plot, "ratios_by_op", note)
    both = [_on_paper("op", 2**20, 2.0, clock) for clock in (COLD, WARM)]
    assert len(list(plot.draw(both, "a GPU", tmp_path))) == 2
    assert drawn == [[COLD], [WARM]]


def test_pictures_have_ticks_and_are_not_flattened_by_outliers(tmp_path: Path) -> None:
    """A p80 of 90 beside medians of 1 and 3 leaves the axis as it is without it; two ticks or more, not too many."""
    steady, noisy = _on_paper("op", 2**20, 3.0), _on_paper("op", 2**22, 1.0)
    noisy.samples_ns = {TORCH: [1000.0, 1000.0, 1000.0, 90_000.0, 90_000.0], OURS: [1000.0] * 5}
    for measured in ([steady, noisy], [steady], [_on_paper("op", 2**20, 1.004)], [_on_paper("op", 2**20, 0.03)]):
        for figure in (plot.ratios_by_size(measured), plot.ratios_by_op(measured)):
            axis = figure.axes[0].yaxis if figure.axes[0].get_yscale() == "log" else figure.axes[0].xaxis
            low, high = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_locator()() if low <= tick <= high]
            assert 2 <= len(ticks) <= 9
            assert high < 6
    names = [path.name for path in plot.draw([steady, noisy], "a GPU", tmp_path)]
    assert names == ["ratio-device-cold-l2.png", "bandwidth-device-cold-l2.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
