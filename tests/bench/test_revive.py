"""``python -m bench revive``: what it finds in a short run, what it keeps of an interrupted one, what it compares."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import revive
from bench.__main__ import main
from bench.digits import digits

CPU = torch.device("cpu")


@pytest.mark.usefixtures("two_threads", "fallback")
def test_revive_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gates that start at +8 have no gradient by nn.Sigmoid or Sigmoid() in bfloat16; with exact_grad they move."""
    assert main(["revive", "--device", "cpu", "--steps", "12", "--seeds", "1", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "revive.json").read_text())
    assert record["environment"]["torch_threads"] == 1
    histories = {h["variant"]: h for h in record["histories"]}
    assert list(histories) == [variant.name for variant in revive.VARIANTS]
    for name in ("nn.Sigmoid", "Sigmoid()"):
        assert histories[name]["first_gate_gradient"] == 0
        assert set(histories[name]["gate_biases"]) == {8.0}
    for name in ("Sigmoid(exact_grad=True)", "nn.Sigmoid, float32"):
        assert histories[name]["first_gate_gradient"] > 0
        assert histories[name]["gate_biases"][-1] < 8
    assert "exact_grad=True" in capsys.readouterr().out
    assert (tmp_path / "revive.png").stat().st_size > 10_000


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Ctrl-C in the training after as many as the parameter says."""
    train, ended = revive.train, iter(range(request.param))

    def interrupted(*arguments: Any) -> revive.History:
        if next(ended, None) is None:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(revive, "train", interrupted)
    n_ended: int = request.param
    return n_ended


@pytest.mark.usefixtures("two_threads", "fallback")
@pytest.mark.parametrize("interrupted", [0, 2], indirect=True)
def test_interrupted_reviving_keeps_the_trainings_that_ended(
    interrupted: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are in file, table and plot, with no row for a variant that has none; 130, and no thread left behind."""
    before = set(threading.enumerate())  # Inductor's, where another test has compiled
    assert main(["revive", "--device", "cpu", "--steps", "2", "--out", str(tmp_path)]) == 130
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # rich tells its own to end, and does not wait for it
        assert not thread.is_alive()
    record = json.loads((tmp_path / "revive.json").read_text())
    assert (record["status"], record["steps"]) == ("interrupted", 2)
    names = [variant.name for variant in revive.VARIANTS]
    assert [history["variant"] for history in record["histories"]] == names[:interrupted]
    printed = capsys.readouterr().out
    assert all((name in printed) is bool(interrupted) for name in names[:2])
    assert all(name not in printed for name in names[2:])
    assert (tmp_path / "revive.png").exists() is bool(interrupted)


def test_the_variants_differ_in_nothing_else() -> None:
    """The same seed gives every variant the same first loss, as σ(8) is 1 in bfloat16 by all of them."""
    task = digits(CPU)
    losses = [revive.train(variant, 3, task, 1).losses[0] for variant in revive.VARIANTS if variant.bfloat16]
    assert len(set(losses)) == 1
