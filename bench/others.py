"""Other libraries' forms of the ops: how to get each where its package is installed. Nothing here installs one.

Liger-Kernel and FlagGems, as of 0.8.5 and 5.0.2. FlagGems replaces PyTorch's operators, forward and backward apart;
here a Function joins the two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
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


def _flag_gems(name: str, **options: Any) -> Form:
    module = import_module("flag_gems")
    forward, backward = (partial(getattr(module, each), **options) for each in (name, f"{name}_backward"))
    return partial(_Joined.apply, forward, backward)


SWIGLU: Others = {
    "liger_kernel": lambda: import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply,
    "flag_gems": lambda: import_module("flag_gems.fused").silu_and_mul,
}
SILU: Others = {"flag_gems": partial(_flag_gems, "silu")}
GLU: Others = {"flag_gems": partial(_flag_gems, "glu", dim=-1)}
GLU_OF_CHANNELS: Others = {"flag_gems": partial(_flag_gems, "glu", dim=1)}
