"""The launches of every op and the elements they move: ours by the launcher, PyTorch's by its operators."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.ops import OPS, Form, Op, Pair
from tests.conftest import Route, replace_launches

N_ELEMENTS = 2**18  # whole images, so that what is small is a small part
every_row = pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)


def _elements(tensors: Any) -> float:
    """In memory, as so many float32: an expanded dimension counts once, a pair of float32 as two, a bool as 1/4."""
    return sum(
        math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.element_size() / 4
        for x in tree_leaves(tensors)
        if isinstance(x, Tensor)
    )


class EagerOperators(TorchDispatchMode):
    """Counts PyTorch's operators, and what they read and write. Views and allocations launch and move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[float] = []  # by each

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "binary_cross_entropy_with_logits":  # one operator for autograd, several kernels underneath
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if name.startswith("log_sigmoid"):  # its buffer, the last of results and arguments, is empty on CUDA
            self.moved.append(_elements(args[:2]) + _elements(tree_leaves(out)[:1]))
        elif name == "fill_":
            self.moved.append(_elements(out))
        elif not func.is_view and name not in ("empty_like", "ones_like"):
            self.moved.append(_elements((args, kwargs, out)))
        return out


def _count(row: Op, form: Form, device: str, moved: list[float]) -> tuple[Pair, Pair]:
    """Launches, and elements moved per element, forward and backward; ``moved`` grows by one number a launch."""
    operands = row.operands(N_ELEMENTS, torch.float32, torch.device(device))
    leaves = [x.requires_grad_() for x in operands[: row.n_gradients]]
    moved.clear()  # drawing the operands
    out = form(*operands)
    n_forward = len(moved)
    torch.autograd.grad(out, leaves, out.detach())
    passes = moved[:n_forward], moved[n_forward:]
    forward, backward = (round(sum(of_pass) / N_ELEMENTS) for of_pass in passes)
    return (len(passes[0]), len(passes[1])), (forward, backward)


@every_row
def test_pytorch(row: Op) -> None:
    """The benchmark's table, and the README's, say what its operators launch and move, forward and backward."""
    with EagerOperators() as counted:
        assert _count(row, row.pytorch, "meta", counted.moved) == (row.pytorch_launches, row.pytorch_moved)


@every_row
def test_ours(kernel_route: Route, row: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what our kernels do: each operand is moved once. Sums, one number a block, are rounded away.

    A kernel that reads, or writes, both halves of a tensor is given it twice.
    """
    moved: list[float] = []

    def count(kernel: Any, programs: int, args: tuple[Any, ...], *_: Any) -> None:
        moved.append(_elements([list({id(x): x for x in tree_leaves(part)}.values()) for part in args]))

    replace_launches(monkeypatch, count)
    assert _count(row, row.ours, kernel_route.device, moved) == (row.launches, row.moved)
