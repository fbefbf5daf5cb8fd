"""torch.compile as a baseline, proved to have compiled."""

import torch
from torch._inductor import metrics

from bench.cases import Case
from bench.ops import BOTH, FORWARD, Form
from bench.timing import Call


class NotCompiledError(RuntimeError):
    """What was to be compiled ran eagerly."""


def compiled(case: Case, device: torch.device) -> Form:
    """PyTorch's form under torch.compile, for the static shapes of ``case``; every use of it is proved compiled."""
    torch._dynamo.reset()  # a fresh cache per shape: past its recompile limit, torch.compile would give up
    pytorch = case.row.pytorch

    def op(*inputs: torch.Tensor) -> torch.Tensor:
        return pytorch(*inputs)

    form: Form = torch.compile(op, fullgraph=True, dynamic=False)
    operands = case.operands(device)
    assert_compiled(operands.call(form, FORWARD), n_kernels=1)
    assert_compiled(operands.call(form, BOTH), n_kernels=2)
    return form


def assert_compiled(call: Call, n_kernels: int) -> None:
    """Make the first call; raise NotCompiledError unless Inductor generated ``n_kernels`` or more for it.

    The second call may not compile again, nor fall back: with the stance set here it would raise.
    """
    generated = metrics.generated_kernel_count
    call()
    generated = metrics.generated_kernel_count - generated
    if generated < n_kernels:
        raise NotCompiledError(f"torch.compile generated {generated} kernels, {n_kernels} expected: this ran eagerly")
    with torch.compiler.set_stance("fail_on_recompile"):
        call()
