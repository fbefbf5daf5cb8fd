"""``python -m bench accuracy`` and ``proof``: what they find in short runs, and that they can fail."""

import json
import math
import shutil
import signal
import subprocess
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from bench import accuracy, reference
from bench.__main__ import main
from bench.accuracy import bounded, proof, sweeps
from sigmoid_op import dispatch
from sigmoid_op.kernels.sigmoid import launch_sigmoid

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(not dispatch.INTERPRETED, reason="compiled kernels run in this process")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The compiled C code."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    return proof.build(tmp_path)


def _evaluate(program: str, x: Tensor, off: int) -> Tensor:
    finished = subprocess.run([program, "eval", str(off)], input=x.numpy().tobytes(), capture_output=True, check=True)
    return torch.frombuffer(bytearray(finished.stdout), dtype=x.dtype)


def _some() -> Tensor:
    x = torch.cat(list(sweeps.ascending(torch.float32, CPU, 1_048_573, 2**14)))
    return torch.cat([x, torch.linspace(-106, 40, 8_192)])


@interpreted
def test_proof_is_about_the_kernel(program: str) -> None:
    """The C code of the proof gives the kernel's results, bit for bit."""
    x = _some()
    assert torch.equal(_evaluate(program, x, 0), launch_sigmoid(x))


@pytest.mark.gpu
def test_proof_covers_the_gpu(program: str) -> None:
    """Each result on a GPU is one that the C code gives for a reciprocal off by -1, 0 or 1 ulp."""
    x = _some()
    out = launch_sigmoid(x.cuda()).cpu()
    assert torch.stack([_evaluate(program, x, off) == out for off in (-1, 0, 1)]).any(0).all()


@pytest.mark.usefixtures("program")
def test_proof_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short proof finds no error above 1 ulp, no decrease and no lost NaN, and says how many inputs it saw.

    It can fail: with one of the last digits of one coefficient changed the command ends with 1.
    """
    line = ["proof", "--stride", "65521", "--out", str(tmp_path)]
    assert main(line) == 0
    record = json.loads((tmp_path / "proof.json").read_text())
    found = record["found"]["float32"]
    assert (record["status"], found["inputs"] > 65_000) == ("complete", True)
    assert set(found["reciprocal_off"]) == {"-1", "+0", "+1"}
    assert all(0.5 <= off["max_ulp"] < 1 and off["gradient_max_ulp"] < 3 for off in found["reciprocal_off"].values())
    source = proof.SOURCE.read_text()
    assert "0x1.ff6aaap-2f" in source
    changed = tmp_path / "changed.c"
    changed.write_text(source.replace("0x1.ff6aaap-2f", "0x1.ff6baap-2f"))
    monkeypatch.setattr(proof, "SOURCE", changed)
    assert main(line) == 1


def test_an_interrupted_proof_keeps_what_it_saw(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs so far, as JSON that says it is not complete; the command says so, too, and ends with 130."""
    with subprocess.Popen([program, "1"], stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        found = json.loads(process.communicate(timeout=30)[0])
    assert not found["complete"]
    assert 0 < found["inputs"] < 2**32
    monkeypatch.setattr(proof, "sweep", lambda program, stride: found)
    assert main(["proof", "--out", str(tmp_path)]) == 130
    assert json.loads((tmp_path / "proof.json").read_text())["status"] == "interrupted"


@interpreted
def test_accuracy_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's table says what ran; its file holds the tallies, which keep the promises made for the kernels."""
    monkeypatch.setattr(sweeps, "FLOAT64_POINTS", 80)
    monkeypatch.setattr(sweeps, "NEIGHBOURS", 80)
    monkeypatch.setattr(sweeps, "GRAD_OUTS", 3)
    assert main(["accuracy", "--device", "cpu", "--stride", "131071", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Triton's interpreter" in printed
    assert "Bounded, not measured" in printed
    record = json.loads((tmp_path / "accuracy.json").read_text())
    assert record["environment"]["interpreted"]
    tallies = {(t["dtype"], t["quantity"], t["implementation"]): t for t in record["tallies"]}
    for dtype, inputs, misses in (("bfloat16", 65_282, 0), ("float16", 63_490, 1)):
        forward = tallies[dtype, sweeps.FORWARD, sweeps.OURS]
        assert (forward["inputs"], forward["misses"], forward["decreases"]) == (inputs, misses, 0)
        assert tallies[dtype, sweeps.GRADIENT, sweeps.EXACT]["max_ulp"] <= 2
        assert tallies[dtype, sweeps.BACKWARD, sweeps.OURS]["misses"] == 0
    assert tallies["float32", sweeps.FORWARD, sweeps.OURS]["max_ulp"] < 1
    assert tallies["float32", sweeps.GRADIENT, sweeps.EXACT]["max_ulp"] <= 3
    assert tallies["bfloat16", sweeps.GRADIENT, sweeps.TORCH]["first_dead"] == 6.25
    # Found among what the stride leaves out.
    assert tallies["float32", sweeps.GRADIENT, sweeps.OURS]["first_dead"] == pytest.approx(16.98, abs=0.01)
    assert record["curves"]["bfloat16"][sweeps.TORCH][-1] == 1  # no gradient
    assert all(nans["kept"] == nans["inputs"] for nans in record["nans"])
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


@interpreted
def test_interrupted_accuracy_keeps_the_sweeps_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has each sweep as soon as it ends, so that a killed run leaves it, too. Code 130, a table, a plot."""
    path = tmp_path / "accuracy.json"
    while_running = []

    def interrupted(device: torch.device) -> sweeps.Sweep:
        while_running.append(json.loads(path.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "GRAD_OUTS", 3)
    monkeypatch.setattr(accuracy, "sweep_float64", interrupted)
    assert main(["accuracy", "--device", "cpu", "--out", str(tmp_path)]) == 130
    for record, status in ((while_running[0], "running"), (json.loads(path.read_text()), "interrupted")):
        assert record["status"] == status
        assert {tally["dtype"] for tally in record["tallies"]} == set(record["curves"]) == {"bfloat16", "float16"}
    assert "float16" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_a_curve_is_the_largest_error_of_each_interval() -> None:
    """Sliced at the intervals' ends, chunk by chunk, as if each x were looked up alone; none from outside counts."""
    ends = torch.arange(-21, 21.25, 0.25)
    noise = 8 * torch.randn(5_000, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([-torch.inf, torch.inf, torch.finfo(torch.float32).tiny, 1e-30, -1e-30])
    x = torch.cat([ends, ends.nextafter(ends + 1), ends.nextafter(ends - 1), noise, edges]).sort().values
    derivative = reference.derivative64(x)
    gradient = derivative.float() * (1 + 0.01 * torch.rand(len(x), generator=torch.Generator().manual_seed(1)))
    found = torch.zeros(sweeps.CURVE_INTERVALS, dtype=torch.float64)
    for chunk in zip(x.split(1_000), gradient.split(1_000), derivative.split(1_000), strict=True):
        sweeps._widen_curve(found, *chunk)
    expected = [0.0] * sweeps.CURVE_INTERVALS
    for at, got, want in zip(x.tolist(), gradient.tolist(), derivative.tolist(), strict=True):
        if -20 <= at < 20:
            i = math.floor((at + 20) * 4)
            expected[i] = max(expected[i], abs(got - want) / want)
    assert found.tolist() == expected


def test_a_tally_counts_faults() -> None:
    """A last bit that is wrong is a miss and 1 ulp; a flushed subnormal is a miss that stands apart."""
    exact = torch.tensor([0.75, 0.5, 1e-40], dtype=torch.float64)
    tally = sweeps.Tally("float32", sweeps.FORWARD, "wrong")
    tally.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.75, 0.5 + 2**-24, 0.0]), exact)
    assert (tally.inputs, tally.misses, tally.flushed) == (3, 2, 1)
    assert (tally.max_ulp, tally.max_ulp_at) == (1.0, 2.0)


@pytest.mark.parametrize(("dtype", "inputs"), [(torch.bfloat16, 65_282), (torch.float16, 63_490), (torch.float32, 0)])
def test_ascending_meets_every_number(dtype: torch.dtype, inputs: int) -> None:
    """Each non-NaN number comes once, in order; with a stride, from -inf on, in chunks of the size asked for."""
    chunks = list(sweeps.ascending(dtype, CPU, 1 if inputs else 10_000_019, 100))
    x = torch.cat(chunks)
    assert (torch.diff(x.double()).nan_to_num(1) >= 0).all()
    assert x[0] == -torch.inf
    assert max(map(len, chunks)) == 100
    if inputs:
        assert len(x) == inputs
        assert x[-1] == torch.inf
        assert len(set(x.view(torch.int16).tolist())) == inputs


def _all(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every 16-bit number, and the results that are possible for it."""
    x = reference.every_16bit(dtype)
    x = x[~x.isnan()]
    return x, torch.stack(list(bounded.possible_results(x)))


@interpreted
@pytest.mark.parametrize("dtype", bounded.PARAMETERS, ids=str)
def test_bound_holds_for_the_kernel(dtype: torch.dtype) -> None:
    """The kernel's result is among the possible ones, for every input; without any error it is the only one."""
    x, possible = _all(dtype)
    assert len(possible) == 15
    assert torch.equal(possible[7], launch_sigmoid(x))
    assert possible.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", bounded.PARAMETERS, ids=str)
def test_bound_holds_on_the_gpu(dtype: torch.dtype) -> None:
    """Every result of the compiled kernel is among those that the PTX manual's error bounds permit."""
    x, possible = _all(dtype)
    assert (possible == launch_sigmoid(x.cuda()).cpu()).any(0).all()


@pytest.mark.parametrize("dtype", bounded.PARAMETERS, ids=str)
def test_bound_is_within_the_promise(dtype: torch.dtype) -> None:
    """With the manual's errors at their worst: σ within 0.51 ulp, the exact gradient within 2, all but 9 nearest."""
    found = bounded.bound(dtype)
    assert found.max_ulp <= 0.51
    assert found.gradient_max_ulp <= 2
    assert found.inputs - found.certainly_nearest <= 9


def test_backward_reference_decides_ties() -> None:
    """g·out·(1 - out) just below a tie of bfloat16 rounds down, where float64 alone takes it for the tie."""
    grad_out, out = torch.tensor([1.0078125]), torch.tensor([2.0**-60 * 1.5])
    exact = reference.backward64(grad_out, out)
    with mpmath.workdps(60):
        g, o = mpmath.mpf(float(grad_out)), mpmath.mpf(float(out))
        true = g * o * (1 - o)
        assert abs(mpmath.mpf(float(exact)) - true) / true < mpmath.mpf(2) ** -52
        assert mpmath.mpf(float(exact)) < g * o
    assert reference.correctly_rounded(exact, torch.bfloat16) < reference.correctly_rounded(
        (grad_out * out).double(), torch.bfloat16
    )
