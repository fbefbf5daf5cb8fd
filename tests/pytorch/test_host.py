"""A call costs little more than torch.sigmoid's on the host, where that is all it costs: on small CPU tensors."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import compiling_environment

# Largest ratio of our time to torch.sigmoid's, and the samples' group in the results of `python -m bench host`.
BUDGETS = {
    "16 elements": 1.20,
    "16 elements, with grad": 1.15,
    "16 elements, forward + backward": 1.05,
    "65536 elements": 1.02,
}


def _measure(folder: Path, *options: str) -> dict[str, Any]:
    """What the command writes."""
    command = [sys.executable, "-m", "bench", "host", "--device", "cpu", "--out", str(folder), *options]
    subprocess.run(command, env=compiling_environment(), check=True, capture_output=True)
    record: dict[str, Any] = json.loads((folder / "host.json").read_text())
    return record


def _ratios(folder: Path) -> dict[str, float]:
    """Of the 20th percentiles, which a busy machine disturbs less than the medians."""
    samples = _measure(folder)["samples_us"]

    def fast(times: list[float]) -> float:
        return statistics.quantiles(times, n=5)[0]

    return {group: fast(samples[group]["sigmoid"]) / fast(samples[group]["torch.sigmoid"]) for group in BUDGETS}


@pytest.mark.skipif(bool(torch.version.cuda), reason="the budgets are those of the CPU build of PyTorch")
def test_cost_of_the_wrapper(tmp_path: Path) -> None:
    """``sigmoid`` stays within its budget of ``torch.sigmoid``'s time; one run of three without disturbance will do."""
    seen = []
    for attempt in range(3):
        seen.append(_ratios(tmp_path / str(attempt)))
        if all(seen[-1][group] <= budget for group, budget in BUDGETS.items()):
            return
    pytest.fail(f"over budget {BUDGETS} three times: {seen}")


def test_the_budget_is_tight(tmp_path: Path) -> None:
    """The measure can fail: a Function costs more than the budget allows, which is why small tensors take none."""
    samples = _measure(tmp_path, "--rounds", "20")["samples_us"]["16 elements, with grad"]
    slow = statistics.median(samples["SigmoidFunction.apply"]) / statistics.median(samples["torch.sigmoid"])
    assert slow > BUDGETS["16 elements, with grad"]


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    """Schema and kind, the one thread on which was timed, and every sample of every piece."""
    record = _measure(tmp_path, "--rounds", "3")
    assert (record["schema"], record["kind"], record["environment"]["torch_threads"]) == (1, "host", 1)
    assert set(BUDGETS) <= set(record["samples_us"])
    assert all(len(samples) == 3 for group in record["samples_us"].values() for samples in group.values())
