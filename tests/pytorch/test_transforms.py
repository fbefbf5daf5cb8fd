"""Compilers, exporters and the transforms of torch.func see the family as PyTorch's own operators."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import Route
from tests.members import SIGMOID_GATE, Member, Op
from tests.pytorch.ops import every_op
from tests.pytorch.test_compile import Recorder

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler"),
    # PyTorch's own: it maps the derivative of F.glu over a batch one by one.
    pytest.mark.filterwarnings("ignore:There is a performance drop.*aten..glu_(backward_)?jvp:UserWarning"),
    # Copying an exported program meets PyTorch's own deprecated class.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


def _operands(op: Member, route: Route, seed: int = 0) -> tuple[Tensor, ...]:
    return op.operands("matrix", torch.float64, route.device, seed)


def _step(form: Op, *operands: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of its square."""
    leaves = tuple(operand.detach().requires_grad_() for operand in operands)
    out = form(*leaves)
    return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)


@every_op
def test_compile(kernel_route: Route, launches: list[str], op: Member) -> None:
    """One graph forward and one backward, holding the operators of PyTorch's form and none of our kernels."""
    operands = _operands(op, kernel_route)
    graphs = []
    for form in (op.ours, op.theirs):
        recorder = Recorder()
        compiled = torch.compile(form, fullgraph=True, backend=recorder.backend)
        torch.testing.assert_close(_step(compiled, *operands)[0], op.truth(*operands), check_device=False)
        graphs.append(
            [[node for node in graph if isinstance(node, torch._ops.OpOverload)] for graph in recorder.graphs]
        )
    assert len(graphs[0]) == 2
    assert graphs[0] == graphs[1]
    assert launches == []


@every_op
def test_compiled_sizes(kernel_route: Route, op: Member) -> None:
    """One dynamic graph serves every number of rows."""
    compiled = torch.compile(op.ours, fullgraph=True, dynamic=True, backend=Recorder().backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for repeat in (3, 5, 7):
            operands = tuple(torch.cat([x] * repeat, dim=int(op.halved == 0)) for x in _operands(op, kernel_route))
            torch.testing.assert_close(compiled(*operands), op.truth(*operands), check_device=False)


class _Calling(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, *operands: Tensor) -> Tensor:
        return self.op(*operands)


@every_op
def test_export(kernel_route: Route, launches: list[str], op: Member) -> None:
    """The program holds the operators of PyTorch's form, and computes the same; exporting launches nothing."""
    operands = _operands(op, kernel_route)
    programs = [torch.export.export(_Calling(form), operands, strict=False) for form in (op.ours, op.theirs)]
    ours, theirs = ([n.target for n in p.graph.nodes if n.op == "call_function"] for p in programs)
    assert [str(target) for target in ours] == [str(target) for target in theirs]
    torch.testing.assert_close(programs[0].module()(*operands), op.truth(*operands), check_device=False)
    assert launches == []


@every_op
def test_transforms(kernel_route: Route, launches: list[str], op: Member) -> None:
    """grad, vjp, jvp, jacobians both ways, hessian, and vmap over and under them give what PyTorch's form gives."""
    operands, tangents = _operands(op, kernel_route), _operands(op, kernel_route, seed=1)

    def every_transform(form: Op) -> list[object]:
        def loss(x: Tensor) -> Tensor:
            return form(x, *operands[1:]).square().sum()

        def of_first(x: Tensor) -> Tensor:
            return form(x, *operands[1:])

        x, v = operands[0], tangents[0]
        batch, batched_dim = torch.stack([x, v, x - v], dim=1), 1
        out, pullback = vjp(form, *operands)[:2]
        return [
            out,
            pullback(torch.ones_like(out)),
            jvp(form, operands, tangents),
            grad(loss)(x),
            jacfwd(of_first)(x),
            jacrev(of_first)(x),
            hessian(loss)(x),
            vmap(of_first, in_dims=batched_dim)(batch),
            vmap(grad(loss), in_dims=batched_dim)(batch),
            grad(lambda batch: vmap(of_first, in_dims=batched_dim)(batch).square().sum())(batch),
            torch.autograd.functional.jacobian(of_first, x, vectorize=True),
        ]

    for ours, theirs in zip(every_transform(op.ours), every_transform(op.theirs), strict=True):
        torch.testing.assert_close(ours, theirs)
    # The last one records an eager call, and then batches the gradients.
    assert launches == [op.kernels[0]]


@every_op
def test_transforms_after_an_eager_call(kernel_route: Route, launches: list[str], op: Member) -> None:
    """A result that a kernel computed is differentiated with batches of gradients, and with the pullback of a vjp."""
    results: list[list[Tensor]] = []
    for form in (op.ours, op.theirs):
        leaves = [operand.requires_grad_() for operand in _operands(op, kernel_route)]
        out = form(*leaves)
        batch = torch.stack([torch.ones_like(out), 2 * torch.ones_like(out), out.detach()])
        batched = torch.autograd.grad(out, leaves, batch, is_grads_batched=True, retain_graph=True)
        mapped = vmap(lambda g, out=out, leaves=leaves: torch.autograd.grad(out, leaves, g, retain_graph=True))(batch)
        results.append([*batched, *mapped])
    torch.testing.assert_close(*results)
    assert launches == [op.kernels[0]]


@every_op
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_dual_numbers(route: Route, op: Member, mode: type) -> None:
    """Tangents pass through, also where no gradient is recorded: the sum of gradient times tangent is theirs."""
    operands, tangents = _operands(op, route), _operands(op, route, seed=1)
    with mode(), forward_ad.dual_level():
        duals = map(forward_ad.make_dual, operands, tangents)
        out, tangent = forward_ad.unpack_dual(op.ours(*duals))
    slopes = op.true_gradients(torch.ones_like(out), *operands)
    exact = sum((slope * v.cpu() for (slope, _), v in zip(slopes, op.parts(*tangents), strict=True)), start=0)
    torch.testing.assert_close(out, op.truth(*operands), check_device=False)
    torch.testing.assert_close(tangent, exact, check_device=False)


@pytest.mark.parametrize("at", [0, 1])
def test_a_tangent_of_one_operand(kernel_route: Route, launches: list[str], at: int) -> None:
    """Of whichever operand it is: a kernel would lose it."""
    operands = list(_operands(SIGMOID_GATE, kernel_route))
    tangent = torch.ones_like(operands[at])
    with forward_ad.dual_level():
        dual = operands.copy()
        dual[at] = forward_ad.make_dual(operands[at], tangent)
        found = forward_ad.unpack_dual(SIGMOID_GATE.ours(*dual)).tangent
    exact, _ = SIGMOID_GATE.true_gradients(tangent, *operands)[at]
    torch.testing.assert_close(found, exact, check_device=False)
    assert launches == []


@every_op
def test_inside_a_transform_of_something_else(kernel_route: Route, op: Member) -> None:
    """Operands from outside of it, which it does not wrap, keep the gradient that autograd records."""
    leaves = [operand.requires_grad_() for operand in _operands(op, kernel_route)]
    factor = torch.ones_like(op.theirs(*leaves)).detach()
    out = grad(lambda factor: (factor * op.ours(*leaves)).sum())(factor)
    exact = [gradient for gradient, _ in op.true_gradients(torch.ones_like(out), *leaves)]
    gradients = torch.autograd.grad(out.sum(), leaves)
    torch.testing.assert_close(list(op.parts(*gradients)), exact, check_device=False)


@every_op
def test_a_mode_sees_operators(kernel_route: Route, launches: list[str], op: Member) -> None:
    """Whatever watches operators, to count or to record them, sees those of forward and of backward."""

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen += 1
            return func(*args, **(kwargs or {}))

    leaves = [operand.requires_grad_() for operand in _operands(op, kernel_route)]
    with Count() as forward:
        out = op.ours(*leaves)
    assert launches == []
    out = op.ours(*leaves)
    assert launches == [op.kernels[0]]
    with Count() as backward:
        torch.autograd.grad(out, leaves, torch.ones_like(out.detach()))
    assert launches == [op.kernels[0]]
    assert min(forward.seen, backward.seen) > 0


@every_op
@pytest.mark.parametrize("create_graph", [False, True])
def test_forward_over_reverse_of_an_earlier_call(
    route: Route, launches: list[str], op: Member, create_graph: bool
) -> None:
    """A graph made before the dual level began differentiates a dual gradient: a kernel would drop its tangent.

    PyTorch's own gradient of silu takes none without create_graph, and says so.
    """
    leaves = [operand.requires_grad_() for operand in _operands(op, route)]
    out = op.ours(*leaves)
    grad_out, tangent = torch.ones_like(out), torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grad_out, tangent.to(out.device))
        has_silu = op.kernels[0] in ("silu", "swiglu") and op.slope == 1
        if has_silu and not route.uses_kernels and not create_graph:
            with pytest.raises(NotImplementedError, match="silu_backward"):
                torch.autograd.grad(out, leaves, dual)
            return
        gradients = torch.autograd.grad(out, leaves, dual, create_graph=create_graph)
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]
    # A gradient is linear in grad_out.
    exact = [gradient for gradient, _ in op.true_gradients(tangent, *leaves)]
    torch.testing.assert_close(list(op.parts(*tangents)), exact, check_device=False)
    assert launches[:1] == ([op.kernels[0]] if route.uses_kernels else [])
