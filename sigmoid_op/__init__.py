"""σ for PyTorch: a drop-in ``torch.sigmoid`` with fused Triton kernels on CUDA."""

from sigmoid_op.autograd import SigmoidFunction
from sigmoid_op.convert import convert, revert
from sigmoid_op.family.gate import sigmoid_gate
from sigmoid_op.family.glu import glu
from sigmoid_op.family.silu import silu
from sigmoid_op.family.swiglu import swiglu
from sigmoid_op.functional import sigmoid, sigmoid_
from sigmoid_op.gate_modules import GLU, SigmoidGate, SiLU, SwiGLU
from sigmoid_op.modules import Sigmoid
from sigmoid_op.override import enable

__version__ = "0.1.0"

__all__ = [
    "GLU",
    "SiLU",
    "Sigmoid",
    "SigmoidFunction",
    "SigmoidGate",
    "SwiGLU",
    "convert",
    "enable",
    "glu",
    "revert",
    "sigmoid",
    "sigmoid_",
    "sigmoid_gate",
    "silu",
    "swiglu",
]
