"""Each loss is a drop-in: PyTorch's results, dtypes, strides and errors, whatever its arguments, modes and layouts."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import (
    BCEWithLogitsLoss,
    LogSigmoid,
    SigmoidFocalLoss,
    binary_cross_entropy_with_logits,
    logsigmoid,
    sigmoid_focal_loss,
)
from tests.conftest import Route
from tests.losses import BCE, FOCAL, REDUCTIONS, Loss, Op, every_loss, torch_focal
from tests.members import outcome
from tests.ulp import FLOAT_DTYPES, assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

SHAPE = (2, 3, 9, 10)


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _labels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hard labels and soft ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)).mul(1.5).sub(0.25).clamp(0, 1).to(dtype)


def _assert_same_outcome(ours: Op, theirs: Op, *args: Any, **options: Any) -> None:
    """The same dtype and about the same values, or an error of the same type and message."""
    found, expected = outcome(ours, *args, **options), outcome(theirs, *args, **options)
    if isinstance(expected, Tensor):
        coarsest = torch.bfloat16 if torch.bfloat16 in (found.dtype, expected.dtype) else torch.float16
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(coarsest).eps, atol=0.02)
    else:
        assert found == expected


def _parameters(op: Op) -> list[tuple[str, Any]]:
    return [(parameter.name, parameter.default) for parameter in inspect.signature(op).parameters.values()]


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("target_dtype", [*FLOAT_DTYPES, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_dtypes(route: Route, dtype: torch.dtype, target_dtype: torch.dtype, autocast: bool) -> None:
    """For each pair of dtypes the result has PyTorch's, with and without autocast, or the error is PyTorch's.

    The gradient has the dtype of the input.
    """
    x = torch.linspace(-5, 5, 12, device=route.device, dtype=dtype).requires_grad_()
    target = (torch.arange(12, device=route.device) % 2).to(target_dtype)
    with torch.autocast(route.device, dtype=torch.bfloat16, enabled=autocast):
        _assert_same_outcome(logsigmoid, F.logsigmoid, x)
        _assert_same_outcome(BCE.ours, BCE.theirs, x, target)
        _assert_same_outcome(FOCAL.ours, FOCAL.theirs, x, target)
        loss = binary_cross_entropy_with_logits(x, target) if target.is_floating_point() else None
    if loss is not None:
        (grad_in,) = torch.autograd.grad(loss, x)
        exact = (torch.sigmoid(x.double()) - target.double()) / x.numel()
        assert grad_in.dtype == dtype
        torch.testing.assert_close(grad_in.double(), exact, rtol=0.03, atol=0.02 / x.numel())


def test_the_gradient_of_a_mean_is_rounded_once(kernel_route: Route) -> None:
    """A third is not rounded before it is multiplied: not in bfloat16, nor in float32, where it would show less."""
    x = _random(3, seed=1, dtype=torch.bfloat16).to(kernel_route.device).requires_grad_()
    BCE.ours(x, torch.ones_like(x, requires_grad=False)).backward()
    assert x.grad is not None
    assert_within_ulps(x.grad.cpu(), -torch.sigmoid(-x.detach().cpu().double()) / 3, 0.52)
    wrong = torch.full((3,), 100.0, device=kernel_route.device, requires_grad=True)  # of slope 1
    loss = BCE.ours(wrong, torch.zeros_like(wrong))
    for grad_out in torch.arange(1.0, 64.0, device=kernel_route.device):
        (grad_in,) = torch.autograd.grad(loss, wrong, grad_out, retain_graph=True)
        assert torch.equal(grad_in, (grad_out / 3).expand(3))


@every_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fallback(fallback: Route, loss: Loss, reduction: str) -> None:
    """Where no kernel serves, BCE and its gradient are PyTorch's to the last bit, the focal loss is its definition."""
    x = _random(63, seed=1, dtype=torch.float64).requires_grad_()
    target, options = _labels(63, dtype=torch.float64), loss.given(x)
    out = loss.ours(x, target, reduction=reduction, **options)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    if loss.kernel == "bce":
        theirs = loss.theirs(x, target, reduction=reduction, **options)
        assert torch.equal(out, theirs)
        assert torch.equal(gradient, torch.autograd.grad(theirs.sum(), x)[0])
    else:
        losses, slopes = loss.truth(x, target)
        exact = {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]
        torch.testing.assert_close(out, exact, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, slopes / (63 if reduction == "mean" else 1), rtol=1e-9, atol=1e-12)


OURS = [("mask", None), ("normalizer", None)]


def test_focal_loss_is_torchvisions(route: Route) -> None:
    """Signature, values and errors are those of torchvision's own function, where it is installed."""
    theirs = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
    x, target = _random(5, 9, seed=1).to(route.device), _labels(5, 9).to(route.device)
    for reduction in REDUCTIONS:
        for options in ({}, {"alpha": -1, "gamma": 0}, {"alpha": 1, "gamma": 1.3}):
            ours = sigmoid_focal_loss(x, target, reduction=reduction, **options)
            torch.testing.assert_close(ours, theirs(x, target, reduction=reduction, **options), rtol=1e-5, atol=1e-7)
    for bad in ({"alpha": 2}, {"alpha": -0.5}, {"alpha": float("nan")}, {"reduction": "average"}):
        _assert_same_outcome(sigmoid_focal_loss, theirs, x, target, **bad)
    assert _parameters(sigmoid_focal_loss) == [*_parameters(theirs), *OURS]


def test_signatures() -> None:
    """Parameters have the names, the order and the defaults that PyTorch gives them; ours come after them."""
    theirs = _parameters(F.binary_cross_entropy_with_logits)
    assert _parameters(binary_cross_entropy_with_logits) == [*theirs, *OURS]
    assert _parameters(logsigmoid) == [("input", inspect.Parameter.empty)]  # PyTorch's is built in


# Other arguments than a logit of (3, 4) and its target, some of which PyTorch refuses.
TO_PYTORCH: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "shape": lambda x: {"target": x[:2]},
    "broadcast shape": lambda x: {"target": x[:1]},
    "reduction": lambda x: {"reduction": "average"},
    "no reduction": lambda x: {"reduction": None},
    "weight of another shape": lambda x: {"weight": torch.ones(7, device=x.device)},
    "weight with more dimensions": lambda x: {"pos_weight": torch.ones(2, 1, 1, device=x.device)},
    "weight that is no tensor": lambda x: {"weight": 2.0},
    "target that is no tensor": lambda x: {"target": 1.0},
    "weight that requires grad": lambda x: {"weight": torch.ones_like(x).requires_grad_()},
    "pos_weight that requires grad": lambda x: {"pos_weight": torch.ones_like(x).requires_grad_()},
    "target that requires grad": lambda x: {"target": torch.ones_like(x).requires_grad_()},
    "size_average": lambda x: {"size_average": False},
    "reduce": lambda x: {"reduce": False},
    "weight of float64": lambda x: {"weight": torch.ones_like(x, dtype=torch.float64)},
    "weight of integers": lambda x: {"pos_weight": torch.full((4,), 2, device=x.device)},
    "empty": lambda x: {"input": x[:0], "target": x[:0]},
    "interleaved": lambda x: {"input": x[:, ::2], "target": x[:, ::2]},
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")  # PyTorch's, which we pass on
@pytest.mark.parametrize("case", TO_PYTORCH.values(), ids=TO_PYTORCH.keys())
def test_goes_to_pytorch(route: Route, launches: list[str], case: Callable[[Tensor], dict[str, Any]]) -> None:
    """What no kernel takes has PyTorch's result, bit for bit, its gradient of the target and weights, or its error."""
    x = torch.linspace(-2, 2, 12, device=route.device).view(3, 4)
    arguments = {"input": x, "target": torch.ones_like(x)} | case(x)
    forms = binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    found, expected = (outcome(form, **arguments) for form in forms)
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        leaves = [v for v in arguments.values() if isinstance(v, Tensor) and v.requires_grad]
        for leaf in leaves:
            assert torch.equal(*(torch.autograd.grad(result.sum(), leaf)[0] for result in (found, expected)))
    else:
        assert found == expected
    assert launches == []


def test_errors_of_focal_loss(route: Route, launches: list[str]) -> None:
    """An alpha out of range, an unknown reduction and a mismatch of shapes raise ValueError before any launch."""
    x = torch.ones(3, 4, device=route.device)
    for arguments in ((x, 1.5), (x, -0.5), (x, float("nan")), (x, 0.25, 2, "average"), (x[:2],)):
        with pytest.raises(ValueError, match=r"Invalid alpha|Invalid Value for arg 'reduction'|Target size"):
            sigmoid_focal_loss(x, *arguments)
    assert launches == []


def test_a_gradient_of_alpha(route: Route, launches: list[str]) -> None:
    """An alpha that is a tensor goes to PyTorch, which differentiates with respect to it."""
    x, alpha = torch.ones(3, 4, device=route.device), torch.tensor(0.25, device=route.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_focal_loss(x, x, alpha, reduction="sum"), alpha)  # type: ignore[arg-type]
    p = torch.sigmoid(x)
    torch.testing.assert_close(gradient, (-(1 - p).square() * p.log()).sum())
    assert launches == []


def _weights(x: Tensor, *shape: int) -> Tensor:
    return torch.linspace(0.5, 3, torch.Size(shape).numel(), device=x.device).view(shape)


LAYOUTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda x, y: (x, y),
    "transposed": lambda x, y: (x[0, 0].t(), y[0, 0].t()),
    "channels_last": lambda x, y: (x.to(memory_format=torch.channels_last), y.to(memory_format=torch.channels_last)),
    "channels_last and contiguous": lambda x, y: (x.to(memory_format=torch.channels_last), y),
    "sliced": lambda x, y: (x[..., 1:8], y[..., 1:8]),
    "every second": lambda x, y: (x[..., ::2], y[..., ::2]),
    "expanded target": lambda x, y: (x, y[:, :, :1].expand_as(x)),
    "misaligned": lambda x, y: (x.flatten()[1:], y.flatten()[1:]),
    "no dimension": lambda x, y: (x[0, 0, 0, 0], y[0, 0, 0, 0]),
}
WEIGHTS = [(), (1,), (10,), (9, 1), (3, 1, 1), (2, 1, 1, 1), SHAPE]


def _check_against_float64(loss: Op, theirs: Op, x: Tensor, target: Tensor, **weights: Tensor) -> None:
    """Results and gradients of every reduction, and the strides of the unreduced ones."""
    leaf, exact_leaf = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    exact_weights = {name: weight.double() for name, weight in weights.items()}
    for reduction in REDUCTIONS:
        result = loss(leaf, target, reduction=reduction, **weights)
        exact = theirs(exact_leaf, target.double(), reduction=reduction, **exact_weights)
        grad_out = torch.full_like(result, 0.5) if reduction == "mean" else torch.ones_like(result).expand_as(result)
        (grad_in,) = torch.autograd.grad(result, leaf, grad_out)
        (exact_grad,) = torch.autograd.grad(exact, exact_leaf, grad_out.double())
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad_in.double(), exact_grad, rtol=1e-5, atol=1e-6)
        if reduction == "none":
            assert result.stride() == theirs(x, target, reduction="none", **weights).stride()


@pytest.mark.parametrize("loss", [BCE, FOCAL], ids=lambda loss: loss.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(route: Route, loss: Loss, layout: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Every memory layout has the right result and gradient, PyTorch's strides, and every element written."""
    x, target = layout(_random(*SHAPE, seed=1).to(route.device), _labels(*SHAPE).to(route.device))
    _check_against_float64(loss.ours, loss.theirs, x, target)


def test_a_gradient_in_another_layout_keeps_its_digits(kernel_route: Route) -> None:
    """A float32 one of a bfloat16 logit, copied into its layout, is not rounded before the product."""
    x = _random(64, 50, seed=1, dtype=torch.bfloat16).to(kernel_route.device).requires_grad_()
    target, grad_out = torch.ones(64, 50, device=x.device), _random(50, 64, seed=2).to(x.device).t()
    (grad_in,) = torch.autograd.grad(BCE.ours(x, target, reduction="none"), x, grad_out)
    exact = -grad_out.double() * torch.sigmoid(-x.detach().double())
    assert_within_ulps(grad_in, exact, 0.52)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
def test_weights_broadcast(route: Route, shape: tuple[int, ...], layout: str) -> None:
    """``weight`` and ``pos_weight`` of every shape that broadcasts to the input do what they do in PyTorch."""
    x, target = LAYOUTS[layout](_random(*SHAPE, seed=1).to(route.device), _labels(*SHAPE).to(route.device))
    ours, theirs = binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    _check_against_float64(ours, theirs, x, target, weight=_weights(x, *shape), pos_weight=_weights(x, 3, 1, 1))


def test_modules(route: Route) -> None:
    """The modules give what PyTorch's give, have their state, and serve in place of them: swapped, scripted, traced."""
    x, target = _random(4, 6, seed=1).to(route.device), _labels(4, 6).to(route.device)
    weights = {name: torch.linspace(0.5, 2, 6, device=route.device) for name in ("weight", "pos_weight")}
    calls: list[tuple[nn.Module, nn.Module, tuple[Tensor, ...]]] = [
        (LogSigmoid(), nn.LogSigmoid(), (x,)),
        (BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(), (x, target)),
        (BCEWithLogitsLoss(**weights, reduction="sum"), nn.BCEWithLogitsLoss(**weights, reduction="sum"), (x, target)),
    ]
    for ours, theirs, operands in calls:
        expected = theirs(*operands)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.__class__ = type(ours)
        for form in (ours, theirs, torch.jit.script(ours), torch.fx.symbolic_trace(ours)):
            torch.testing.assert_close(form(*operands), expected)


def test_focal_module(route: Route) -> None:
    """SigmoidFocalLoss passes its options on, shows them, and can be traced and scripted."""
    x, target = _random(4, 6, seed=1).to(route.device), _labels(4, 6).to(route.device)
    module = SigmoidFocalLoss(alpha=0.4, gamma=3, reduction="sum")
    for form in (module, torch.jit.script(module), torch.fx.symbolic_trace(module)):
        torch.testing.assert_close(form(x, target), torch_focal(x, target, 0.4, 3, "sum"))
    assert repr(module) == "SigmoidFocalLoss(alpha=0.4, gamma=3, reduction='sum')"
    assert repr(SigmoidFocalLoss()) == "SigmoidFocalLoss(alpha=0.25, gamma=2, reduction='none')"


@pytest.mark.parametrize("gamma", [nn.Parameter(torch.tensor(1.7)), torch.tensor(1.7, requires_grad=True)])
def test_focal_gamma_to_be_learned(route: Route, gamma: Tensor) -> None:
    """A gamma that is a tensor gets the gradient that float64 gives it; TorchScript refuses it."""
    x, target = _random(4, 6, seed=1).to(route.device), _labels(4, 6).to(route.device)
    module = SigmoidFocalLoss(gamma=gamma.to(route.device), reduction="sum")
    assert [name for name, _ in module.named_parameters()] == ["gamma"] * isinstance(module.gamma, nn.Parameter)
    (grad,) = torch.autograd.grad(module(x, target), module.gamma)
    wide = gamma.detach().to(route.device, torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(torch_focal(x.double(), target.double(), 0.25, wide, "sum"), wide)  # type: ignore[arg-type]
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=0)
    assert repr(module) == "SigmoidFocalLoss(alpha=0.25, reduction='sum')"
    scripted = torch.jit.script(module)
    with pytest.raises(RuntimeError, match="Cannot input a tensor that requires grad as a scalar argument"):
        scripted(x, target)
