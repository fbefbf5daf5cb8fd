"""Each loss is a drop-in: PyTorch's results, dtypes, strides and errors, whatever its arguments, modes and layouts."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sigmoid_op import BCEWithLogitsLoss, LogSigmoid, SigmoidFocalLoss
from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss
from sigmoid_op.ops.logsigmoid import logsigmoid
from tests.conftest import Route
from tests.losses import BCE, FOCAL, LOSSES, REDUCTIONS, Loss, Op, each_kind, torch_focal
from tests.models import Cut
from tests.ulp import assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPE = (2, 3, 9, 10)


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _labels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hard labels and soft ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)).mul(1.5).sub(0.25).clamp(0, 1).to(dtype)


def _options(loss: Loss, route: Route) -> dict[str, Any]:
    """Of the loss, its weights being on the device."""
    return {k: v.to(route.device) if isinstance(v, Tensor) else v for k, v in loss.options.items()}


def _assert_same_outcome(ours: Op, theirs: Op, *args: Any, **options: Any) -> None:
    """The same dtype and about the same values, or an error of the same type and message."""
    outcomes: list[Any] = []
    for op in (ours, theirs):
        try:
            outcomes.append(op(*args, **options))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            outcomes.append((type(error), str(error)))
    if isinstance(outcomes[1], Tensor):
        coarsest = torch.bfloat16 if torch.bfloat16 in (o.dtype for o in outcomes) else torch.float16
        assert outcomes[0].dtype == outcomes[1].dtype
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=4 * torch.finfo(coarsest).eps, atol=0.02)
    else:
        assert outcomes[0] == outcomes[1]


def _parameters(op: Op) -> list[tuple[str, Any]]:
    return [(parameter.name, parameter.default) for parameter in inspect.signature(op).parameters.values()]


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("target_dtype", [*FLOATS, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
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


@each_kind
def test_an_undefined_gradient_stays_undefined(route: Route, loss: Loss) -> None:
    """What no gradient reaches has none, rather than zeros."""
    x = _random(5, seed=1).to(route.device).requires_grad_()
    Cut.apply(loss.ours(x, torch.ones_like(x), **_options(loss, route))).sum().backward()
    assert x.grad is None


@each_kind
@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_checkpoint_watched_for_half_of_the_time(route: Route, loss: Loss, counted: str) -> None:
    """A mode on in one of the two forward passes, as that which counts operations, leaves the gradient right."""
    x = _random(9, seed=1, dtype=torch.float64).to(route.device).requires_grad_()
    target = _labels(9, dtype=torch.float64).to(route.device)
    with FlopCounterMode(display=False) if counted == "forward" else nullcontext():
        out = checkpoint(loss.ours, x, target, use_reentrant=False, reduction="mean", **_options(loss, route))
    with FlopCounterMode(display=False) if counted == "backward" else nullcontext():
        out.backward()
    _, slopes = loss.truth(x.detach(), target)
    torch.testing.assert_close(x.grad, slopes / 9, check_device=False)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.kernel == "bce"], ids=lambda loss: loss.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fallback_of_bce_is_pytorch(fallback: Route, loss: Loss, reduction: str) -> None:
    """Where no kernel serves, results and gradients are PyTorch's to the last bit."""
    x, target = _random(7, 9, seed=1).requires_grad_(), _labels(7, 9)
    results = [op(x, target, reduction=reduction, **loss.options) for op in (loss.ours, loss.theirs)]
    assert torch.equal(*results)
    assert torch.equal(*(torch.autograd.grad(result.sum(), x)[0] for result in results))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.kernel == "focal"], ids=lambda loss: loss.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_fallback_of_the_focal_loss_is_its_definition(fallback: Route, loss: Loss, reduction: str) -> None:
    """Where no kernel serves, results and gradients are those of the formula, in the operations of torchvision."""
    x, target = _random(63, seed=1, dtype=torch.float64).requires_grad_(), _labels(63, dtype=torch.float64)
    out = loss.ours(x, target, reduction=reduction, **loss.options)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    losses, slopes = loss.truth(x, target)
    exact = {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]
    torch.testing.assert_close(out, exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, slopes / (63 if reduction == "mean" else 1), rtol=1e-9, atol=1e-12)


OURS = [("mask", None), ("normalizer", None)]


def test_focal_loss_is_torchvisions(route: Route) -> None:
    """Signature, values and errors are those of torchvision's own function, where it is installed."""
    theirs = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
    x, target = _random(5, 9, seed=1).to(route.device), _labels(5, 9).to(route.device)
    for options in (
        {},
        {"alpha": -1, "gamma": 0},
        {"gamma": 1.3, "reduction": "sum"},
        {"alpha": 1, "reduction": "mean"},
    ):
        ours = sigmoid_focal_loss(x, target, **options)
        torch.testing.assert_close(ours, theirs(x, target, **options), rtol=1e-5, atol=1e-7)
    for bad in ({"alpha": 2}, {"alpha": -0.5}, {"alpha": float("nan")}, {"reduction": "average"}):
        _assert_same_outcome(sigmoid_focal_loss, theirs, x, target, **bad)
    assert _parameters(sigmoid_focal_loss) == [*_parameters(theirs), *OURS]


def test_signatures() -> None:
    """Parameters have the names, the order and the defaults that PyTorch gives them; ours come after them."""
    theirs = _parameters(F.binary_cross_entropy_with_logits)
    assert _parameters(binary_cross_entropy_with_logits) == [*theirs, *OURS]
    assert _parameters(logsigmoid) == [("input", inspect.Parameter.empty)]  # PyTorch's is built in


BAD_ARGUMENTS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
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
}


@pytest.mark.parametrize("bad", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_errors_of_bce(route: Route, launches: list[str], bad: Callable[[Tensor], dict[str, Any]]) -> None:
    """What PyTorch refuses is refused with its error, before any launch; what it takes, it takes."""
    x = torch.ones(3, 4, device=route.device)
    arguments = {"input": x, "target": torch.ones_like(x)} | bad(x)
    _assert_same_outcome(binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, **arguments)
    assert launches == []


def test_errors_of_focal_loss(route: Route, launches: list[str]) -> None:
    """An alpha out of range, an unknown reduction and a mismatch of shapes raise ValueError before any launch."""
    x = torch.ones(3, 4, device=route.device)
    for arguments in ((x, 1.5), (x, 0.25, 2, "average"), (x[:2],)):
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


GOES_TO_PYTORCH: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "size_average": lambda x: {"size_average": False},
    "reduce": lambda x: {"reduce": False},
    "target that requires grad": lambda x: {"target": torch.ones_like(x).requires_grad_()},
    "weight of float64": lambda x: {"weight": torch.ones_like(x, dtype=torch.float64)},
    "weight of integers": lambda x: {"pos_weight": torch.full((4,), 2, device=x.device)},
    "empty": lambda x: {"input": x[:0], "target": x[:0]},
    "interleaved": lambda x: {"input": x[:, ::2], "target": x[:, ::2]},
}


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")  # PyTorch's, which we pass on
@pytest.mark.parametrize("case", GOES_TO_PYTORCH.values(), ids=GOES_TO_PYTORCH.keys())
def test_goes_to_pytorch(route: Route, launches: list[str], case: Callable[[Tensor], dict[str, Any]]) -> None:
    """What no kernel takes has PyTorch's result, bit for bit, and PyTorch's gradient of the target."""
    x = torch.linspace(-2, 2, 12, device=route.device).view(3, 4)
    arguments = {"input": x, "target": torch.ones_like(x)} | case(x)
    differentiable = [v for v in arguments.values() if isinstance(v, Tensor) and v.requires_grad]
    results = [op(**arguments) for op in (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)]
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    for operand in differentiable:
        gradients = [torch.autograd.grad(result.sum(), operand)[0] for result in results]
        assert torch.equal(*gradients)
    assert launches == []


@each_kind
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_launch_a_pass(kernel_route: Route, launches: list[str], loss: Loss, reduction: str) -> None:
    """Forward and backward are one kernel each, reductions included."""
    x, target = _random(5, 64, seed=1).to(kernel_route.device).requires_grad_(), _labels(5, 64).to(kernel_route.device)
    loss.ours(x, target, reduction=reduction, **_options(loss, kernel_route)).sum().backward()
    assert launches == [loss.kernel, f"{loss.kernel}_backward"]


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
    for reduction in REDUCTIONS:
        leaf = x.detach().requires_grad_()
        exact_leaf = x.detach().double().requires_grad_()
        result = loss(leaf, target, reduction=reduction, **weights)
        exact = theirs(
            exact_leaf, target.double(), reduction=reduction, **{name: w.double() for name, w in weights.items()}
        )
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)
        if reduction == "none":
            assert result.stride() == theirs(x, target, reduction="none", **weights).stride()
        grad_out = torch.full_like(result, 0.5) if reduction == "mean" else torch.ones_like(result).expand_as(result)
        (grad_in,) = torch.autograd.grad(result, leaf, grad_out)
        (exact_grad,) = torch.autograd.grad(exact, exact_leaf, grad_out.double())
        torch.testing.assert_close(grad_in.double(), exact_grad, rtol=1e-5, atol=1e-6)
        assert not grad_in.isnan().any()


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


def _module_calls(device: str) -> list[tuple[nn.Module, nn.Module, tuple[Tensor, ...]]]:
    x, target = _random(4, 6, seed=1).to(device), _labels(4, 6).to(device)
    weights = {"weight": torch.full((6,), 0.5, device=device), "pos_weight": torch.full((6,), 2.0, device=device)}
    return [
        (LogSigmoid(), nn.LogSigmoid(), (x,)),
        (BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(), (x, target)),
        (BCEWithLogitsLoss(**weights, reduction="sum"), nn.BCEWithLogitsLoss(**weights, reduction="sum"), (x, target)),
    ]


def test_modules(route: Route) -> None:
    """The modules give what PyTorch's give, have their state, and serve in place of them: swapped, scripted, traced."""
    for ours, theirs, operands in _module_calls(route.device):
        expected = theirs(*operands)
        torch.testing.assert_close(ours(*operands), expected)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        torch.testing.assert_close(torch.jit.script(ours)(*operands), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(ours)(*operands), expected)
        theirs.__class__ = type(ours)
        torch.testing.assert_close(theirs(*operands), expected)


def test_focal_module(route: Route) -> None:
    """SigmoidFocalLoss passes its options on, shows them, and can be traced and scripted."""
    x, target = _random(4, 6, seed=1).to(route.device), _labels(4, 6).to(route.device)
    module = SigmoidFocalLoss(alpha=0.4, gamma=3, reduction="sum")
    expected = torch_focal(x, target, 0.4, 3, "sum")
    torch.testing.assert_close(module(x, target), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x, target), expected)
    torch.testing.assert_close(torch.jit.script(module)(x, target), expected)
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
