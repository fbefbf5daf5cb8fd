"""What is measured: every op at any size, calls of real models, in priority order; and the bytes that move."""

import argparse
import json

import pytest
import torch

from bench import cases, run
from bench.cases import DTYPES, Case
from bench.codegen.catalogue import FAMILY, SIGMOID
from bench.ops import BACKWARD, BOTH, FORWARD, OPS, PASSES, Op, kernels_from
from bench.verify import verify
from sigmoid_op import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS = {row.name: row for row in OPS}


@pytest.mark.parametrize("n_elements", [4, 1000, 2**18])
@pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)
def test_inputs_fit_any_size(row: Op, n_elements: int) -> None:
    """The result, for a loss the logits, has the elements asked for, and forms agree on it."""
    operands = Case.of_size(row, torch.float32, n_elements).operands(CPU)
    out = row.pytorch(*operands.inputs)
    assert (operands.inputs[0] if out.dim() == 0 else out).numel() == n_elements
    torch.testing.assert_close(row.ours(*operands.inputs), out)


KERNELS = {
    "sigmoid": "", "sigmoid_gate": "gate", "sigmoid_gate, SE": "channel gate",
    "sigmoid_gate, SE channels_last": "channel gate NHWC", "sigmoid_gate, heads": "channel gate", "silu": "silu",
    "quick_gelu": "quick_gelu", "swiglu": "swiglu", "swiglu, packed": "packed swiglu",
    "swiglu, gpt-oss": "interleaved swiglu", "glu": "glu", "logsigmoid": "logsigmoid", "bce_with_logits": "BCE",
    "sigmoid_focal_loss": "focal", "sigmoid_focal_loss, classes": "focal of classes",
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_the_bytes_are_those_of_the_kernels(name: str) -> None:
    """What the table says of an op is what the operands of its two kernels come to; a channel's gate is not counted."""
    by_name = {kernel.name: kernel for kernel in (*SIGMOID, *FAMILY)}
    kernels = by_name[KERNELS[name] or "forward"], by_name[f"{KERNELS[name]} backward".strip()]
    assert tuple(round(kernel.bytes_per_element(torch.float32) / 4, 1) for kernel in kernels) == ROWS[name].moved


def test_recorded_cases_carry_strides_and_counts(fallback: object) -> None:
    """The recorded file names its source; a strided x and a stride-0 gradient come out as recorded, and are right."""
    source = json.loads(cases.RECORDED_CALLS.read_text())
    assert ("tritonbench" in source["source"], source["license"]) == (True, "BSD-3-Clause")
    recorded = list(cases.recorded())
    assert sum(case.count for case in recorded) == 592
    assert len({(case.x, case.grad_out, case.passes, case.dtype) for case in recorded}) == len(recorded) == 88
    strided = next(case for case in recorded if case.x and case.x.stride == (619520, 123904, 352, 1))
    expanded = next(case for case in recorded if case.grad_out and case.grad_out.stride == (0, 0))
    assert strided.operands(CPU).inputs[0].stride() == (619520, 123904, 352, 1)
    assert expanded.operands(CPU).grad_out.stride() == (0, 0)
    assert expanded.bytes_moved(BACKWARD) == 2 * (1 + 2 * 96 * 65)
    for case in (strided, expanded):
        verify(torch.sigmoid, case, CPU)


def test_uneven_cases_are_what_they_are_called() -> None:
    """One element more; ``[1:]`` begins one into its allocation. Of both the bytes that are read once, written once."""
    odd, case = cases.uneven(ROWS["sigmoid"], torch.bfloat16, 2**12)
    assert (odd.n_elements, odd.operands(CPU).inputs[0].numel()) == (2**12 + 1, 2**12 + 1)
    x = case.operands(CPU).inputs[0]
    assert (x.storage_offset(), x.numel(), x.is_contiguous()) == (1, 2**12, True)
    assert [case.bytes_moved(pass_) for pass_ in PASSES] == [2**14, 3 * 2**13, 5 * 2**13]
    of_pytorch = Case.of_size(ROWS["swiglu"], torch.bfloat16, 2**12).to_json()["pytorch_bytes"]
    assert of_pytorch == {FORWARD: 5 * 2**13, BACKWARD: 9 * 2**13, BOTH: 14 * 2**13}


def test_sizes_come_in_priority_order_and_each_in_all_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: the largest tensors' sizes first, uneven ones last; of several ops all at one size before the next."""
    monkeypatch.setattr(run, "free_bytes", lambda device: 2**50)
    parsed = argparse.Namespace(cases="grid", ops=["sigmoid"], sizes=None, dtypes=None, quick=False)
    chosen, left_out = run.select(parsed, CUDA)
    assert left_out == []
    assert [(case.n_elements, case.dtype) for case in chosen[:8]] == [
        (n, dtype) for n in (2**26, 2**30) for dtype in DTYPES.values()
    ]
    assert [case.kind for case in chosen] == sorted((case.kind for case in chosen), key="size".__ne__)
    parsed.ops = ["silu", "swiglu"]
    chosen, _ = run.select(parsed, CUDA)
    assert [case.row.name for case in chosen[:3]] == ["silu", "swiglu", "swiglu, packed"]
    assert len({(case.dtype, case.n_elements) for case in chosen[:3]}) == 1


def test_thresholds_are_set_for_all_ops_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number for all, then those of before."""
    monkeypatch.setattr(dispatch, "MIN_ELEMENTS", {"sigmoid": 5, "bce": 1})
    with kernels_from(7):
        assert dispatch.MIN_ELEMENTS == {"sigmoid": 7, "bce": 7}
    assert dispatch.MIN_ELEMENTS == {"sigmoid": 5, "bce": 1}
