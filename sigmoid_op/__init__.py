"""σ for PyTorch: a drop-in ``torch.sigmoid`` with fused Triton kernels on CUDA."""

from sigmoid_op.autograd import SigmoidFunction
from sigmoid_op.convert import convert, revert
from sigmoid_op.functional import sigmoid, sigmoid_
from sigmoid_op.modules import Sigmoid
from sigmoid_op.override import enable

__version__ = "0.1.0"

__all__ = ["Sigmoid", "SigmoidFunction", "convert", "enable", "revert", "sigmoid", "sigmoid_"]
