"""The family's gradients: true where σ saturates, made from the operands alone, the same every time."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from bench.reference import sigmoid64
from sigmoid_op import sigmoid_gate
from tests.conftest import CUDA, Route, formulas_of, saved_tensors
from tests.members import CLAMPED_SWIGLU, SIGMOID_GATE, SWIGLU, Member, Op, every_broadcast, every_call, every_member
from tests.models import Cut
from tests.ulp import FLOAT_DTYPES, PRODUCT_GRADIENT_ULPS, PRODUCT_ULPS, ulp_of

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def _leaves(member: Member, variant: str, dtype: torch.dtype, route: Route, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(operand.requires_grad_() for operand in member.operands(variant, dtype, route.device, seed))


@every_member
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_tails(kernel_route: Route, member: Member, dtype: torch.dtype) -> None:
    """Results and gradients keep their digits as far as they are normal numbers.

    Past |x| = 87.3 in float32 and bfloat16, and 708.4 in float64, σ(-|x|) is a subnormal number, and what multiplies
    it, here x², multiplies its rounding. In float16, which is computed in float32, it never is.
    """
    info = torch.finfo(torch.float32 if dtype == torch.float16 else dtype)
    end = (8 - math.log(torch.finfo(dtype).tiny)) / abs(member.slope)
    x = torch.linspace(-end, end, 1501, dtype=torch.float64).to(dtype)[None, :]
    operands = [operand.to(kernel_route.device, copy=True) for operand in member.whole(x, x)[: member.arity]]
    out = member.ours(*(operand.requires_grad_() for operand in operands))
    grad_out = torch.ones_like(out)
    gradients = member.parts(*torch.autograd.grad(out, operands, grad_out))
    square = x.double().square()
    allowance = torch.where(sigmoid64(-(member.slope * x.double()).abs()) < info.tiny, square * info.tiny * info.eps, 0)
    truth, true_gradients = member.truth(*operands), member.true_gradients(grad_out, *operands)
    ulps = [PRODUCT_ULPS[dtype], *[PRODUCT_GRADIENT_ULPS[dtype]] * len(gradients)]
    checks = zip((out, *gradients), [(truth, truth), *true_gradients], ulps, strict=True)
    for result, (exact, magnitude), limit in checks:
        error = (result.detach().cpu().double() - exact).abs() - allowance
        assert float((error / ulp_of(magnitude, dtype)).max()) <= limit


@every_member
def test_every_mode_of_differentiation(kernel_route: Route, member: Member) -> None:
    """gradcheck and gradgradcheck hold in forward mode, over reverse mode, and batched."""
    leaves = _leaves(member, "matrix", torch.float64, kernel_route)
    assert gradcheck(member.ours, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(member.ours, leaves, fast_mode=True, check_fwd_over_rev=True)


# The operand without a gradient, those kept for backward, and what backward launches.
FROZEN = [
    (SIGMOID_GATE, "matrix", 0, [0, 1], "sigmoid_gate_backward_to_gate"),
    (SIGMOID_GATE, "matrix", 1, [1], "sigmoid_gate"),
    (SIGMOID_GATE, "per feature", 0, [0, 1], "sigmoid_gate_backward_to_gate"),
    (SIGMOID_GATE, "per feature", 1, [1], "sigmoid_gate"),
    (SWIGLU, "matrix", 0, [0], "swiglu"),
    (SWIGLU, "matrix", 1, [0, 1], "swiglu_backward"),
    (CLAMPED_SWIGLU, "matrix", 0, [0, 1], "swiglu_backward"),
    (CLAMPED_SWIGLU, "matrix", 1, [0, 1], "swiglu_backward"),
]


@pytest.mark.parametrize(
    ("member", "variant", "frozen", "kept", "backward"), FROZEN, ids=lambda value: getattr(value, "name", None)
)
def test_one_operand_is_frozen(
    route: Route, launches: list[str], member: Member, variant: str, frozen: int, kept: list[int], backward: str
) -> None:
    """It gets no gradient, and the other has the one it always has.

    Beside a frozen gate nothing else is kept, and backward is the op of grad_out and the gate; beside a frozen x the
    gradient of the gate is all that is written.
    """
    operands = member.operands(variant, torch.float64, route.device)
    trained = operands[1 - frozen].requires_grad_()
    with saved_tensors() as saved:
        out = member.ours(*operands)
    out.sum().backward()
    assert operands[frozen].grad is None
    exact, _ = member.true_gradients(torch.ones_like(out), *operands)[1 - frozen]
    torch.testing.assert_close(trained.grad, exact, check_device=False)
    if route.uses_kernels:
        assert [x.data_ptr() for x in saved] == [operands[i].data_ptr() for i in kept]
        assert formulas_of(launches) == [member.kernels[0], backward]


@pytest.mark.parametrize("frozen", [0, 1])
def test_an_operand_made_in_inference_mode(kernel_route: Route, launches: list[str], frozen: int) -> None:
    """It cannot be saved for a gradient: beside an operand that has one, PyTorch's form runs, as far as that can."""
    operands = list(SIGMOID_GATE.operands("matrix", torch.float64, kernel_route.device))
    operands[1 - frozen].requires_grad_()
    with torch.inference_mode():
        operands[frozen] = operands[frozen].clone()
    if frozen == 0:  # which PyTorch's form saves, too
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            sigmoid_gate(*operands)
    else:
        sigmoid_gate(*operands).sum().backward()
        exact, _ = SIGMOID_GATE.true_gradients(torch.ones_like(operands[0]), *operands)[0]
        torch.testing.assert_close(operands[0].grad, exact, check_device=False)
    assert launches == []


@every_member
def test_an_undefined_gradient_stays_undefined(route: Route, member: Member) -> None:
    """What no gradient reaches has none, rather than zeros, with which an optimizer would decay its weights."""
    leaves = _leaves(member, "matrix", torch.float64, route)
    Cut.apply(member.ours(*leaves)).sum().backward()
    assert [leaf.grad for leaf in leaves] == [None] * len(leaves)


@every_member
def test_a_graph_is_used_again(route: Route, member: Member) -> None:
    """Gradients accumulate over two backward passes of a graph, which refuses a third; create_graph changes none."""
    leaves = _leaves(member, "matrix", torch.float64, route)
    out = member.ours(*leaves)
    out.sum().backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    again = torch.autograd.grad(out.sum(), leaves, create_graph=True)
    out.sum().backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], [2 * grad for grad in once])
    torch.testing.assert_close(list(again), once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.sum().backward()


@every_member
def test_penalty_on_the_gradient(route: Route, member: Member) -> None:
    """A gradient made with create_graph is trained on: backward through its square is PyTorch's in float64.

    So it is under checkpointing and offloading, which put hooks on what is saved.
    """

    def penalty(op: Op, *leaves: Tensor) -> Tensor:
        gradients = torch.autograd.grad(op(*leaves).sum(), leaves, create_graph=True)
        return sum((gradient.square().sum() for gradient in gradients), start=torch.zeros((), device=route.device))

    leaves = _leaves(member, "matrix", torch.float64, route)
    expected = torch.autograd.grad(penalty(member.theirs, *leaves), leaves)
    with torch.autograd.graph.save_on_cpu():
        offloaded = penalty(member.ours, *leaves)
    checkpointed = checkpoint(penalty, member.ours, *leaves, use_reentrant=False)
    for found in (penalty(member.ours, *leaves), offloaded, checkpointed):
        torch.testing.assert_close(torch.autograd.grad(found, leaves), expected)


@pytest.mark.parametrize("x", [30.0, -30.0])
def test_gradients_of_gradients_do_not_die(kernel_route: Route, x: float) -> None:
    """Where σ saturates, a gate's second derivative keeps its digits: ∓e^-30 at ±30; at 30, PyTorch has 0."""
    gate = torch.full((3,), x, device=kernel_route.device, requires_grad=True)
    out = sigmoid_gate(torch.ones_like(gate), gate)
    (slope,) = torch.autograd.grad(out.sum(), gate, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), gate)
    exact = torch.full((3,), -math.copysign(math.exp(-30), x), dtype=torch.float64)
    torch.testing.assert_close(curvature.cpu().double(), exact, rtol=1e-6, atol=0)


@every_member
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_to_be_differentiated_are_rounded_once(
    kernel_route: Route, member: Member, dtype: torch.dtype
) -> None:
    """With create_graph, gradients of 16 bits by PyTorch's operators are as near to the truth as the kernel's."""
    leaves = _leaves(member, "matrix", dtype, kernel_route)
    out = member.ours(*leaves)
    grad_out = torch.linspace(-2, 3, out.numel(), dtype=dtype, device=out.device).view(out.shape)
    gradients = torch.autograd.grad(out, leaves, grad_out, create_graph=True)
    member.assert_gradients_within(PRODUCT_GRADIENT_ULPS[dtype], gradients, grad_out, *leaves)


@every_call
def test_saves_its_operands_alone(kernel_route: Route, member: Member, variant: str) -> None:
    """Kept for backward are the operands themselves: no σ, no copy, no broadcast gate; under no_grad nothing."""
    leaves = _leaves(member, variant, torch.float32, kernel_route)
    with saved_tensors() as saved:
        with torch.no_grad():
            member.ours(*leaves)
        assert saved == []
        member.ours(*leaves)
    assert [(x.data_ptr(), x.shape) for x in saved] == [(leaf.data_ptr(), leaf.shape) for leaf in leaves]


@every_member
@pytest.mark.parametrize("strided", [False, True], ids=["dense", "every second"])
def test_changing_an_operand_before_backward(route: Route, member: Member, strided: bool) -> None:
    """The version counter catches an operand changed in place, instead of a wrong gradient.

    Only PyTorch's form of sigmoid_gate saves σ(gate) in place of the gate, which may then change.
    """
    for changed in range(member.arity):
        leaves = _leaves(member, "matrix", torch.float32, route)
        operands = [torch.stack([x, x], -1)[..., 0] if strided else x * 1 for x in leaves]
        out = member.ours(*operands)
        expected = torch.autograd.grad(member.theirs(*leaves).sum(), leaves)
        operands[changed].detach().mul_(2)
        if member is SIGMOID_GATE and changed == 1 and not route.uses_kernels:
            torch.testing.assert_close(torch.autograd.grad(out.sum(), leaves), expected)
        else:
            with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
                out.sum().backward()


@every_broadcast
@pytest.mark.gpu
@pytest.mark.parametrize("kernel_route", [CUDA], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sums_are_the_same_every_time(kernel_route: Route, variant: str, dtype: torch.dtype) -> None:
    """The gradient of a broadcast gate has the same bits on every run."""
    leaves = _leaves(SIGMOID_GATE, variant, dtype, kernel_route)
    gradients = [torch.autograd.grad(sigmoid_gate(*leaves).sum(), leaves)[1] for _ in range(3)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
