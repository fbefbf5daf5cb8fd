"""The family's ops in other packages: how to get each where the package is installed. Nothing here installs one.

Liger-Kernel and FlagGems, as of 0.8.5 and 5.0.2. FlagGems replaces PyTorch's operators, forward and backward apart, and
leaves the graph to PyTorch's autograd; here a Function joins the two, so that its kernels can be timed beside others.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Function

Op = Callable[..., Tensor]
Rivals = Mapping[str, Callable[[], Op]]  # by the name of a package


def _liger_swiglu() -> Op:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    op: Op = LigerSiLUMulFunction.apply
    return op


def _flag_gems_swiglu() -> Op:
    from flag_gems.fused import silu_and_mul

    op: Op = silu_and_mul
    return op


def _flag_gems_silu() -> Op:
    from flag_gems import silu, silu_backward

    return partial(_Joined.apply, silu, silu_backward)


def _flag_gems_glu(dim: int) -> Op:
    from flag_gems import glu, glu_backward

    return partial(_Joined.apply, partial(glu, dim=dim), partial(glu_backward, dim=dim))


class _Joined(Function):
    """``forward(x)``, with the gradient ``backward(grad_out, x)``. Saved for backward: x."""

    @staticmethod
    def forward(ctx: Any, forward: Op, backward: Op, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.gradient(grad_out, *ctx.saved_tensors)


SWIGLU: Rivals = {"liger_kernel": _liger_swiglu, "flag_gems": _flag_gems_swiglu}
SILU: Rivals = {"flag_gems": _flag_gems_silu}
GLU: Rivals = {"flag_gems": partial(_flag_gems_glu, -1)}
GLU_OF_CHANNELS: Rivals = {"flag_gems": partial(_flag_gems_glu, 1)}
