"""README says what the tables and the recorded results say, its commands exist, and its snippet runs."""

import json
import re
from statistics import geometric_mean, median
from typing import Any

import pytest

from bench.environment import ROOT
from bench.host import ratio
from bench.ops import OPS

README = (ROOT / "README.md").read_text()
ROWS = {
    "`sigmoid`, `Sigmoid`": "sigmoid",
    "`silu`": "silu",
    "`quick_gelu`": "quick_gelu",
    "`swiglu(gate, up)`": "swiglu",
    "the same as in gpt-oss": "swiglu, gpt-oss",
    "`swiglu(packed)`": "swiglu, packed",
    "`sigmoid_gate(x, gate)`": "sigmoid_gate",
    "a gate per channel": "sigmoid_gate, SE channels_last",
    "`glu`": "glu",
    "`logsigmoid`": "logsigmoid",
    "`binary_cross_entropy_with_logits`": "bce_with_logits",
    "`sigmoid_focal_loss`": "sigmoid_focal_loss",
}


def _recorded(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def _speed(name: str) -> float:
    """On an H100, in device time."""
    (samples,) = (
        found["samples_ns"]
        for found in _recorded("nvidia-h100-80gb-hbm3/family/results")["measurements"]
        if (found["case"]["op"], found["case"]["dtype"], found["case"]["n_elements"]) == (name, "bfloat16", 2**26)
        and (found["clock"], found["pass_"]) == ("device, cold L2", "forward+backward")
    )
    ratios = [theirs / ours for ours, theirs in zip(samples["sigmoid_op"], samples["torch"], strict=True)]
    return float(median(ratios))


def _host(name: str) -> str:
    """Of both, in units of torch.sigmoid on 16 CPU elements."""
    (samples,) = (
        group["samples_ns"]
        for group in _recorded("cpu/host")["groups"]
        if (group["op"], group["mode"], group["route"]) == (name, "forward + backward", "kernel")
    )
    return " / ".join(f"{ratio(samples[side], samples['unit']):.0f}" for side in ("ours", "torch"))


@pytest.mark.parametrize("cell", ROWS)
def test_figures_of_an_op_are_those_counted_and_recorded(cell: str) -> None:
    """Forward and backward together; where a tile can hold all that is summed, one launch less."""
    (row,) = (row for row in OPS if row.name == ROWS[cell])
    launches = f"2 or {sum(row.launches)}" if sum(row.launches) > 2 else "2"
    counted = f"{launches} / {sum(row.pytorch_launches)} | {sum(row.moved)} / {sum(row.pytorch_moved)}"
    figures = f"{counted} | {_host(row.name)} | {_speed(row.name):.2f}x |"
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {cell} |"))
    assert figures in line


def test_accuracy_is_that_recorded() -> None:
    """Of float32's proof and of the sweep over float16."""
    proved = max(sweep["max_ulp"] for sweep in _recorded("cpu/proof")["found"]["float32"]["reciprocal_off"].values())
    tallies = _recorded("cpu/accuracy")["tallies"]
    (fp16,) = (
        t for t in tallies if (t["dtype"], t["quantity"], t["implementation"]) == ("float16", "σ(x)", "sigmoid_op")
    )
    text = README.replace("\n", " ")
    assert f"within {proved:.2f} ulp at all 2^32 inputs" in text
    assert f"but for {fp16['misses']} float16 input in {fp16['inputs']:,}" in text


def test_the_cost_of_a_check_is_that_recorded() -> None:
    """Of σ on an H100 up to 2^20 elements, where PyTorch's kernel ran: the geometric mean of the wall times' ratios."""
    costs: dict[str, list[float]] = {"forward": [], "forward+backward": []}
    for found in _recorded("nvidia-h100-80gb-hbm3/sigmoid/results")["measurements"]:
        if (found["clock"], found["route"]) == ("wall", "torch") and found["case"]["n_elements"] <= 2**20:
            costs[found["pass_"]].append(ratio(found["samples_ns"]["sigmoid_op"], found["samples_ns"]["torch"]))
    alone, with_backward = map(geometric_mean, costs.values())
    text = " ".join(README.split())
    assert (
        f"took {alone:.2f} times as long as `torch.sigmoid` on the H100, {with_backward:.2f} times with backward"
        in text
    )


def test_the_cost_on_a_cpu_is_that_recorded() -> None:
    """Of the wrapper, without gradients."""
    found = {
        group["op"]: ratio(group["samples_ns"]["ours"], group["samples_ns"]["torch"])
        for group in _recorded("cpu/host")["groups"]
        if (group["mode"], group["route"]) == ("no grad", "wrapper")
    }
    text = " ".join(README.split())
    assert f"takes {found['sigmoid']:.2f} times as long as `torch.sigmoid`" in text
    assert f"packed `swiglu` {found['swiglu, packed']:.2f} times" in text


def test_every_link_and_picture_is_there() -> None:
    """Each names a file of the repository."""
    links = re.findall(r"https://(?:raw\.githubusercontent|github)\.com/sigmoid-op/sigmoid_op/([^)]+)\)", README)
    assert len(links) > 8
    for link in links:
        assert (ROOT / re.sub(r"^(blob/|tree/)?main/", "", link)).exists(), link


def test_every_command_is_there() -> None:
    """Make's targets, the environment variable, and the size that README gives for a threshold."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert f"\n{target}:" in makefile, target
    dispatch = (ROOT / "sigmoid_op" / "dispatch.py").read_text()
    assert "SIGMOID_OP_MIN_ELEMENTS" in dispatch
    assert '"sigmoid": 2**30' in dispatch


def test_the_snippet_runs(fallback: object, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines a newcomer copies, on whatever device there is."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["x"].grad.shape == names["x"].shape
    assert capsys.readouterr().out.startswith("2 replaced")
