"""The transforms of torch.func, and forward mode, see every op as PyTorch's own operators, kernels or not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from sigmoid_op import sigmoid_
from tests.conftest import Route
from tests.members import MEMBERS, Member, Op
from tests.pytorch.ops import EXACT, FORMS, FUNCTION, SIGMOID, Watch, each, every_op

# PyTorch's own: it maps the derivative of F.glu over a batch one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop.*aten..glu_(backward_)?jvp:UserWarning")

Unary = Callable[[Tensor], Tensor]


def _operands(op: Member, route: Route, seed: int = 0) -> tuple[Tensor, ...]:
    return op.operands("matrix", torch.float64, route.device, seed)


def _slope(form: Unary) -> Unary:
    return grad(lambda x: form(x).sum())


def _batch(x: Tensor, v: Tensor) -> Tensor:
    return torch.stack([x, v, x - v, x + v], dim=1)


def _differentiated_jacobian(f: Unary, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(jacobian(lambda x: f(x).square(), x, vectorize=True, create_graph=True).sum(), x)


# What is made of a function of one operand at x, along v.
TRANSFORMS: dict[str, Callable[[Unary, Tensor, Tensor], object]] = {
    "grad": lambda f, x, v: _slope(f)(x),
    "vjp": lambda f, x, v: vjp(f, x)[1](torch.ones_like(vjp(f, x)[0])),
    "jvp": lambda f, x, v: jvp(f, (x,), (v,)),
    "linearize": lambda f, x, v: linearize(f, x)[1](v),
    "jacfwd": lambda f, x, v: jacfwd(f)(x),
    "jacrev": lambda f, x, v: jacrev(f)(x),
    "hessian": lambda f, x, v: hessian(lambda x: f(x).square().sum())(x),
    "forward over reverse": lambda f, x, v: jvp(_slope(f), (x,), (v,)),
    "reverse over forward": lambda f, x, v: _slope(lambda x: jvp(f, (x,), (v,))[1])(x),
    "reverse, three times": lambda f, x, v: _slope(_slope(_slope(f)))(x),
    "vmap": lambda f, x, v: vmap(f, in_dims=1, out_dims=-1)(_batch(x, v)),
    "vmap in chunks": lambda f, x, v: vmap(f, in_dims=1, chunk_size=3)(_batch(x, v)),
    "vmap of vmap": lambda f, x, v: vmap(vmap(f, in_dims=1), in_dims=1)(_batch(x, v).unflatten(1, (2, 2))),
    "vmap beside it": lambda f, x, v: vmap(lambda x, y: f(x) * y.sum(), in_dims=(None, 1))(x, _batch(x, v)),
    "vmap of grad": lambda f, x, v: vmap(_slope(f), in_dims=1)(_batch(x, v)),
    "grad of vmap": lambda f, x, v: _slope(lambda x: vmap(f, in_dims=1)(x).square())(_batch(x, v)),
    "jacobian": lambda f, x, v: jacobian(f, x, vectorize=True),
    "jacobian, differentiated": lambda f, x, v: _differentiated_jacobian(f, x),
    "jacobian, forward": lambda f, x, v: jacobian(f, x, vectorize=True, strategy="forward-mode"),
}


# PyTorch's own constant folding in linearize warns about a node of its own.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
@each(SIGMOID, FUNCTION, EXACT, *MEMBERS)
def test_transforms(kernel_route: Route, launches: list[str], op: Member, name: str) -> None:
    """Those of torch.func, and the older jacobian, give what they give of PyTorch's form, and run no kernel.

    But for an eager call: one that linearize makes first, and one of which the jacobian then batches the gradients.
    """
    if name == "reverse over forward" and op.name.startswith("glu"):
        pytest.skip("PyTorch has no such derivative of F.glu")
    (x, *rest), (v, *_) = _operands(op, kernel_route), _operands(op, kernel_route, seed=1)

    def of_first(form: Op) -> Unary:
        return lambda x: form(x, *rest)

    ours, theirs = (TRANSFORMS[name](of_first(form), x, v) for form in (op.ours, op.theirs))
    torch.testing.assert_close(ours, theirs)
    if op not in (FUNCTION, EXACT) and name != "jacobian, differentiated":  # which go on to run kernels
        assert launches == [op.kernels[0]] * (name in ("linearize", "jacobian"))


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


@each(*FORMS, EXACT, *MEMBERS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_dual_numbers(route: Route, op: Member, mode: type) -> None:
    """Tangents of all operands, or of one, pass through, also where no gradient is recorded.

    That of the result is the sum of gradient times tangent; a kernel would lose it.
    """
    operands, tangents = _operands(op, route), _operands(op, route, seed=1)
    for dual in {tuple(range(op.arity)), *((i,) for i in range(op.arity))}:
        given = [v if i in dual else torch.zeros_like(v) for i, v in enumerate(tangents)]
        with mode(), forward_ad.dual_level():
            pairs = enumerate(zip(operands, tangents, strict=True))
            out = op.ours(*(forward_ad.make_dual(x, v) if i in dual else x for i, (x, v) in pairs))
            result, tangent = forward_ad.unpack_dual(out)
        slopes = op.true_gradients(torch.ones_like(result), *operands)
        exact = sum((slope * v.cpu() for (slope, _), v in zip(slopes, op.parts(*given), strict=True)), start=0)
        torch.testing.assert_close(result, op.truth(*operands), check_device=False)
        torch.testing.assert_close(tangent, exact, check_device=False)


def test_functionalize(route: Route) -> None:
    """``sigmoid_`` on a view is rewritten out of place by functionalize, and the base sees the result."""
    (x,) = _operands(SIGMOID, route)

    def second_row(x: Tensor) -> Tensor:
        x = x.clone()
        sigmoid_(x[1])
        return x

    exact = torch.cat([x[:1].cpu(), SIGMOID.truth(x[1:2]), x[2:].cpu()])
    torch.testing.assert_close(functionalize(second_row)(x), exact, check_device=False)


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

    leaves = [operand.requires_grad_() for operand in _operands(op, kernel_route)]
    with Watch() as forward:
        out = op.ours(*leaves)
    assert launches == []
    out = op.ours(*leaves)
    assert launches == [op.kernels[0]]
    with Watch() as backward:
        torch.autograd.grad(out, leaves, torch.ones_like(out.detach()))
    assert launches == [op.kernels[0]]
    assert forward.seen
    assert backward.seen


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
