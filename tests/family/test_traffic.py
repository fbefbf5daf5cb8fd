"""The elements that ops of the family move: by the launches of ours, and by eager PyTorch's operators."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.members import LEAST_ELEMENTS, MEMBERS, Member, Traffic
from bench.rivals import Op
from tests.conftest import Route, replace_launches

every_row = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)


def _elements(tensors: Any) -> int:
    """In memory: an expanded dimension counts once."""
    return sum(
        math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
        for x in tree_leaves(tensors)
        if isinstance(x, Tensor)
    )


class EagerOperators(TorchDispatchMode):
    """Counts what PyTorch's operators read and write. Views and allocations move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "binary_cross_entropy_with_logits":  # one operator for autograd, several kernels underneath
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if name.startswith("log_sigmoid"):  # its buffer, the last of results and arguments, is empty on CUDA
            self.moved += _elements(args[:2]) + _elements(tree_leaves(out)[:1])
        elif name == "fill_":
            self.moved += _elements(out)
        elif not func.is_view and name not in ("empty_like", "ones_like"):
            self.moved += _elements((args, kwargs, out))
        return out


def _per_element(member: Member, op: Op, device: str, moved: Any) -> Traffic:
    """``moved()`` says how many elements were, so far."""
    operands = member.inputs(LEAST_ELEMENTS, torch.float32, torch.device(device))
    leaves = [x.requires_grad_() for x in operands[: member.n_gradients]]
    start = moved()
    out = op(*operands)
    middle = moved()
    torch.autograd.grad(out, leaves, out.detach())
    return Traffic(round((middle - start) / LEAST_ELEMENTS), round((moved() - middle) / LEAST_ELEMENTS))


@every_row
def test_eager_pytorch(member: Member) -> None:
    """The benchmark's table, and the README's, say what its operators move, forward and backward."""
    with EagerOperators() as counted:
        assert _per_element(member, member.eager, "meta", lambda: counted.moved) == member.eager_traffic


@every_row
def test_ours(kernel_route: Route, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what our launches move: each operand once. Sums, one number a block, are rounded away."""
    launched: list[tuple[Any, ...]] = []
    replace_launches(monkeypatch, lambda kernel, programs, args, *_: launched.append(args))
    assert _per_element(member, member.ours, kernel_route.device, lambda: _elements(launched)) == member.traffic
