"""``Sigmoid``: the module form of :func:`sigmoid_op.sigmoid`."""

from torch import Tensor, nn

from sigmoid_op.functional import sigmoid


class Sigmoid(nn.Sigmoid):
    r"""Apply the logistic sigmoid to each element: a drop-in for :class:`torch.nn.Sigmoid`.

    .. math:: \text{Sigmoid}(x) = \sigma(x) = \frac{1}{1 + e^{-x}}

    A subclass of ``nn.Sigmoid`` with no state of its own, so ``isinstance`` checks, state dicts, pickles and ``repr``
    stay as they are. See :func:`sigmoid_op.sigmoid` for dtypes, errors and what is saved for backward.

    Shape:
        - Input: any
        - Output: that of the input
    """

    def forward(self, input: Tensor) -> Tensor:
        return sigmoid(input)
