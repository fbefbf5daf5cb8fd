"""The examples run by themselves, on PyTorch's operators and through the kernels, and notice what differs."""

import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bench.environment import ROOT

SHORT = {
    "digits": ["--steps", "3"],
    "multilabel": ["--steps", "2"],
    "saturated_gates": ["--steps", "2", "--seeds", "1"],
    "swiglu_block": ["--steps", "2", "--features", "16"],
}


def _import(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    """A new one cannot come without its line in the table."""
    assert set(SHORT) == {path.stem for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize(
    ("name", "interpreted"),
    [("digits", "0"), ("digits", "1"), ("multilabel", "1"), ("saturated_gates", "0"), ("swiglu_block", "1")],
)
def test_examples_run(name: str, interpreted: str, tmp_path: Path) -> None:
    """By themselves: losses agree, bit for bit on PyTorch's operators, within a tolerance on the kernels; a file."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": interpreted}
    line = [sys.executable, f"examples/{name}.py", *SHORT[name], "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFER" not in done.stdout
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert (record["schema"], record["kind"], record["status"]) == (1, name, "complete")


@pytest.mark.parametrize(("wrong", "code"), [(1.0, 0), (1.01, 1), (float("nan"), 1)])
def test_a_wrong_loss_is_noticed(
    wrong: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off by a hundredth, which Adam takes no notice of, or NaN: the gradient norms tell."""
    monkeypatch.setenv("SIGMOID_OP_MIN_ELEMENTS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "")
    multilabel = _import("multilabel")
    monkeypatch.setattr(
        multilabel,
        "sigmoid_focal_loss",
        lambda logits, y, reduction: wrong * multilabel.pytorch_focal_loss(logits, y),
    )
    monkeypatch.setattr(
        multilabel, "binary_cross_entropy_with_logits", torch.nn.functional.binary_cross_entropy_with_logits
    )
    monkeypatch.setattr(sys, "argv", ["multilabel.py", "--steps", "2", "--device", "cpu"])
    assert multilabel.main() == code
    assert ("DIFFER" in capsys.readouterr().out) is bool(code)


def test_a_shut_gate_opens_with_the_exact_gradient_alone() -> None:
    """The first gradient of a gate at x = 8 in bfloat16: 0 but for ``exact_grad`` and for float32."""
    gates = _import("saturated_gates")
    x = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))
    data = [x, x, torch.arange(200) % 10, torch.arange(200) % 10]
    first = {name: gates.train(name, 0, data, steps=1)["first_gate_gradient"] for name in gates.VARIANTS}
    assert [name for name, gradient in first.items() if gradient > 0] == [
        "Sigmoid(exact_grad=True)", "nn.Sigmoid, float32"
    ]  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_ctrl_c_keeps_what_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the third backward: the step, or what ended before, is told and written, and the exit code is 130."""
    calls: list[Tensor] = []

    def backward(loss: Tensor) -> None:
        calls.append(loss)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        torch.autograd.backward(loss)

    monkeypatch.setenv("SIGMOID_OP_MIN_ELEMENTS", "1")  # as the examples do, but not beyond this test
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(sys, "argv", [name, *SHORT[name], "--steps", "2", "--device", "cpu", "--out", str(tmp_path)])
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130
    assert "(interrupted)" in capsys.readouterr().out
    assert json.loads((tmp_path / f"{name}.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("name", SHORT)
def test_ctrl_c_while_importing_ends_in_one_line(name: str) -> None:
    """At once, and it says that nothing is kept."""
    program = f"""
import builtins, os, runpy, signal
ordinary = builtins.__import__
def interrupted(name, *args):
    if name == "torch":
        os.kill(os.getpid(), signal.SIGINT)
    return ordinary(name, *args)
builtins.__import__ = interrupted
runpy.run_path("examples/{name}.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted: nothing is kept\n")
