"""The gates as modules: :mod:`sigmoid_op.family` has the functions, with dtypes, errors and what is saved."""

from torch import Tensor, nn

from sigmoid_op.family.gate import sigmoid_gate
from sigmoid_op.family.glu import glu
from sigmoid_op.family.silu import silu
from sigmoid_op.family.swiglu import swiglu


class SiLU(nn.SiLU):
    r"""Apply the sigmoid linear unit to each element: a drop-in for :class:`torch.nn.SiLU`.

    .. math:: \text{SiLU}(x) = x \, \sigma(x)

    See :func:`sigmoid_op.silu`.

    Args:
        inplace: whether to overwrite the input, which PyTorch's operator does.

    Shape:
        - Input: any
        - Output: that of the input
    """

    def forward(self, input: Tensor) -> Tensor:
        return silu(input, self.inplace)


class GLU(nn.GLU):
    r"""Gate one half of the input by the other: a drop-in for :class:`torch.nn.GLU`.

    .. math:: \text{GLU}(a, b) = a \, \sigma(b)

    See :func:`sigmoid_op.glu`.

    Args:
        dim: the dimension to halve.

    Shape:
        - Input: any, even in size along ``dim``
        - Output: that of the input, half as large along ``dim``
    """

    def forward(self, input: Tensor) -> Tensor:
        return glu(input, self.dim)


class SigmoidGate(nn.Module):
    r"""Scale the first input by a gate: the module form of :func:`sigmoid_op.sigmoid_gate`.

    .. math:: \text{SigmoidGate}(x, g) = x \, \sigma(g)

    Shape:
        - x: any
        - gate: that of x, or one that broadcasts to it
        - Output: that of x
    """

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return sigmoid_gate(x, gate)


class SwiGLU(nn.Module):
    r"""Gate one input by the SiLU of the other: the module form of :func:`sigmoid_op.swiglu`.

    .. math:: \text{SwiGLU}(g, u) = g \, \sigma(g) \, u

    Shape:
        - gate: any; without ``up`` [..., 2d], which holds both side by side
        - up: that of gate
        - Output: that of gate, or [..., d]
    """

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        return swiglu(gate, up)
