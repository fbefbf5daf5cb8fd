"""``python -m tests.compile_kernels``: compile what test_codegen.py asks about, and print the facts as JSON.

In a process of its own because the other tests run kernels in Triton's interpreter, where nothing is compiled.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of a jit function as types of the kernel's arguments.)
# ruff: noqa: N803 (BLOCK_SIZE is Triton's convention)

import json
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from bench.cases import dtype_name
from bench.codegen.catalogue import FAMILY, SIGMOID, Kernel
from bench.codegen.compile import TARGETS, compile_kernel, compile_launch, narrow_offsets
from bench.codegen.machine_code import amd_access_bits, read_machine_code
from sigmoid_op.kernels import pointwise

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FAMILY_DTYPES = (torch.bfloat16, torch.float32)
LENGTHS = (1, 16, 4096, 5001, 2**31 + 3)
SM_90 = TARGETS["sm_90"]


@triton.jit(do_not_specialize=["n_elements"])
def always_masked(
    scalars, inputs, outputs, sums, n_elements: tl.int64, zero, scale,
    formula: tl.constexpr, constants: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """The kernel of the tutorials: one path, masked."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < n_elements
    results = formula(tl.tuple([tl.load(pointer + offsets, mask=mask) for pointer in inputs]))
    tl.store(outputs[0] + offsets, results[0], mask=mask)


@triton.jit(do_not_specialize=["n_elements"])
def narrow_and_adding(
    scalars, inputs, outputs, sums, n_elements: tl.int64, zero, scale,
    formula: tl.constexpr, constants: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Offsets in 32 bits; adds to memory, in whatever order the GPU runs the programs."""
    offsets = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    results = formula(tl.tuple([tl.load(pointer + offsets) for pointer in inputs]))
    tl.store(outputs[0] + offsets, results[0])
    tl.atomic_add(outputs[0] + offsets, results[0].to(outputs[0].dtype.element_ty))


@triton.jit
def sigmoid_with_division(args):
    """σ with a correctly rounded division, which has a slow path."""
    (x,) = args
    return (tl.div_rn(1.0, 1.0 + tl.exp(-x.to(tl.float32))),)


def launch_division(x: torch.Tensor) -> None:
    pointwise.launch(sigmoid_with_division, (), (x,), (x,))


# The template as it would be if Triton specialized it on n_elements.
specialized = triton.jit(pointwise.pointwise_kernel.fn)


def facts(compiled: Any) -> dict[str, Any]:
    code = read_machine_code(compiled)
    resources = {key: value for key, value in asdict(code).items() if key != "path"}
    return resources | {
        "instructions": code.instructions_per_element,
        "mufu": code.count("MUFU") / code.elements,
        "atomics": code.count("ATOM", "RED."),
        "load_bits": sorted(code.access_bits("load")),
        "store_bits": sorted(code.access_bits("store")),
        "control_flow": code.control_flow,
        "narrow_offsets": sorted(narrow_offsets(compiled)),
    }


def active_driver() -> object:
    try:
        return driver.active
    except RuntimeError:  # no GPU
        return None


def amd_widths(kernel: Kernel, dtype: torch.dtype) -> list[int]:
    compiled = compile_kernel(kernel, dtype, TARGETS["gfx942"])
    return [max(amd_access_bits(compiled, access)) for access in ("load", "store")]


def main() -> None:
    driver_before = active_driver()
    nvidia = [label for label, target in TARGETS.items() if target.backend == "cuda"]
    # All of sm_90; on the others, where the same compiler is at work, two kernels and one dtype of each width.
    cells = [(k, d, "sm_90") for k in SIGMOID for d in DTYPES]
    cells += [(k, d, "sm_90") for k in FAMILY for d in FAMILY_DTYPES]
    cells += [(k, d, t) for t in nvidia if t != "sm_90" for k in SIGMOID[:2] for d in DTYPES if d != torch.float16]
    forward = SIGMOID[0]
    launch = forward.launch(torch.float32)
    lengths = [replace(forward, operands=(torch.empty(n, device="meta"),)).launch(torch.float32) for n in LENGTHS]
    document = {
        "kernels": {f"{k.name}, {dtype_name(d)}, {t}": facts(compile_kernel(k, d, TARGETS[t])) for k, d, t in cells},
        "defects": {
            "masked": facts(compile_launch(launch._replace(kernel=always_masked), SM_90)),
            "narrow and adding": facts(compile_launch(launch._replace(kernel=narrow_and_adding), SM_90)),
            "division": facts(compile_kernel(replace(forward, launcher=launch_division), torch.bfloat16, SM_90)),
            "misaligned": facts(compile_kernel(replace(forward, misaligned=True), torch.bfloat16, SM_90)),
        },
        "amd": {
            f"{k.name}, {dtype_name(d)}": amd_widths(k, d)
            for k, d in [*product(SIGMOID, DTYPES), *product(FAMILY, FAMILY_DTYPES[:1])]
        },
        "variants": len({compile_launch(launch, SM_90).hash for launch in lengths}),
        "variants if specialized": len(
            {compile_launch(launch._replace(kernel=specialized), SM_90).hash for launch in lengths}
        ),
        "driver restored": active_driver() is driver_before,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
