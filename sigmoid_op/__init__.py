"""σ for PyTorch: a drop-in ``torch.sigmoid`` with fused Triton kernels on CUDA."""

from sigmoid_op.autograd import SigmoidFunction
from sigmoid_op.functional import sigmoid, sigmoid_
from sigmoid_op.modules import Sigmoid

__version__ = "0.1.0"

__all__ = ["Sigmoid", "SigmoidFunction", "sigmoid", "sigmoid_"]
