"""``swiglu``: silu(gate) · up, the feed-forward gate of today's transformers, with gpt-oss's clamps and constants."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import dispatch
from sigmoid_op._torch import CLAMP_PASSES_AT_BOUND, scripts_as
from sigmoid_op.ops import shared
from sigmoid_op.ops.arguments import check_number
from sigmoid_op.ops.shared import EagerFunction, kernels


def _op(gate: Tensor, up: Tensor, alpha: float, limit: float | None, up_offset: float) -> Tensor:
    if limit is not None:
        gate = gate.clamp(max=limit)
        up = up.clamp(-limit, limit)
    if up_offset != 0:
        up = up + up_offset
    return (F.silu(gate) if alpha == 1 else gate * torch.sigmoid(alpha * gate)) * up


def _packed_op(x: Tensor, alpha: float, limit: float | None, up_offset: float, interleaved: bool) -> Tensor:
    if interleaved:
        return _op(x[..., ::2], x[..., 1::2], alpha, limit, up_offset)
    gate, up = x.chunk(2, -1)
    return _op(gate, up, alpha, limit, up_offset)


def _form(
    gate: Tensor,
    up: Tensor | None = None,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    interleaved: bool = False,
) -> Tensor:
    """``swiglu`` in PyTorch's operators."""
    if up is None:
        return _packed_op(gate, alpha, limit, up_offset, interleaved)
    return _op(gate, up, alpha, limit, up_offset)


def _gradients(
    grad_out: Tensor, gate: Tensor, up: Tensor, alpha: float, limit: float | None, up_offset: float
) -> tuple[Tensor, Tensor]:
    x, factor = (gate, up) if limit is None else (gate.clamp(max=limit), up.clamp(-limit, limit))
    s, s_minus = shared.both_sides(alpha * x)
    grad_gate = grad_out * (factor + up_offset) * (s * (1 + x * (alpha * s_minus)))
    grad_up = grad_out * (x * s)
    if limit is not None:
        inside = torch.le if CLAMP_PASSES_AT_BOUND else torch.lt
        grad_gate = torch.where(inside(gate, limit), grad_gate, 0)
        grad_up = torch.where(inside(up.abs(), limit), grad_up, 0)
    return grad_gate, grad_up


def _packed_gradient(
    grad_out: Tensor, x: Tensor, alpha: float, limit: float | None, up_offset: float, interleaved: bool
) -> Tensor:
    if interleaved:
        gradients = _gradients(grad_out, x[..., ::2], x[..., 1::2], alpha, limit, up_offset)
        return torch.stack(gradients, -1).reshape(x.shape)
    gate, up = x.chunk(2, -1)
    return torch.cat(_gradients(grad_out, gate, up, alpha, limit, up_offset), -1)


class Constants(NamedTuple):
    """What a kernel is compiled for."""

    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0
    at_limit: bool = CLAMP_PASSES_AT_BOUND


_PLAIN = Constants()


@lru_cache(maxsize=1024)
def _constants(alpha: float, limit: float | None, up_offset: float, dtype: torch.dtype) -> Constants:
    """``limit`` as PyTorch's clamp has it: rounded to the dtype of what it clamps, if that can show it."""
    if limit is not None:
        rounded = torch.tensor(limit, dtype=torch.float64, device="cpu").to(dtype).item()
        limit = limit if rounded == torch.inf else rounded
    return Constants(float(alpha), limit, float(up_offset))


def _forward(gate: Tensor, up: Tensor, constants: Constants) -> Tensor:
    out = None if dispatch.is_watched() else kernels.swiglu.launch_swiglu(gate, up, constants)
    return _op(gate, up, *constants[:3]) if out is None else out


def _packed_forward(x: Tensor, constants: Constants, interleaved: bool) -> Tensor:
    out = None if dispatch.is_watched() else kernels.swiglu.launch_packed_swiglu(x, constants, interleaved)
    return _packed_op(x, *constants[:3], interleaved) if out is None else out


def _op_of_grad(grad_out: Tensor, gate: Tensor, alpha: float) -> Tensor:
    return _op(gate, grad_out, alpha, None, 0.0)


class SwiGLUFunction(EagerFunction):
    """swiglu with both gradients in one pass.

    Saved for backward: ``gate``, and not silu(gate); ``up``, unless ``gate`` needs no gradient and nothing is clamped.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, constants: Constants) -> Tensor:
        keeps_up = ctx.needs_input_grad[0] or constants.limit is not None
        shared.save(ctx, gate, up if keeps_up else None)
        ctx.constants = constants
        return _forward(gate, up, constants)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_out is None:
            return None, None, None
        gate, up = ctx.saved_tensors
        constants = ctx.constants
        by_kernel = dispatch.reads(grad_out, gate, up)
        if up is None:  # grad_up = gate·σ(α·gate) · grad_out
            grad_up = kernels.swiglu.launch_swiglu(gate, grad_out, Constants(constants.alpha)) if by_kernel else None
            if grad_up is None:
                grad_up = shared.by_operators(partial(_op_of_grad, alpha=constants.alpha), grad_out, gate)
            return None, grad_up, None
        found = kernels.swiglu.launch_swiglu_backward(grad_out, gate, up, constants) if by_kernel else None
        if found is None:
            found = shared.by_operators(
                partial(_gradients, alpha=constants.alpha, limit=constants.limit, up_offset=constants.up_offset),
                grad_out,
                gate,
                up,
            )
        return *found, None


class PackedSwiGLUFunction(EagerFunction):
    """The same of one tensor that holds gate and up side by side, or in turn. Saved for backward: that tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, constants: Constants, interleaved: bool) -> Tensor:
        shared.save(ctx, x)
        ctx.constants, ctx.interleaved = constants, interleaved
        return _packed_forward(x, constants, interleaved)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad_out is None:
            return None, None, None
        (x,) = ctx.saved_tensors
        grad_in: Tensor | None = None
        if dispatch.reads(grad_out, x):
            grad_in = kernels.swiglu.launch_packed_swiglu_backward(grad_out, x, ctx.constants, ctx.interleaved)
        if grad_in is None:
            alpha, limit, up_offset, _ = ctx.constants
            options = {"alpha": alpha, "limit": limit, "up_offset": up_offset, "interleaved": ctx.interleaved}
            gradient = partial(_packed_gradient, **options)
            grad_in = shared.by_operators(gradient, grad_out, x)
        return grad_in, None, None


@scripts_as(_form)
def swiglu(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    alpha: float = 1.0,
    limit: float | None = None,
    up_offset: float = 0.0,
    interleaved: bool = False,
) -> Tensor:
    r"""Gate ``up`` by silu(gate): ``F.silu(gate) * up`` in one pass over memory, clamped and shifted on request.

    .. math:: \text{swiglu}(g, u) = g' \, \sigma(\alpha g') \, (u' + \text{up\_offset}), \qquad
        g' = \min(g, \text{limit}), \quad u' = \max(-\text{limit}, \min(u, \text{limit}))

    Large CUDA tensors of one floating dtype take a fused Triton kernel, compiled for each set of constants, which moves
    3 bytes per byte of ``gate`` where PyTorch moves 5, and 5 in backward where it moves 9, more with constants.
    Everything else goes to PyTorch, and so do constants above 2^100.

    Args:
        gate: a tensor of any shape; without ``up``, one of shape [..., 2d] that holds gate and up side by side, as a
            merged projection writes them. It is read, and its gradient written, in place, without a copy.
        up: a tensor of the shape and dtype of ``gate``.
        alpha: a finite number, the slope of σ. gpt-oss has 1.702.
        limit: a number above 0 that bounds gate from above and up on both sides, or None. gpt-oss has 7. The gradient
            of what is clamped, and of a NaN, is 0; at the limit itself it is that of ``torch.clamp``, which PyTorch
            2.14 made 0, too.
        up_offset: a finite number. gpt-oss has 1.
        interleaved: whether the even columns of a packed tensor are the gate and the odd ones up, as in gpt-oss. They
            are copied in float64, and where they do not lie side by side or are not aligned to two elements.

    Returns:
        a tensor of the shape of ``gate``, or [..., d].

    Saved for backward, where a kernel runs: ``gate`` and ``up``; where ``gate`` needs no gradient and there is no
    ``limit``, ``gate`` alone. Changing one of them in place before backward is an error, as with PyTorch's form, which
    saves ``gate``, σ or silu of it, and ``up``.

    Raises:
        TypeError: for a constant that is no Python number, such as a tensor or a bool.
        ValueError: for one that is not finite, or a ``limit`` that is not above 0; for ``interleaved`` beside ``up``;
            without ``up``, for a last dimension that is not there or of odd size.
        Otherwise whatever ``F.silu(gate) * up`` raises.

    Source: N. Shazeer, *GLU Variants Improve Transformer*, 2020; OpenAI, *gpt-oss-120b & gpt-oss-20b Model Card*, 2025.
    """
    plain = limit is None and type(alpha) is type(up_offset) is float and alpha == 1.0 and up_offset == 0.0
    if not plain:
        _check_constants(alpha, limit, up_offset)
        alpha, up_offset = float(alpha), float(up_offset)  # PyTorch takes no whole number above 2^63
        limit = None if limit is None else float(limit)
    if up is None:
        if isinstance(gate, Tensor):  # and not what FX traces
            shape = gate.shape
            if not shape or (not isinstance(shape[-1], Tensor) and shape[-1] % 2):  # as sizes are that jit traces
                raise ValueError(f"swiglu needs a last dimension of even size to halve, got shape {tuple(shape)}")
        if dispatch.AVAILABLE and dispatch.takes("swiglu" if plain else "clamped_swiglu", gate):
            constants = _PLAIN if plain else _constants(alpha, limit, up_offset, gate.dtype)
            forward = PackedSwiGLUFunction.apply if dispatch.records(gate) else _packed_forward
            packed: Tensor = forward(gate, constants, interleaved)
            return packed
        if plain and not interleaved:
            gate, up = gate.chunk(2, -1)
            return F.silu(gate) * up
        return _packed_op(gate, alpha, limit, up_offset, interleaved)
    if interleaved:
        raise ValueError("interleaved=True is for one packed tensor, got an up beside it")
    if (
        dispatch.AVAILABLE
        and dispatch.takes("swiglu" if plain else "clamped_swiglu", gate, up)
        and gate.dtype == up.dtype
        and gate.shape == up.shape
    ):
        forward = SwiGLUFunction.apply if dispatch.records(gate, up) else _forward
        constants = _PLAIN if plain else _constants(alpha, limit, up_offset, gate.dtype)
        out: Tensor = forward(gate, up, constants)
        return out
    if plain:
        return F.silu(gate) * up
    return _op(gate, up, alpha, limit, up_offset)


def _check_constants(alpha: float, limit: float | None, up_offset: float) -> None:
    check_number("alpha", alpha)
    if limit is not None:
        check_number("limit", limit, positive=True)
    check_number("up_offset", up_offset)


class SwiGLU(nn.Module):
    r"""Gate one input by the SiLU of the other: the module form of :func:`sigmoid_op.swiglu`.

    .. math:: \text{SwiGLU}(g, u) = g' \, \sigma(\alpha g') \, (u' + \text{up\_offset})

    Args:
        alpha, limit, up_offset, interleaved: as for :func:`sigmoid_op.swiglu`.

    Shape:
        - gate: any; without ``up`` [..., 2d], which holds both side by side, or in turn
        - up: that of gate
        - Output: that of gate, or [..., d]
    """

    def __init__(
        self, *, alpha: float = 1.0, limit: float | None = None, up_offset: float = 0.0, interleaved: bool = False
    ) -> None:
        super().__init__()
        _check_constants(alpha, limit, up_offset)
        self.alpha = float(alpha)  # TorchScript does not convert an int
        self.limit = None if limit is None else float(limit)
        self.up_offset = float(up_offset)
        self.interleaved = interleaved

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return swiglu(
            gate,
            up,
            alpha=self.alpha,
            limit=self.limit,
            up_offset=self.up_offset,
            interleaved=self.interleaved,
        )

    def extra_repr(self) -> str:
        defaults = {"alpha": 1, "limit": None, "up_offset": 0, "interleaved": False}
        given = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        return ", ".join(
            f"{name}={value:g}" if type(value) is float else f"{name}={value}" for name, value in given.items()
        )
