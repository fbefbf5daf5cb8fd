"""One race of ``python -m bench tune``: variants of a kernel compiled, compared with float64, and timed in turn."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench import clocks, providers
from bench.cases import Case, Inputs, Layout, Pass
from bench.clocks import Effort, Sampler
from bench.pace import keep_what_works
from bench.providers import COPY, OURS, TORCH, Call, kernel_call
from bench.reference import sigmoid64, ulp_error
from bench.results import Spread
from bench.verify import BACKWARD_ULPS, FORWARD_ULPS, WrongResultError, sigmoid_backward_float64
from sigmoid_op import dispatch

if TYPE_CHECKING:  # it imports Triton
    from bench.tune_kernels import Variant


@dataclass
class Race:
    """One pass, dtype and size: every sample of every variant, by its name, beside the references.

    ``failures``: why a variant was not timed.
    """

    pass_: str
    dtype: str
    n_elements: int
    bytes_moved: int
    variants: dict[str, dict[str, Any]]
    samples_ns: dict[str, list[float]]
    failures: dict[str, str]

    def median(self, name: str) -> float:
        return Spread.of(self.samples_ns[name]).median

    @property
    def fastest(self) -> str:
        return min(self.variants, key=self.median)


def race(case: Case, pass_: Pass, candidates: Sequence["Variant"], device: torch.device, effort: Effort) -> Race:
    """Compile all candidates, compare each with float64, then time them in turn."""
    on_cuda = device.type == "cuda"
    n_calls = clocks.calls_per_replay(case.bytes_moved(pass_)) if on_cuda else 1
    operands = [case.inputs(device) for _ in range(n_calls)]
    _compile(candidates, pass_, operands[0])
    failures: dict[str, str] = {}
    by_name = {variant.name: variant for variant in candidates}
    right = keep_what_works(partial(_verified, pass_=pass_, case=case, device=device), by_name, failures)
    calls: dict[str, list[Call]] = {
        name: [kernel_call(provider, pass_, one) for one in operands]
        for name, provider in ((TORCH, providers.pytorch()), (COPY, providers.copy()), (OURS, providers.ours()))
    }
    for name, variant in right.items():
        calls[name] = [_call(variant, pass_, one) for one in operands]
    samples = clocks.interleave(_samplers(calls, device), effort)
    described = {name: asdict(variant) for name, variant in right.items()}
    return Race(pass_, case.dtype_name, case.n_elements, case.bytes_moved(pass_), described, samples, failures)


def _samplers(calls: dict[str, list[Call]], device: torch.device) -> dict[str, Sampler]:
    """Device time; in the interpreter the host's, so that a rehearsal has something to write."""
    if device.type == "cpu":
        return {name: clocks.wall_sampler(of_name[0], 1, lambda: None) for name, of_name in calls.items()}
    replays = clocks.Replays(device)
    return {name: replays.cold(of_name) for name, of_name in calls.items()}


def _compile(candidates: Sequence["Variant"], pass_: Pass, inputs: Inputs) -> None:
    """In threads: most of a compilation is the compiler's C++ and the assembler. The interpreter compiles nothing."""
    if dispatch.INTERPRETED:
        return
    import triton

    from bench.tune_kernels import launch

    # An error is ignored here because the first launch, which compiles again, raises it for the variant alone.
    with ThreadPoolExecutor() as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for variant in candidates:
            formula, operands = _formula(pass_, inputs)
            launch(variant, formula, operands, torch.empty_like(operands[0]), warmup=True)


def _verified(variant: "Variant", *, pass_: Pass, case: Case, device: torch.device) -> "Variant":
    """The variant itself, if every element is written and right; the length leaves an incomplete last block."""
    from bench.tune_kernels import launch

    n_elements = min(case.n_elements, 2**26) + 3  # enough for every block of a persistent grid to take several tiles
    layout = Layout.contiguous([n_elements])
    inputs = Case("", "odd", case.dtype, layout, layout).inputs(device)
    formula, operands = _formula(pass_, inputs)
    result = torch.full_like(inputs.x, torch.nan)
    launch(variant, formula, operands, result)
    reference = sigmoid64 if pass_ == "forward" else sigmoid_backward_float64
    error = float(ulp_error(result, reference(*(operand.double() for operand in operands))).max())
    allowed = (FORWARD_ULPS if pass_ == "forward" else BACKWARD_ULPS)[case.dtype]
    if error > allowed:
        raise WrongResultError(f"{pass_}, {case.dtype}: {error:.3g} ulp, {allowed:g} allowed")
    return variant


def _formula(pass_: Pass, inputs: Inputs) -> tuple[Any, tuple[Tensor, ...]]:
    from sigmoid_op.kernels import sigmoid as formulas

    if pass_ == "forward":
        return formulas.sigmoid, (inputs.x,)
    return formulas.sigmoid_backward, (inputs.grad_out, inputs.out)


def _call(variant: "Variant", pass_: Pass, inputs: Inputs) -> Call:
    from bench.tune_kernels import launch

    formula, operands = _formula(pass_, inputs)

    def call() -> Tensor:
        out = torch.empty_like(operands[0])
        launch(variant, formula, operands, out)
        return out

    return call
