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

from bench.codegen.catalogue import FAMILY, SIGMOID, Kernel, TiledKernel
from bench.codegen.compile import TARGETS, compile_kernel, narrow_offsets
from bench.codegen.machine_code import amd_access_bits, read_machine_code
from sigmoid_op.kernels.pointwise import pointwise_kernel

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FAMILY_DTYPES = (torch.bfloat16, torch.float32)
LENGTHS = (1, 16, 4096, 5001, 2**31 + 3)


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
def narrow_offset(
    scalars, inputs, outputs, sums, n_elements: tl.int64, zero, scale,
    formula: tl.constexpr, constants: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
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


@triton.jit(do_not_specialize=["n_elements"])
def adding(
    scalars, inputs, outputs, sums, n_elements: tl.int64, zero, scale,
    formula: tl.constexpr, constants: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Adds to memory, in whatever order the GPU runs the programs."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    results = formula(tl.tuple([tl.load(pointer + offsets) for pointer in inputs]))
    tl.store(outputs[0] + offsets, results[0])
    tl.atomic_add(outputs[0] + offsets, results[0].to(outputs[0].dtype.element_ty))


# The template as it would be if Triton specialized it on n_elements.
specialized = triton.jit(pointwise_kernel.fn)


@triton.jit
def sigmoid_with_division(args):
    """σ with a correctly rounded division, which has a slow path."""
    (x,) = args
    return (tl.div_rn(1.0, 1.0 + tl.exp(-x.to(tl.float32))),)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def facts(compiled: Any) -> dict[str, Any]:
    code = read_machine_code(compiled)
    resources = {key: value for key, value in asdict(code).items() if key != "path"}
    return resources | {
        "instructions": code.instructions_per_element,
        "mufu": code.count("MUFU") / code.elements,
        "atomics": code.count("ATOM", "RED."),
        "load_bits": sorted(code.access_bits("load")),
        "store_bits": sorted(code.access_bits("store")),
        "control_flow": dict(code.control_flow),
        "narrow_offsets": sorted(narrow_offsets(compiled)),
    }


def active_driver() -> object:
    try:
        return driver.active
    except RuntimeError:  # no GPU
        return None


def amd_widths(compiled: Any) -> list[int]:
    return [max(amd_access_bits(compiled, access)) for access in ("load", "store")]


def main() -> None:
    driver_before = active_driver()
    forward = SIGMOID[0]
    nvidia = [label for label, target in TARGETS.items() if target.backend == "cuda"]
    # All of sm_90; on the others, where the same compiler is at work, two kernels and one dtype of each width.
    cells: list[tuple[Kernel | TiledKernel, torch.dtype, str]] = [(k, d, "sm_90") for k in SIGMOID for d in DTYPES]
    cells += [(k, d, "sm_90") for k in FAMILY for d in FAMILY_DTYPES]
    cells += [(k, d, t) for t in nvidia if t != "sm_90" for k in SIGMOID[:2] for d in DTYPES if d != torch.float16]

    def compile_bfloat16(kernel: Kernel = forward, **options: Any) -> Any:
        return compile_kernel(replace(kernel, **options), torch.bfloat16, TARGETS["sm_90"])

    document = {
        "kernels": {f"{k.name}, {name(d)}, {t}": facts(compile_kernel(k, d, TARGETS[t])) for k, d, t in cells},
        "defects": {
            "masked": facts(compile_bfloat16(template=always_masked)),
            "narrow": facts(compile_bfloat16(template=narrow_offset)),
            "division": facts(compile_bfloat16(replace(forward, formula=sigmoid_with_division))),
            "adding": facts(compile_kernel(replace(forward, template=adding), torch.float32, TARGETS["sm_90"])),
            "misaligned": facts(compile_bfloat16(misaligned_inputs=True)),
        },
        "amd": {
            f"{k.name}, {name(d)}": amd_widths(compile_kernel(k, d, TARGETS["gfx942"]))
            for k, d in [*product(SIGMOID, DTYPES), *product(FAMILY, FAMILY_DTYPES[:1])]
        },
        "variants": len({compile_bfloat16(n_elements=n).hash for n in LENGTHS}),
        "variants if specialized": len({compile_bfloat16(n_elements=n, template=specialized).hash for n in LENGTHS}),
        "driver restored": active_driver() is driver_before,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
