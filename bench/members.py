"""The family: for each op what is timed, on which inputs, against what, and the bytes that must move. One row each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import rivals
from bench.cases import Pass
from bench.reference import torchvision_focal_loss
from bench.rivals import Op, Rivals
from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss
from sigmoid_op.ops.gate import sigmoid_gate
from sigmoid_op.ops.glu import glu
from sigmoid_op.ops.logsigmoid import logsigmoid
from sigmoid_op.ops.silu import silu
from sigmoid_op.ops.swiglu import swiglu

Operands = tuple[Tensor, ...]

# Realistic last dimensions: 4096 features of a transformer, 1024 classes, and images of 256 channels of 32 x 32.
FEATURES, CLASSES, IMAGE = 4096, 1024, (256, 32, 32)
LEAST_ELEMENTS = 2**18  # one such image; all sizes are multiples of it


@dataclass(frozen=True)
class Traffic:
    """Elements read and written per element of the result, for a loss of the logits. What is small is not counted."""

    forward: int
    backward: int

    def of(self, pass_: Pass) -> int:
        return {"forward": self.forward, "backward": self.backward}.get(pass_, self.forward + self.backward)


@dataclass(frozen=True)
class Member:
    """One op on one kind of input.

    ``inputs`` makes operands for a number of elements, of which the first ``n_gradients`` are differentiated. ``goal``:
    how many times as fast as eager PyTorch forward and backward together are to be. ``rivals``: other packages'
    forms of the op.
    """

    name: str
    op: str
    inputs: Callable[[int, torch.dtype, torch.device], Operands]
    n_gradients: int
    ours: Op
    eager: Op
    traffic: Traffic
    eager_traffic: Traffic
    goal: float | None = None
    rivals: Rivals = field(default_factory=dict)


def _randn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def _one(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    return (_randn(n // FEATURES, FEATURES, dtype=dtype, device=device),)


def _two(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    return _one(n, dtype, device) + _one(n, dtype, device)


def _packed(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    return (_randn(n // FEATURES, 2 * FEATURES, dtype=dtype, device=device),)


def _packed_channels(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    channels, height, width = IMAGE
    return (_randn(n // LEAST_ELEMENTS, 2 * channels, height, width, dtype=dtype, device=device),)


def _image_and_channel_gate(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    images = n // LEAST_ELEMENTS
    gate = _randn(images, IMAGE[0], 1, 1, dtype=dtype, device=device)
    return _randn(images, *IMAGE, dtype=dtype, device=device), gate


def _channels_last(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    x, gate = _image_and_channel_gate(n, dtype, device)
    return x.contiguous(memory_format=torch.channels_last), gate


def _logits_and_labels(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    logits = _randn(n // CLASSES, CLASSES, dtype=dtype, device=device)
    return logits, torch.empty_like(logits).bernoulli_(0.25)


def _with_pos_weight(n: int, dtype: torch.dtype, device: torch.device) -> Operands:
    return *_logits_and_labels(n, dtype, device), torch.full((CLASSES,), 3.0, dtype=dtype, device=device)


def _eager_gate(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.sigmoid(gate)


def _eager_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _eager_packed_swiglu(x: Tensor) -> Tensor:
    return _eager_swiglu(*x.chunk(2, -1))


def _eager_focal(inputs: Tensor, targets: Tensor) -> Tensor:
    return torchvision_focal_loss(inputs, targets, reduction="mean")


def _focal(inputs: Tensor, targets: Tensor) -> Tensor:
    return sigmoid_focal_loss(inputs, targets, reduction="mean")


def _bce(logits: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)


def _eager_bce(logits: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)


# The eager traffic is that of PyTorch's operators, each of which reads its operands and writes its result. As ours, it
# is counted by tests/family/test_traffic.py. For the cross-entropy with logits forward: log_sigmoid 2, ones 1, sub_ 3,
# mul_ 3, sub_ 3, mean 1; backward: sigmoid 2, sub_ 3, mul_ 2, div_ 2.
MEMBERS: tuple[Member, ...] = (
    Member("sigmoid_gate", "sigmoid_gate", _two, 2, sigmoid_gate, _eager_gate, Traffic(3, 5), Traffic(5, 9), goal=1.6),
    Member("sigmoid_gate, SE", "sigmoid_gate", _image_and_channel_gate, 2, sigmoid_gate, _eager_gate,
           Traffic(2, 3), Traffic(2, 6), goal=1.6),
    Member("sigmoid_gate, SE channels_last", "sigmoid_gate", _channels_last, 2, sigmoid_gate, _eager_gate,
           Traffic(2, 3), Traffic(2, 6), goal=1.6),
    Member("silu", "silu", _one, 1, silu, F.silu, Traffic(2, 3), Traffic(2, 3),
           rivals=rivals.SILU),
    Member("swiglu", "swiglu", _two, 2, swiglu, _eager_swiglu, Traffic(3, 5), Traffic(5, 9), goal=1.6,
           rivals=rivals.SWIGLU),
    Member("swiglu, packed", "swiglu", _packed, 1, swiglu, _eager_packed_swiglu, Traffic(3, 5), Traffic(5, 13),
           goal=1.6),
    Member("glu", "glu", _packed, 1, glu, F.glu, Traffic(3, 5), Traffic(3, 5),
           rivals=rivals.GLU),
    Member("glu, dim=1", "glu", _packed_channels, 1, lambda x: glu(x, 1), lambda x: F.glu(x, 1),
           Traffic(3, 5), Traffic(3, 5), rivals=rivals.GLU_OF_CHANNELS),
    Member("logsigmoid", "logsigmoid", _one, 1, logsigmoid, F.logsigmoid, Traffic(2, 3), Traffic(2, 3)),
    Member("bce_with_logits", "binary_cross_entropy_with_logits", _logits_and_labels, 1, _bce, _eager_bce,
           Traffic(2, 3), Traffic(13, 9), goal=4.0),
    Member("bce_with_logits, pos_weight", "binary_cross_entropy_with_logits", _with_pos_weight, 1, _bce, _eager_bce,
           Traffic(2, 3), Traffic(20, 19), goal=4.0),
    Member("sigmoid_focal_loss", "sigmoid_focal_loss", _logits_and_labels, 1, _focal, _eager_focal, Traffic(2, 3),
           Traffic(47, 44), goal=8.0),
)  # fmt: skip
OPS = tuple(dict.fromkeys(member.op for member in MEMBERS))
