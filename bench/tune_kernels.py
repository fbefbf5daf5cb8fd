"""The launch template with its choices open: what ``python -m bench tune`` varies. The formulas are the library's."""

# ruff: noqa: N803 - BLOCK_SIZE is Triton's way to write a compile-time constant
# Triton reads a kernel's annotations as types of its arguments, and its decorator is untyped:
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigmoid_op.kernels.intrinsics import round_to
from sigmoid_op.kernels.launch import FP_FUSION


@dataclass(frozen=True)
class Variant:
    """How a kernel is launched and how it touches memory.

    ``persistent``: blocks per multiprocessor, each striding through the tensor; 0 for one block a tile. ``load`` and
    ``store``: an eviction priority, a cache modifier, or neither.
    """

    block_size: int
    num_warps: int
    persistent: int = 0
    load: str = ""
    store: str = ""

    @property
    def name(self) -> str:
        parts = [f"{self.block_size} elements, {self.num_warps} warps"]
        parts += [f"{self.persistent} blocks an SM"] if self.persistent else []
        parts += [f"{what} {hint}" for what, hint in (("load", self.load), ("store", self.store)) if hint]
        return ", ".join(parts)


@triton.jit
def _load(pointer, mask, hint: tl.constexpr):
    if hint == "evict_first" or hint == "evict_last":
        return tl.load(pointer, mask=mask, eviction_policy=hint)
    else:
        return tl.load(pointer, mask=mask, cache_modifier=hint)


@triton.jit
def _store(pointer, value, mask, hint: tl.constexpr):
    if hint == "evict_first" or hint == "evict_last":
        tl.store(pointer, value, mask=mask, eviction_policy=hint)
    else:
        tl.store(pointer, value, mask=mask, cache_modifier=hint)


@triton.jit
def _block(inputs, outputs, start, lane, mask, formula: tl.constexpr, load: tl.constexpr, store: tl.constexpr):
    results = formula(tl.tuple([_load(pointer + start + lane, mask, load) for pointer in inputs]))
    for i in tl.static_range(len(outputs)):
        result = round_to(results[i], outputs[i].dtype.element_ty)
        _store(outputs[i] + start + lane, result, mask, store)


@triton.jit
def _tile(
    inputs, outputs, start, n_elements, formula: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    load: tl.constexpr, store: tl.constexpr,
):  # fmt: skip
    """A full tile without a mask, the last one with two, as in the library's template."""
    lane = tl.arange(0, BLOCK_SIZE)
    if start + BLOCK_SIZE <= n_elements:
        _block(inputs, outputs, start, lane, None, formula, load, store)
    else:
        whole = n_elements // 16 * 16
        _block(inputs, outputs, start, lane, start + lane < whole, formula, load, store)
        rest = tl.arange(0, 16)
        _block(inputs, outputs, whole, rest, whole + rest < n_elements, formula, load, store)


@triton.jit(do_not_specialize=["n_elements"])
def tuned_kernel(
    inputs, outputs, n_elements: tl.int64, formula: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    load: tl.constexpr, store: tl.constexpr, persistent: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    if persistent:
        while tile * BLOCK_SIZE < n_elements:
            _tile(inputs, outputs, tile * BLOCK_SIZE, n_elements, formula, BLOCK_SIZE, load, store)
            tile += tl.num_programs(0)
    else:
        _tile(inputs, outputs, tile * BLOCK_SIZE, n_elements, formula, BLOCK_SIZE, load, store)


def launch(variant: Variant, formula: Any, inputs: Sequence[Tensor], output: Tensor, *, warmup: bool = False) -> None:
    """Write ``formula(*inputs)`` to ``output``, contiguous and aligned like the inputs; or only compile for them."""
    n_elements = output.numel()
    blocks = triton.cdiv(n_elements, variant.block_size)
    if variant.persistent:
        blocks = min(blocks, variant.persistent * _multiprocessors(output.device))
    arguments = (
        tuple(inputs), (output,), n_elements, formula, variant.block_size, variant.load, variant.store,
        bool(variant.persistent),
    )  # fmt: skip
    options = {"num_warps": variant.num_warps, "enable_fp_fusion": FP_FUSION}
    if warmup:
        tuned_kernel.warmup(*arguments, grid=(blocks, 1, 1), **options)
    else:
        tuned_kernel[(blocks, 1, 1)](*arguments, **options)


def _multiprocessors(device: torch.device) -> int:
    """2 where the interpreter runs the kernel, so that a block strides there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
