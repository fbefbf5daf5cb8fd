"""σ for PyTorch: a drop-in ``torch.sigmoid``, and the ops built on it, with fused Triton kernels on CUDA."""

from sigmoid_op.conversion import convert, revert
from sigmoid_op.ops.bce import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import SigmoidFocalLoss, sigmoid_focal_loss
from sigmoid_op.ops.gate import SigmoidGate, sigmoid_gate
from sigmoid_op.ops.glu import GLU, glu
from sigmoid_op.ops.logsigmoid import LogSigmoid, logsigmoid
from sigmoid_op.ops.sigmoid import Sigmoid, SigmoidFunction, sigmoid, sigmoid_
from sigmoid_op.ops.silu import QuickGELU, SiLU, quick_gelu, silu
from sigmoid_op.ops.swiglu import SwiGLU, swiglu
from sigmoid_op.override import enable

__version__ = "0.2.0"

__all__ = [
    "GLU",
    "BCEWithLogitsLoss",
    "LogSigmoid",
    "QuickGELU",
    "SiLU",
    "Sigmoid",
    "SigmoidFocalLoss",
    "SigmoidFunction",
    "SigmoidGate",
    "SwiGLU",
    "binary_cross_entropy_with_logits",
    "convert",
    "enable",
    "glu",
    "logsigmoid",
    "quick_gelu",
    "revert",
    "sigmoid",
    "sigmoid_",
    "sigmoid_focal_loss",
    "sigmoid_gate",
    "silu",
    "swiglu",
]
