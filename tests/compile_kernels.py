"""``python -m tests.compile_kernels``: compile what test_codegen.py asks about, and print the facts as JSON.

In a process of its own because the other tests run kernels in Triton's interpreter, where nothing is compiled.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton reads the annotations of a jit function as types of the kernel's arguments.)
# ruff: noqa: N803 (BLOCK_SIZE is Triton's convention)

import json
from dataclasses import asdict, replace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from sigmoid_op.kernels.codegen import (
    KERNELS,
    TARGETS,
    amd_access_bits,
    compile_kernel,
    narrow_offsets,
    read_machine_code,
)
from sigmoid_op.kernels.pointwise import pointwise_kernel

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LENGTHS = (1, 16, 4096, 5001, 2**31 + 3)


@triton.jit(do_not_specialize=["n_elements"])
def always_masked(scalars, inputs, outputs, n_elements: tl.int64, formula: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The kernel of the tutorials: one path, masked."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < n_elements
    results = formula(tl.tuple([tl.load(pointer + offsets, mask=mask) for pointer in inputs]))
    tl.store(outputs[0] + offsets, results[0], mask=mask)


@triton.jit(do_not_specialize=["n_elements"])
def narrow_offset(scalars, inputs, outputs, n_elements: tl.int64, formula: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Offsets that are widened only after they were computed in 32 bits."""
    start = tl.program_id(0) * BLOCK_SIZE
    lane = tl.arange(0, BLOCK_SIZE)
    if start + BLOCK_SIZE <= n_elements:
        results = formula(tl.tuple([tl.load(pointer + start.to(tl.int64) + lane) for pointer in inputs]))
        tl.store(outputs[0] + start.to(tl.int64) + lane, results[0])
    else:
        mask = start + lane < n_elements
        results = formula(tl.tuple([tl.load(pointer + start.to(tl.int64) + lane, mask=mask) for pointer in inputs]))
        tl.store(outputs[0] + start.to(tl.int64) + lane, results[0], mask=mask)


@triton.jit
def sigmoid_with_division(args):
    """σ with a correctly rounded division, which has a slow path."""
    (x,) = args
    return (tl.div_rn(1.0, 1.0 + tl.exp(-x.to(tl.float32))),)


def facts(compiled: Any) -> dict[str, Any]:
    code = read_machine_code(compiled)
    found = {name: value for name, value in asdict(code).items() if name != "path"}
    return found | {
        "instructions": code.instructions_per_element,
        "mufu": code.count("MUFU") / code.elements,
        "load_bits": sorted(code.access_bits("load")),
        "store_bits": sorted(code.access_bits("store")),
        "control_flow": dict(code.control_flow),
        "narrow_offsets": sorted(narrow_offsets(compiled)),
    }


def active_driver() -> object:
    try:
        return driver.active
    except RuntimeError:
        return None


def main() -> None:
    driver_before = active_driver()
    forward = KERNELS[0]
    sm_90 = TARGETS["sm_90"]
    nvidia = [name for name, target in TARGETS.items() if target.backend == "cuda"]
    # Elsewhere the compiler is the same: there the width is asked, of one kernel with and one without special functions.
    cells = [(kernel, dtype, "sm_90") for kernel in KERNELS for dtype in DTYPES]
    cells += [(k, d, target) for k in KERNELS[:2] for d in DTYPES for target in nvidia if target != "sm_90"]
    defects = {
        "masked": compile_kernel(forward, torch.bfloat16, sm_90, template=always_masked),
        "narrow": compile_kernel(forward, torch.bfloat16, sm_90, template=narrow_offset),
        "division": compile_kernel(replace(forward, formula=sigmoid_with_division), torch.bfloat16, sm_90),
        "misaligned": compile_kernel(forward, torch.bfloat16, sm_90, misaligned_inputs=True),
    }
    amd = {
        f"{kernel.name} {dtype}": [
            max(amd_access_bits(compile_kernel(kernel, dtype, TARGETS["gfx942"]), access)) for access in ("load", "store")
        ]
        for kernel in KERNELS[:2]
        for dtype in DTYPES
    }
    document = {
        "kernels": {f"{k.name} {d} {t}": facts(compile_kernel(k, d, TARGETS[t])) for k, d, t in cells},
        "defects": {name: facts(compiled) for name, compiled in defects.items()},
        "amd": amd,
        "variants": len({compile_kernel(forward, torch.bfloat16, sm_90, n_elements=n).hash for n in LENGTHS}),
        "specialized": len({compile_kernel(forward, torch.bfloat16, sm_90, n_elements=n, template=_SPECIALIZED).hash for n in LENGTHS}),
        "driver_restored": active_driver() is driver_before,
    }
    print(json.dumps(document))


# The template as it would be if Triton specialized it on n_elements.
_SPECIALIZED = triton.jit(pointwise_kernel.fn)

if __name__ == "__main__":
    main()
