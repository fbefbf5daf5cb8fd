"""The table of ops: σ and the family, one row for each op on one kind of input. A new op is a new row."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import others
from bench.reference import torchvision_focal_loss
from sigmoid_op import (
    binary_cross_entropy_with_logits,
    dispatch,
    glu,
    logsigmoid,
    quick_gelu,
    sigmoid,
    sigmoid_focal_loss,
    sigmoid_gate,
    silu,
    swiglu,
)

Form = Callable[..., Tensor]  # one way to compute an op, called with the row's operands
Operands = tuple[Tensor, ...]
Pair = tuple[int, int]  # forward, backward
FORWARD, BACKWARD, BOTH = PASSES = ("forward", "backward", "forward+backward")
# The gradient of a mean is 1/n an element, 0 in float16 at 2^26 elements: losses are scaled, as torch.amp does it, but
# by no more, as PyTorch multiplies by this and by pos_weight before it divides by n.
LOSS_SCALE = 2.0**14


@dataclass(frozen=True)
class Op:
    """An op on one kind of input.

    ``name`` is the row's, ``op`` the public function's, ``key`` that of its threshold in ``dispatch.MIN_ELEMENTS``.
    ``inputs(n, randn)`` makes operands for a result of ``n`` elements, for a loss ``n`` logits, ``n`` being a multiple
    of ``multiple``; the first ``n_gradients`` of them are differentiated. ``moved``: elements read and written per
    element, small operands left out. ``launches``: of our kernels, and of PyTorch's operators in its form.
    tests/family/test_traffic.py counts both.
    ``goal``: how many times as fast as PyTorch forward and backward are to be. ``others``: other libraries' forms, by
    the package that they need.
    """

    name: str
    op: str
    key: str
    inputs: Callable[[int, Form], Operands]
    ours: Form
    pytorch: Form
    moved: Pair
    pytorch_moved: Pair
    launches: Pair
    pytorch_launches: Pair
    n_gradients: int = 1
    goal: float | None = None
    others: Mapping[str, Callable[[], Form]] = field(default_factory=dict)
    multiple: int = 1

    def operands(self, n_elements: int, dtype: torch.dtype, device: torch.device) -> Operands:
        return self.inputs(n_elements, partial(torch.randn, dtype=dtype, device=device))


@contextmanager
def kernels_from(n_elements: int) -> Iterator[None]:
    """Set the sizes from which the library's kernels run, for all ops."""
    thresholds = dispatch.MIN_ELEMENTS
    before = dict(thresholds)
    thresholds.update(dict.fromkeys(before, n_elements))
    try:
        yield
    finally:
        thresholds.update(before)


def of_pass(pair: Pair, pass_: str) -> int:
    return {FORWARD: pair[0], BACKWARD: pair[1], BOTH: sum(pair)}[pass_]


# Realistic last dimensions: 4096 features of a transformer, 1024 classes, images of 256 channels; smaller for small n.
def rows(n: int, width: int = 4096) -> tuple[int, int]:
    return n // gcd(n, width), gcd(n, width)


def one(n: int, randn: Form) -> Operands:
    return (randn(rows(n)),)


def two(n: int, randn: Form) -> Operands:
    return randn(rows(n)), randn(rows(n))


def packed(n: int, randn: Form) -> Operands:
    n_rows, width = rows(n)
    return (randn(n_rows, 2 * width),)


def _images(n: int) -> tuple[int, int, int, int]:
    side = next((side for side in (32, 16, 8, 4) if n % (256 * side * side) == 0), 2)
    return n // side**2 // gcd(n // side**2, 256), gcd(n // side**2, 256), side, side


def packed_channels(n: int, randn: Form) -> Operands:
    images, channels, height, width = _images(n)
    return (randn(images, 2 * channels, height, width),)


def image_and_channel_gate(n: int, randn: Form) -> Operands:
    return randn(_images(n)), randn(*_images(n)[:2], 1, 1)


def channels_last_and_gate(n: int, randn: Form) -> Operands:
    x, gate = image_and_channel_gate(n, randn)
    return x.contiguous(memory_format=torch.channels_last), gate


def logits_and_labels(n: int, randn: Form) -> Operands:
    logits = randn(rows(n, 1024))
    return logits, torch.empty_like(logits).bernoulli_(0.25)


def with_pos_weight(n: int, randn: Form) -> Operands:
    logits, labels = logits_and_labels(n, randn)
    return logits, labels, (1 + randn(logits.shape[-1]).abs()).clamp(max=3)  # times the scale, a float16


def with_mask(n: int, randn: Form) -> Operands:
    """A mask of half the elements, in the dtype of the others."""
    logits, labels = logits_and_labels(n, randn)
    return logits, labels, torch.empty_like(logits).bernoulli_(0.5)


def logits_and_classes(n: int, randn: Form) -> Operands:
    """A class for each row of 256 logits or fewer, as numbers that bfloat16 can show."""
    logits = randn(rows(n, 256))
    return logits, randn(len(logits), 1).abs().mul(64).floor().clamp(max=logits.shape[1])


def projected_heads(n: int, randn: Form) -> Operands:
    """A third of a fused projection's rows in heads of 128, and a gate for each head from the same rows."""
    n_rows, width = rows(n)
    heads = max(width // 128, 1)
    projection = randn(n_rows, 3 * width + heads)
    return projection[:, :width].unflatten(1, (heads, -1)), projection[:, 3 * width :, None]


def _pytorch_gate(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


def _pytorch_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _pytorch_packed_swiglu(x: Tensor) -> Tensor:
    return _pytorch_swiglu(*x.chunk(2, -1))


# gpt-oss's expert activation, whose weights interleave the columns of gate and up.
_gpt_oss = partial(swiglu, alpha=1.702, limit=7.0, up_offset=1.0, interleaved=True)


def _pytorch_gpt_oss(x: Tensor) -> Tensor:
    gate, up = x[..., ::2].clamp(max=7.0), x[..., 1::2].clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def _pytorch_quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _masked_bce(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    normalizer = logits.numel() / 2
    return binary_cross_entropy_with_logits(logits, target, reduction="sum", mask=mask, normalizer=normalizer)


def _pytorch_masked_bce(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * mask).sum() / (logits.numel() / 2)


def _class_focal(logits: Tensor, classes: Tensor) -> Tensor:
    return sigmoid_focal_loss(logits, classes.squeeze(1).long(), reduction="mean")


def _pytorch_class_focal(logits: Tensor, classes: Tensor) -> Tensor:
    one_hot = classes == torch.arange(logits.shape[1], device=logits.device)
    return torchvision_focal_loss(logits, one_hot.to(logits.dtype), reduction="mean")


def _bce(form: Form) -> Form:
    def mean(logits: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Tensor:
        return form(logits, target, pos_weight=pos_weight)

    return mean


# Columns: moved by ours, by PyTorch; launches of ours, of PyTorch.
OPS: tuple[Op, ...] = (
    Op("sigmoid", "sigmoid", "sigmoid", one, sigmoid, torch.sigmoid, (2, 3), (2, 3), (1, 1), (1, 1)),
    Op("sigmoid_gate", "sigmoid_gate", "gate", two, sigmoid_gate, _pytorch_gate, (3, 5), (5, 9), (1, 1), (2, 3),
       n_gradients=2, goal=1.6),
    Op("sigmoid_gate, SE", "sigmoid_gate", "gate", image_and_channel_gate, sigmoid_gate, _pytorch_gate, (2, 3), (2, 6),
       (1, 1), (2, 4), n_gradients=2, goal=1.6, multiple=4),
    Op("sigmoid_gate, SE channels_last", "sigmoid_gate", "gate", channels_last_and_gate, sigmoid_gate, _pytorch_gate,
       (2, 3), (2, 6), (1, 2), (2, 4), n_gradients=2, goal=1.6, multiple=4),
    Op("sigmoid_gate, heads", "sigmoid_gate", "gate", projected_heads, sigmoid_gate, _pytorch_gate, (2, 3), (2, 6),
       (1, 1), (2, 4), n_gradients=2, goal=1.6),
    Op("silu", "silu", "silu", one, silu, F.silu, (2, 3), (2, 3), (1, 1), (1, 1), others=others.SILU),
    Op("quick_gelu", "quick_gelu", "quick_gelu", one, quick_gelu, _pytorch_quick_gelu, (2, 3), (7, 14), (1, 1), (3, 5),
       goal=1.6),
    Op("swiglu", "swiglu", "swiglu", two, swiglu, _pytorch_swiglu, (3, 5), (5, 9), (1, 1), (2, 3),
       n_gradients=2, goal=1.6, others=others.SWIGLU),
    Op("swiglu, packed", "swiglu", "swiglu", packed, swiglu, _pytorch_packed_swiglu, (3, 5), (5, 13), (1, 1), (2, 4),
       goal=1.6),
    Op("swiglu, gpt-oss", "swiglu", "clamped_swiglu", packed, _gpt_oss, _pytorch_gpt_oss, (3, 5), (16, 41),
       (1, 1), (7, 18), goal=1.6),
    Op("glu", "glu", "glu", packed, glu, F.glu, (3, 5), (3, 5), (1, 1), (1, 1), others=others.GLU),
    Op("glu, dim=1", "glu", "glu", packed_channels, partial(glu, dim=1), partial(F.glu, dim=1), (3, 5), (3, 5),
       (1, 1), (1, 1), others=others.GLU_OF_CHANNELS, multiple=4),
    Op("logsigmoid", "logsigmoid", "logsigmoid", one, logsigmoid, F.logsigmoid, (2, 3), (2, 3), (1, 1), (1, 1)),
    Op("bce_with_logits", "binary_cross_entropy_with_logits", "bce", logits_and_labels,
       _bce(binary_cross_entropy_with_logits), _bce(F.binary_cross_entropy_with_logits), (2, 3), (13, 9),
       (2, 1), (6, 4), goal=4.0),
    Op("bce_with_logits, pos_weight", "binary_cross_entropy_with_logits", "bce", with_pos_weight,
       _bce(binary_cross_entropy_with_logits), _bce(F.binary_cross_entropy_with_logits), (2, 3), (20, 19),
       (2, 1), (10, 8), goal=4.0),
    Op("sigmoid_focal_loss", "sigmoid_focal_loss", "focal", logits_and_labels,
       partial(sigmoid_focal_loss, reduction="mean"), partial(torchvision_focal_loss, reduction="mean"),
       (2, 3), (47, 44), (2, 1), (20, 17), goal=8.0),
    Op("bce_with_logits, mask", "binary_cross_entropy_with_logits", "bce", with_mask, _masked_bce, _pytorch_masked_bce,
       (3, 4), (16, 10), (2, 1), (8, 5), goal=4.0),
    Op("sigmoid_focal_loss, classes", "sigmoid_focal_loss", "focal", logits_and_classes, _class_focal,
       _pytorch_class_focal, (1, 2), (49, 44), (2, 1), (23, 17), goal=8.0),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(row.op for row in OPS))
