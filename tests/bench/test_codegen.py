"""Kernels as compiled, for GPUs that need not be there: their speed cannot be seen so, but what bounds it can."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from bench.codegen.gpus import GPUS, MULTIPROCESSORS
from bench.environment import ROOT
from tests.conftest import printed_by

Facts = dict[str, Any]
Budget = tuple[float, float]

# sm_90 instructions and special-function (MUFU) operations per element of the full-block path. `python -m bench
# codegen` prints what is there now: lower a number when a change makes a kernel shorter, think before raising one.
# In bfloat16, float16, float32 and float64.
SIGMOID_BUDGETS: dict[str, tuple[Budget, ...]] = {
    "forward": ((9.07, 2), (8.07, 2), (24.88, 1), (71.82, 1)),  # of float64 71.5 with Triton 3.7
    "backward": ((8.19, 0), (8.19, 0), (3.07, 0), (5.25, 0)),
    "backward of a sum": ((7.07, 0), (7.07, 0), (2.69, 0), (4.5, 0)),
    "double backward": ((13.32, 0), (13.32, 0), (6.94, 0), (10.88, 0)),
    "exact forward": ((19.75, 4), (17.5, 4), (51.32, 2), (147.13, 2)),
    "exact backward": ((8.69, 0), (8.19, 0), (4.07, 0), (6.5, 0)),
    "exact double backward": ((16.32, 0), (14.82, 0), (8.94, 0), (13.88, 0)),
}
# In bfloat16 and float32, of the family's kernels whose every access is to a large operand.
FAMILY_BUDGETS: dict[str, tuple[Budget, ...]] = {
    "silu": ((10.07, 2), (25.88, 1)),
    "silu backward": ((18.38, 2), (32.32, 1)),
    "quick_gelu": ((11.07, 2), (32.88, 1)),
    "quick_gelu backward": ((19.38, 2), (40.32, 1)),
    "gate": ((11.32, 2), (26.32, 1)),
    "gate backward": ((20.38, 2), (33, 1)),
    "gate backward to gate": ((19.63, 2), (32.5, 1)),
    "swiglu": ((12.32, 2), (27.32, 1)),
    "swiglu backward": ((23.38, 2), (36.07, 1)),
    "logsigmoid": ((14.13, 1), (36.94, 1)),
    "gpt-oss swiglu": ((17.38, 2), (38.32, 1)),
    "gpt-oss swiglu backward": ((32.88, 2), (53.82, 1)),
    "interleaved swiglu": ((17.32, 2), (38.19, 1)),
    "logsigmoid backward": ((12.32, 2), (28.32, 1)),
    "BCE backward": ((14.32, 2), (30.25, 1)),
    "focal backward": ((36, 2), (54.44, 1)),
    "packed swiglu": ((14.88, 2), (29.94, 1)),
    "packed swiglu backward": ((28.19, 2), (40.88, 1)),
    "glu": ((13.75, 2), (28.69, 1)),
    "glu backward": ((25.44, 2), (37.44, 1)),
}
# And of those that sum, or read one number for many: these accesses are narrow, and threads of a program meet. So they
# do for interleaved gradients: grad_out is read in runs of 16 bytes, to be written in runs of 32.
MEETING_BUDGETS: dict[str, tuple[Budget, ...]] = {
    "BCE": ((19.75, 1), (43.13, 1)),
    "focal": ((30.82, 2), (51.63, 1)),
    "interleaved swiglu backward": ((36.57, 2), (56.63, 1)),
    "BCE masked": ((22.94, 1), (46.19, 1)),
    "BCE masked backward": ((20.32, 2.0625), (36.5, 1.0625)),
    "focal of classes": ((57.57, 2), (76.75, 1)),
    "focal of classes backward": ((43, 2.0625), (64.38, 1.0625)),
    "channel gate": ((6.19, 0.125), (6, 0.0625)),
    "channel gate backward": ((15.07, 0.125), (13.69, 0.0625)),
    "channel gate NHWC": ((8, 0.25), (10.44, 0.125)),
    "channel gate NHWC backward": ((24.57, 1), (23.44, 0.25)),
}


def by_cell(table: dict[str, tuple[Budget, ...]]) -> dict[str, Budget]:
    """With a line for each kernel and dtype."""
    dtypes = {4: ("bfloat16", "float16", "float32", "float64"), 2: ("bfloat16", "float32")}
    return {
        f"{kernel}, {dtype}": budget
        for kernel, budgets in table.items()
        for dtype, budget in zip(dtypes[len(budgets)], budgets, strict=True)
    }


STRAIGHT = by_cell(SIGMOID_BUDGETS) | by_cell(FAMILY_BUDGETS)
MEETING = by_cell(MEETING_BUDGETS)
# Another release of Triton may order the address arithmetic differently: 4 instructions a thread of 16 elements.
SLACK = 0.25
# And add up a tile in another way: Triton 3.6 needs 25.7 instructions for one of them, 3.7 24.6.
MEETING_SLACK = 1.5

# What PyTorch's own sm_90 kernels spend (python -m bench pytorch), without their EXIT, one instruction in 8 elements.
_COUNTED = json.loads((ROOT / "bench/results/codegen/pytorch.json").read_text())["kernels"]
PYTORCH = {
    f"{row['kernel']}, {row['dtype']}": row["instructions"] - 0.125 for row in _COUNTED if row["dtype"] != "float64"
}

# Triton's own exponential and division of float64 have slow paths.
BRANCHING = {"forward, float64", "exact forward, float64"}

NVIDIA_TARGETS = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"]
DTYPES = ["bfloat16", "float32", "float64"]  # one of each width


@pytest.fixture(scope="module")
def compiled() -> Facts:
    """The facts that tests/compile_kernels.py prints."""
    facts: Facts = printed_by("tests.compile_kernels")
    return facts


def is_wide(facts: Facts) -> bool:
    """The full-block path is there, and each of its global accesses is 128 bits wide."""
    return bool(facts["load_bits"] == [128] == facts["store_bits"])


def is_in_registers(facts: Facts) -> bool:
    """No spill, no local memory and no shared memory anywhere."""
    return bool(facts["stack_bytes"] + facts["local_accesses"] + facts["shared_bytes"] == 0)


def is_straight(facts: Facts) -> bool:
    """No branch, call or barrier on the full-block path."""
    return not facts["control_flow"]


def has_wide_offsets(facts: Facts) -> bool:
    """No address depends on arithmetic in 32 bits."""
    return not facts["narrow_offsets"]


def adds_in_order(facts: Facts) -> bool:
    """No addition to memory in an order that the GPU chooses: two runs give the same bits."""
    return bool(facts["atomics"] == 0)


def is_within(facts: Facts, budget: float) -> bool:
    """The full-block path is there, and not longer."""
    return bool(0 < facts["instructions"] <= budget)


@pytest.mark.parametrize("target", NVIDIA_TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_every_nvidia_target(compiled: Facts, kernel: str, dtype: str, target: str) -> None:
    """With aligned pointers every NVIDIA GPU moves 16 bytes an access, without branch, spill or 32-bit offset.

    float64's forward does branch.
    """
    facts = compiled["kernels"][f"{kernel}, {dtype}, {target}"]
    assert is_wide(facts), facts
    assert is_in_registers(facts), facts
    assert is_straight(facts) or f"{kernel}, {dtype}" in BRANCHING, facts
    assert has_wide_offsets(facts), facts


@pytest.mark.parametrize("cell", STRAIGHT)
def test_budget(compiled: Facts, cell: str) -> None:
    """No kernel grows: instructions and special-function operations per element stay within what was reached."""
    facts = compiled["kernels"][f"{cell}, sm_90"]
    instructions, mufu = STRAIGHT[cell]
    assert is_within(facts, instructions + SLACK), facts
    assert facts["mufu"] <= mufu, facts
    assert is_wide(facts), facts
    assert is_in_registers(facts), facts
    assert is_straight(facts) or cell in BRANCHING, facts
    assert has_wide_offsets(facts), facts


@pytest.mark.parametrize("cell", [f"{kernel}, {dtype}" for kernel in ("forward", "backward") for dtype in DTYPES[:2]])
def test_most_of_a_multiprocessor_is_filled(compiled: Facts, cell: str) -> None:
    """Few registers, so that 1,152 threads or more of 2,048 are resident, and wait for memory side by side."""
    assert compiled["kernels"][f"{cell}, sm_90"]["registers"] <= 56


@pytest.mark.parametrize("cell", MEETING)
def test_budget_of_sums_and_broadcasts(compiled: Facts, cell: str) -> None:
    """No kernel that sums or broadcasts grows or spills; they read 16 bytes an access, and add in a fixed order."""
    facts = compiled["kernels"][f"{cell}, sm_90"]
    instructions, mufu = MEETING[cell]
    assert is_within(facts, instructions + MEETING_SLACK), facts
    assert facts["mufu"] <= mufu, facts
    assert max(facts["load_bits"]) == 128, facts
    assert facts["stack_bytes"] + facts["local_accesses"] == 0, facts
    assert has_wide_offsets(facts), facts
    assert adds_in_order(facts), facts


@pytest.mark.parametrize("cell", PYTORCH)
def test_fewer_instructions_than_pytorch(compiled: Facts, cell: str) -> None:
    """Forward and backward spend no more than PyTorch's own on the same GPU, but in float64, where they spend more."""
    assert is_within(compiled["kernels"][f"{cell}, sm_90"], PYTORCH[cell])


def test_every_kernel_has_a_budget(compiled: Facts) -> None:
    """A new kernel cannot come without its line in the table."""
    assert {f"{cell}, sm_90" for cell in STRAIGHT | MEETING} == {
        cell for cell in compiled["kernels"] if cell.endswith("sm_90")
    }


def test_one_variant_serves_every_length(compiled: Facts) -> None:
    """What holds of the compiled kernel holds at every length, multiples of 16 or not, up to 2^31 + 3 and beyond."""
    assert compiled["variants"] == 1
    assert compiled["variants if specialized"] > 1


def test_beside_a_misaligned_operand_no_access_is_wide(compiled: Facts) -> None:
    """Threads that are neighbours take neighbouring elements of every operand: a wide one would spread the others."""
    facts = compiled["defects"]["misaligned"]
    assert facts["load_bits"] == facts["store_bits"] == [16]


def test_amd(compiled: Facts) -> None:
    """Every kernel compiles for AMD's gfx942 and there, too, moves 16 bytes an access; a sum is one number."""
    assert len(compiled["amd"]) == 4 * len(SIGMOID_BUDGETS) + len(FAMILY_BUDGETS | MEETING_BUDGETS)
    narrow = {cell: widths for cell, widths in compiled["amd"].items() if widths != [128, 128]}
    sums = ("BCE", "focal", "BCE masked", "focal of classes")
    assert narrow == {f"{name}, bfloat16": [128, 32] for name in sums}


def test_driver_is_restored(compiled: Facts) -> None:
    """Compiling for another GPU leaves the process's own GPU, or its absence, as it was."""
    assert compiled["driver restored"]


@pytest.mark.parametrize(
    ("defect", "check"),
    [
        pytest.param("masked", is_wide, id="a mask on every access"),
        pytest.param("misaligned", is_wide, id="a pointer not known to be aligned"),
        pytest.param("narrow and adding", adds_in_order, id="additions to memory"),
        pytest.param("narrow and adding", has_wide_offsets, id="offsets in 32 bits"),
        pytest.param("division", is_straight, id="a division with a slow path"),
        pytest.param(
            "division",
            lambda facts: is_within(facts, STRAIGHT["forward, bfloat16"][0] + SLACK),
            id="a division over budget",
        ),
    ],
)
def test_defects_are_caught(compiled: Facts, defect: str, check: Callable[[Facts], bool]) -> None:
    """Each check fails for the defect it is there to find."""
    assert not check(compiled["defects"][defect])


@pytest.mark.parametrize(("registers", "occupancy"), [(32, 1.0), (33, 0.75), (64, 0.5), (128, 0.25), (255, 0.125)])
def test_occupancy(registers: int, occupancy: float) -> None:
    """Resident warps follow from registers as NVIDIA's occupancy calculator has it: compute capability 9.0, 4 warps."""
    assert MULTIPROCESSORS["sm_90"].occupancy(registers, shared_bytes=0, num_warps=4) == occupancy


@pytest.mark.parametrize(
    ("needs", "binds"), [((8, 0, 0), "memory"), ((40, 0, 0), "issue"), ((4, 4, 0), "MUFU"), ((16, 0, 16), "FP64")]
)
def test_prediction(needs: tuple[float, float, float], binds: str) -> None:
    """The scarcest resource binds; of 4 bytes, an H200's memory leaves time for 27 instructions, 3.4 MUFU, 13 FP64."""
    (h200,) = (gpu for gpu in GPUS if gpu.name == "H200")
    prediction = h200.predict(4, *needs)
    assert prediction["binds"] == binds
    assert (prediction["copy_fraction"] < 1) == (binds != "memory")
