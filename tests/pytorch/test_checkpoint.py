"""Activation checkpointing of every op: forward runs again in backward, and the gradients are right."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from sigmoid_op import sigmoid
from tests.conftest import Route
from tests.members import Member
from tests.pytorch.ops import every_op


@every_op
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(route: Route, launches: list[str], op: Member, use_reentrant: bool) -> None:
    """The forward kernel runs twice, the backward kernel once."""
    leaves = [operand.requires_grad_() for operand in op.operands("matrix", torch.float64, route.device)]
    out = checkpoint(op.ours, *leaves, use_reentrant=use_reentrant)
    assert isinstance(out, Tensor)
    out.sum().backward()
    truth = op.true_gradients(torch.ones_like(out), *leaves)
    gradients = op.parts(*(leaf.grad for leaf in leaves if leaf.grad is not None))
    torch.testing.assert_close(list(gradients), [exact for exact, _ in truth], check_device=False)
    forward, backward = op.kernels
    assert launches == ([forward, forward, backward] if route.uses_kernels else [])


@every_op
@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_watched_for_half_of_the_time(route: Route, op: Member, counted: str) -> None:
    """A mode on in one of the two forward passes, as that which counts operations, leaves the gradients right.

    Checkpointing hands backward what the second pass saved, in order: an op that saved other tensors under a mode
    would be given σ(gate) for the gate. So it is with one operand frozen, and with all trained.
    """
    n_operands = op.arity
    for trained in {tuple(range(n_operands)), (0,), (n_operands - 1,)}:
        drawn = op.operands("matrix", torch.float64, route.device)
        operands = [x.requires_grad_(i in trained) for i, x in enumerate(drawn)]
        with FlopCounterMode(display=False) if counted == "forward" else nullcontext():
            out = checkpoint(op.ours, *operands, use_reentrant=False)
        assert isinstance(out, Tensor)
        with FlopCounterMode(display=False) if counted == "backward" else nullcontext():
            out.sum().backward()
        leaves = [x for x in operands if x.requires_grad]
        expected = torch.autograd.grad(op.theirs(*operands).sum(), leaves)
        torch.testing.assert_close([x.grad for x in leaves], list(expected))


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE])
def test_selective_checkpoint(route: Route, policy: CheckpointPolicy) -> None:
    """A policy sees ``aten.sigmoid`` and decides whether it is kept or computed again; the gradients are the same."""
    x = torch.linspace(-3, 3, 5, dtype=torch.float64, device=route.device).requires_grad_()
    seen: list[tuple[object, bool]] = []

    def decide(context: Any, op: object, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append((op, context.is_recompute))
        return policy if op is torch.ops.aten.sigmoid.default else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, decide)
    out = checkpoint(lambda x: 2 * sigmoid(3 * x), x, use_reentrant=False, context_fn=contexts)
    assert isinstance(out, Tensor)
    out.sum().backward()
    assert (torch.ops.aten.sigmoid.default, False) in seen
    s = 1 / (1 + torch.exp(-3 * x.detach()))
    torch.testing.assert_close(x.grad, 6 * s * (1 - s))
