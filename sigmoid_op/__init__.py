"""σ for PyTorch: a drop-in ``torch.sigmoid``, and the ops built on it, with fused Triton kernels on CUDA."""

from sigmoid_op.autograd import SigmoidFunction
from sigmoid_op.conversion import convert, revert
from sigmoid_op.family.bce import binary_cross_entropy_with_logits
from sigmoid_op.family.focal import sigmoid_focal_loss
from sigmoid_op.family.gate import sigmoid_gate
from sigmoid_op.family.glu import glu
from sigmoid_op.family.logsigmoid import logsigmoid
from sigmoid_op.family.silu import silu
from sigmoid_op.family.swiglu import swiglu
from sigmoid_op.functional import sigmoid, sigmoid_
from sigmoid_op.gate_modules import GLU, SigmoidGate, SiLU, SwiGLU
from sigmoid_op.loss_modules import BCEWithLogitsLoss, LogSigmoid, SigmoidFocalLoss
from sigmoid_op.modules import Sigmoid
from sigmoid_op.override import enable

__version__ = "0.1.0"

__all__ = [
    "GLU",
    "BCEWithLogitsLoss",
    "LogSigmoid",
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
    "revert",
    "sigmoid",
    "sigmoid_",
    "sigmoid_focal_loss",
    "sigmoid_gate",
    "silu",
    "swiglu",
]
