"""Other libraries' forms of the ops: how to get each where its package is installed. Nothing here installs one.

Liger-Kernel and FlagGems, as of 0.8.5 and 5.0.2. FlagGems replaces PyTorch's operators, forward and backward apart;
here a Function joins the two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Function

Form = Callable[..., Tensor]
Others = Mapping[str, Callable[[], Form]]  # by the name of a package


class _Joined(Function):
    """``forward(x)``, with the gradient ``backward(grad_out, x)``. Saved for backward: x."""

    @staticmethod
    def forward(ctx: Any, forward: Form, backward: Form, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.gradient(grad_out, *ctx.saved_tensors)


def _liger_swiglu() -> Form:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    form: Form = LigerSiLUMulFunction.apply
    return form


def _flag_gems_swiglu() -> Form:
    from flag_gems.fused import silu_and_mul

    form: Form = silu_and_mul
    return form


def _flag_gems_silu() -> Form:
    from flag_gems import silu, silu_backward

    return partial(_Joined.apply, silu, silu_backward)


def _flag_gems_glu(dim: int) -> Form:
    from flag_gems import glu, glu_backward

    return partial(_Joined.apply, partial(glu, dim=dim), partial(glu_backward, dim=dim))


SWIGLU: Others = {"liger_kernel": _liger_swiglu, "flag_gems": _flag_gems_swiglu}
SILU: Others = {"flag_gems": _flag_gems_silu}
GLU: Others = {"flag_gems": partial(_flag_gems_glu, -1)}
GLU_OF_CHANNELS: Others = {"flag_gems": partial(_flag_gems_glu, 1)}
