"""The family's gradients: true where σ saturates, made from the operands alone, the same every time."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.utils.checkpoint import checkpoint

from bench.reference import sigmoid64
from sigmoid_op import sigmoid_gate
from tests.conftest import CUDA, Route, formulas_of, saved_tensors
from tests.members import MEMBERS, SIGMOID_GATE, SWIGLU, Member, every_broadcast, every_call, every_member
from tests.models import Cut
from tests.ulp import FLOAT_DTYPES, PRODUCT_GRADIENT_ULPS, PRODUCT_ULPS, ulp_of

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def _leaves(member: Member, variant: str, dtype: torch.dtype, route: Route, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(operand.requires_grad_() for operand in member.operands(variant, dtype, route.device, seed))


@every_call
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_gradients(route: Route, launches: list[str], member: Member, variant: str, dtype: torch.dtype) -> None:
    """The fallback's are PyTorch's, bit for bit; the kernel's, one launch, within the table's ulps of the truth."""
    leaves = _leaves(member, variant, dtype, route)
    out = member.ours(*leaves)
    grad_out = torch.linspace(-2, 3, out.numel(), dtype=dtype, device=route.device).view(out.shape)
    gradients = torch.autograd.grad(out, leaves, grad_out)
    assert [(g.shape, g.dtype) for g in gradients] == [(leaf.shape, dtype) for leaf in leaves]
    if route.uses_kernels:
        member.assert_gradients_within(PRODUCT_GRADIENT_ULPS[dtype], gradients, grad_out, *leaves)
        assert formulas_of(launches) == list(member.launched(dtype))
    else:
        assert all(map(torch.equal, gradients, torch.autograd.grad(member.theirs(*leaves), leaves, grad_out)))
        assert launches == []


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
    operands = tuple(operand.to(kernel_route.device, copy=True) for operand in member.whole(x, x)[: member.arity])
    operands = tuple(operand.requires_grad_() for operand in operands)
    out = member.ours(*operands)
    grad_out = torch.ones_like(out)
    gradients = member.parts(*torch.autograd.grad(out, operands, grad_out))
    square = x.double().square()
    allowance = torch.where(sigmoid64(-(member.slope * x.double()).abs()) < info.tiny, square * info.tiny * info.eps, 0)
    truth = member.truth(*operands)
    checks = [(out, truth, truth, PRODUCT_ULPS)]
    for gradient, (exact, magnitude) in zip(gradients, member.true_gradients(grad_out, *operands), strict=True):
        checks.append((gradient, exact, magnitude, PRODUCT_GRADIENT_ULPS))
    for result, exact, magnitude, ulps in checks:
        error = (result.detach().cpu().double() - exact).abs() - allowance
        assert float((error / ulp_of(magnitude, dtype)).max()) <= ulps[dtype]


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.kernels[0] == "sigmoid_gate"], ids=lambda m: m.name)
def test_gates_live_where_those_of_pytorch_are_dead(kernel_route: Route, member: Member) -> None:
    """Where PyTorch's σ(gate)·(1 - σ(gate)) is exactly 0, the kernel's gradient is not: so the test above can fail."""
    gate = torch.linspace(17.5, 80, 64, device=kernel_route.device)[None, :]
    operands = tuple(part.clone().requires_grad_() for part in member.whole(torch.ones_like(gate), gate))
    for op, alive in ((member.ours, True), (member.theirs, False)):
        of_gate = member.parts(*torch.autograd.grad(op(*operands).sum(), operands))[1]
        assert bool((of_gate > 0).all() if alive else (of_gate == 0).all())


@every_broadcast
def test_gradcheck_of_a_broadcast_gate(kernel_route: Route, variant: str) -> None:
    """gradcheck holds for a gate that is summed to its shape, with undefined gradients too."""
    leaves = _leaves(SIGMOID_GATE, variant, torch.float64, kernel_route)
    assert gradcheck(sigmoid_gate, leaves, fast_mode=True, check_undefined_grad=True)


@every_member
def test_every_mode_of_differentiation(kernel_route: Route, member: Member) -> None:
    """gradcheck and gradgradcheck hold in forward mode, over reverse mode, and batched."""
    leaves = _leaves(member, "matrix", torch.float64, kernel_route)
    assert gradcheck(member.ours, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(member.ours, leaves, fast_mode=True, check_fwd_over_rev=True)


def test_gradcheck_catches_gradients_of_the_other_operand(kernel_route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with both gradients in each other's place it does."""
    from sigmoid_op.kernels import swiglu

    backward = swiglu.launch_swiglu_backward
    monkeypatch.setattr(swiglu, "launch_swiglu_backward", lambda *operands: (backward(*operands) or ())[::-1])
    (member,) = (member for member in MEMBERS if member.name == "swiglu")
    with pytest.raises(GradcheckError):
        gradcheck(member.ours, _leaves(member, "scalar", torch.float64, kernel_route))


FREEZABLE = [(SIGMOID_GATE, "matrix"), (SIGMOID_GATE, "per feature"), (SWIGLU, "matrix")]


CLAMPED_SWIGLU = next(member for member in MEMBERS if member.name == "clamped swiglu")


@pytest.mark.parametrize(
    ("member", "variant"), [*FREEZABLE, (CLAMPED_SWIGLU, "matrix")], ids=lambda value: getattr(value, "name", value)
)
@pytest.mark.parametrize("frozen", [0, 1])
def test_one_operand_is_frozen(route: Route, member: Member, variant: str, frozen: int) -> None:
    """An operand that requires no gradient gets none, and the other has the one it always has."""
    operands = member.operands(variant, torch.float64, route.device)
    operands[1 - frozen].requires_grad_()
    member.ours(*operands).sum().backward()
    assert operands[frozen].grad is None
    grad_out = torch.ones_like(operands[0])
    exact = member.true_gradients(grad_out, *operands)[1 - frozen][0]
    torch.testing.assert_close(operands[1 - frozen].grad, exact, check_device=False)


@pytest.mark.parametrize(("member", "variant"), FREEZABLE, ids=lambda value: getattr(value, "name", value))
def test_a_frozen_gate_is_all_that_is_kept(
    kernel_route: Route, launches: list[str], member: Member, variant: str
) -> None:
    """What it scales is not saved, may be changed in place, and its gradient is the op of grad_out and the gate."""
    gate_at = member.ours is sigmoid_gate
    operands = list(member.operands(variant, torch.float32, kernel_route.device))
    scaled = operands[1 - gate_at].requires_grad_() * 1
    operands[1 - gate_at] = scaled
    with saved_tensors() as saved:
        out = member.ours(*operands)
    assert [x.data_ptr() for x in saved] == [operands[gate_at].data_ptr()]
    scaled.detach().zero_()
    out.sum().backward()
    assert launches == [member.launched(torch.float32)[0]] * 2


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


@pytest.mark.parametrize("variant", ["matrix", "per feature"])
def test_the_gradient_of_a_frozen_x_is_not_computed(kernel_route: Route, launches: list[str], variant: str) -> None:
    """Where only the gate is trained, backward writes its gradient and nothing else."""
    x, gate = SIGMOID_GATE.operands(variant, torch.float32, kernel_route.device)
    sigmoid_gate(x, gate.requires_grad_()).sum().backward()
    assert launches == ["sigmoid_gate", "sigmoid_gate_backward_to_gate"]


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
def test_saved_tensor_hooks(route: Route, member: Member) -> None:
    """Gradients of gradients under checkpointing and offloading, which put hooks on what is saved."""

    def penalty(*leaves: Tensor) -> Tensor:
        gradients = torch.autograd.grad(member.ours(*leaves).sum(), leaves, create_graph=True)
        return sum((gradient.square().sum() for gradient in gradients), start=torch.zeros((), device=route.device))

    leaves = _leaves(member, "matrix", torch.float64, route)
    expected = torch.autograd.grad(penalty(*leaves), leaves)
    checkpointed = checkpoint(penalty, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(checkpointed, leaves), expected)
    with torch.autograd.graph.save_on_cpu():
        offloaded = penalty(*leaves)
    torch.testing.assert_close(torch.autograd.grad(offloaded, leaves), expected)


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


@every_member
def test_penalty_on_the_gradient(route: Route, member: Member) -> None:
    """A gradient made with create_graph is trained on: backward through its square is PyTorch's in float64."""
    results = []
    for op in (member.ours, member.theirs):
        leaves = _leaves(member, "matrix", torch.float64, route)
        gradients = torch.autograd.grad(op(*leaves).sum(), leaves, create_graph=True)
        sum((gradient.square().sum() for gradient in gradients), start=torch.zeros((), device=route.device)).backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*results)


@every_call
def test_saves_its_operands_alone(kernel_route: Route, member: Member, variant: str) -> None:
    """Kept for backward are the operands themselves: no σ, no copy, no broadcast gate."""
    leaves = _leaves(member, variant, torch.float32, kernel_route)
    with saved_tensors() as saved:
        member.ours(*leaves)
    assert [(x.data_ptr(), x.shape) for x in saved] == [(leaf.data_ptr(), leaf.shape) for leaf in leaves]


@every_member
def test_saves_nothing_without_grad(route: Route, member: Member) -> None:
    """Under no_grad nothing is kept."""
    leaves = _leaves(member, "matrix", torch.float32, route)
    with torch.no_grad(), saved_tensors() as saved:
        member.ours(*leaves)
    assert saved == []


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
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
