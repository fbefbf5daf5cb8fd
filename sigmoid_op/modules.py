"""``Sigmoid``: the module form of :func:`sigmoid_op.sigmoid`."""

import torch
from torch import Tensor, nn

from sigmoid_op.functional import sigmoid


class Sigmoid(nn.Sigmoid):
    r"""Apply the logistic sigmoid to each element: a drop-in for :class:`torch.nn.Sigmoid`.

    .. math:: \text{Sigmoid}(x) = \sigma(x) = \frac{1}{1 + e^{-x}}

    A subclass of ``nn.Sigmoid`` without parameters or buffers, so ``isinstance`` checks, state dicts, pickles and
    ``repr`` stay as they are. See :func:`sigmoid_op.sigmoid` for dtypes, errors and what is saved for backward.

    Args:
        exact_grad: whether the gradient keeps its accuracy where σ saturates, at the cost that ``sigmoid`` states.

    Shape:
        - Input: any
        - Output: that of the input
    """

    __constants__ = ("exact_grad",)  # TorchScript, which knows no such gradient, leaves out that branch
    exact_grad: bool = False  # on the class too, for modules that were made as nn.Sigmoid

    def __init__(self, exact_grad: bool = False) -> None:
        super().__init__()
        self.exact_grad = exact_grad

    def forward(self, input: Tensor) -> Tensor:
        if self.exact_grad and not torch.jit.is_scripting():
            return sigmoid(input, exact_grad=True)
        return sigmoid(input)

    def extra_repr(self) -> str:
        return "exact_grad=True" if self.exact_grad else ""
