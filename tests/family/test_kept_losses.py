"""``mask``, ``normalizer`` and classes of the losses: what counts, what the sum is divided by, no one-hot tensor."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigmoid_op import BCEWithLogitsLoss, SigmoidFocalLoss, binary_cross_entropy_with_logits, sigmoid_focal_loss
from tests.conftest import Route
from tests.losses import BCE, FOCAL, C, Loss, N, classes, each_kind, focal, hard_labels, logits, rows
from tests.ulp import FLOAT_DTYPES, assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

# Of float32 sums of some hundred losses, and of gradients that are divided once more, beside those of one.
SUM_ULPS, DIVISION_ULPS = 4.0, 2.0

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda x: (torch.arange(N * C).view(N, C) % 3 != 1).to(x.device),
    "weight": lambda x: (torch.arange(N * C).view(N, C) % 3 != 1).to(x.device, x.dtype),
    "integer": lambda x: (torch.arange(N * C).view(N, C) % 2).to(x.device),
    "rows": rows,
    "columns": lambda x: (torch.arange(C) < 7).to(x.device),
    "all": lambda x: torch.ones((), dtype=torch.bool, device=x.device),
    "transposed": lambda x: (torch.arange(N * C).view(C, N) % 5 > 2).to(x.device).t(),
}
NORMALIZERS: dict[str, Callable[[str], Any]] = {
    "whole": lambda device: 7,
    "number": lambda device: 2.5,
    "count": lambda device: torch.tensor(7, device=device),
    "float32": lambda device: torch.tensor(2.5, device=device),
    "bfloat16": lambda device: torch.tensor(2.5, device=device, dtype=torch.bfloat16),
}


def _one_hot(x: Tensor) -> Tensor:
    """0 throughout for the background."""
    return F.one_hot(classes(x).clamp(min=0), C + 1)[:, :C].to(x.dtype)


@cache
def _truth(loss: Loss, dtype: torch.dtype, labels: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of each logit, in float64."""
    x = logits(dtype, "cpu").detach()
    losses, slopes = loss.truth(x.flatten(), labels(x).flatten())
    return losses.view(N, C), slopes.view(N, C)


def _check(
    route: Route,
    loss: Loss,
    x: Tensor,
    truth: tuple[Tensor, Tensor],
    kept: Tensor,
    divisors: dict[str, float],
    call: Callable[[str], Tensor],
) -> None:
    """Each reduction of what is kept, and its gradient: a kernel's are right to the last digits, PyTorch's closely."""
    losses, slopes = (torch.where(kept.cpu(), z, 0.0) for z in truth)
    for reduction, divisor in divisors.items():
        out = call(reduction)
        (slope,) = torch.autograd.grad(out.sum(), x)
        assert out.dtype == slope.dtype == x.dtype
        exact = losses if reduction == "none" else losses.sum() / divisor
        for found, true, ulps in (
            (out.detach().cpu(), exact, loss.ulps + SUM_ULPS),
            (slope.cpu(), slopes / divisor, loss.gradient_ulps + DIVISION_ULPS),
        ):
            if route.uses_kernels:
                assert_within_ulps(found, true, 0.52 if x.dtype.itemsize == 2 else ulps)
            else:
                close = {2: 0.03, 4: 1e-5, 8: 1e-9}[x.dtype.itemsize]
                torch.testing.assert_close(found.double(), true, rtol=close, atol=close)
        assert not slope[~kept].any()


@each_kind
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_what_is_masked_adds_nothing(
    route: Route, loss: Loss, dtype: torch.dtype, mask: Callable[[Tensor], Tensor]
) -> None:
    """Beside a 0 stands nothing, whatever logit and target are; the rest has its digits, and is what is averaged."""
    x = logits(dtype, route.device)
    kept = (mask(x) != 0).expand(N, C)
    spoilt = torch.where(kept, x.detach(), torch.tensor([torch.nan, torch.inf] * (C // 2)).to(x)).requires_grad_()
    labels, options = torch.where(kept, hard_labels(x), torch.nan), loss.given(x)

    def call(reduction: str) -> Tensor:
        return loss.ours(spoilt, labels, reduction=reduction, mask=mask(x), **options)

    divisors = {"none": 1.0, "sum": 1.0, "mean": float(kept.sum())}
    _check(route, loss, spoilt, _truth(loss, dtype, hard_labels), kept, divisors, call)


@each_kind
@pytest.mark.parametrize("mask", [None, MASKS["rows"]], ids=["", "mask"])
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS.keys())
def test_normalizer(
    route: Route, loss: Loss, mask: Callable[[Tensor], Tensor] | None, normalizer: Callable[[str], Any]
) -> None:
    """The sum of what counts is divided by it, and so are the gradients; result and gradient keep their dtype."""
    x = logits(torch.float32, route.device)
    labels, options, divisor = hard_labels(x), loss.given(x), normalizer(route.device)
    given = None if mask is None else mask(x)
    kept = (torch.tensor(True, device=x.device) if given is None else given).expand(N, C)

    def call(reduction: str) -> Tensor:
        return loss.ours(x, labels, reduction=reduction, mask=given, normalizer=divisor, **options)

    divisors = dict.fromkeys(("mean", "sum"), float(divisor))
    _check(route, loss, x, _truth(loss, x.dtype, hard_labels), kept, divisors, call)


def test_a_sum_too_large_for_float16(route: Route) -> None:
    """It is divided before it is rounded."""
    x = torch.full((4096,), 40.0, dtype=torch.float16, device=route.device)
    for options in ({"normalizer": 4096.0}, {"normalizer": torch.tensor(4096, device=route.device)}, {"mask": x > 0}):
        assert binary_cross_entropy_with_logits(x, torch.zeros_like(x), **options) == 40


OF_CLASSES = [
    focal(0.25, 2, 12.0, 15.0),
    focal(-1, 0, 12.0, 15.0),
    focal(0.6, 0.5, 12.0, 15.0),
    focal(1, 1, 12.0, 15.0),
    focal(0, 2.2),
]


@pytest.mark.parametrize("loss", OF_CLASSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("mask", [None, MASKS["columns"], MASKS["weight"]], ids=["", "columns", "weight"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_classes(route: Route, loss: Loss, mask: Callable[[Tensor], Tensor] | None, dtype: torch.dtype) -> None:
    """The loss is that of one-hot labels; rows of class -1, spoilt here, count as masked, also in a mean."""
    x = logits(dtype, route.device)
    of_rows, given = classes(x), None if mask is None else mask(x)
    known = (of_rows >= 0)[:, None].expand(N, C)
    kept = known if given is None else known & (given != 0)
    spoilt = torch.where(known, x.detach(), torch.nan).requires_grad_()

    def call(reduction: str) -> Tensor:
        return sigmoid_focal_loss(spoilt, of_rows, **loss.options, reduction=reduction, mask=given)

    divisors = {"none": 1.0, "sum": 1.0, "mean": float(kept.sum())}
    _check(route, loss, spoilt, _truth(loss, dtype, _one_hot), kept, divisors, call)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 6), (2, 3, 4), (40, 80)], ids=str)
def test_shapes_of_classes(route: Route, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Any shape of rows, one class included, and integers of any width; also of transposed logits."""
    n_rows, n_classes = torch.Size(shape[:-1]).numel(), shape[-1]
    of_rows = (torch.arange(n_rows) * 7 % (n_classes + 1)).view(shape[:-1]).to(route.device, dtype)
    labels = F.one_hot(of_rows.long(), n_classes + 1)[..., :n_classes].double()
    x = torch.linspace(-4, 4, n_rows * n_classes, device=route.device).view(shape)
    for laid_out in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
        exact = FOCAL.theirs(laid_out.double(), labels, reduction="none")
        torch.testing.assert_close(sigmoid_focal_loss(laid_out, of_rows).double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [-1, 0, 0.25, 1])
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_infinite_logits_of_classes(route: Route, alpha: float, gamma: float) -> None:
    """They have the loss and the gradient of one-hot labels: 0 where they are right, infinity where they are wrong."""
    x = torch.tensor([[torch.inf, -torch.inf], [-torch.inf, torch.inf]], device=route.device, requires_grad=True)
    results = []
    for targets in (torch.tensor([0, 0], device=route.device), torch.tensor([[1.0, 0.0]] * 2, device=route.device)):
        out = sigmoid_focal_loss(x, targets, alpha, gamma)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), x)))
    for ours, of_labels in zip(*results, strict=True):
        torch.testing.assert_close(ours, of_labels)
    assert (results[0][0][0] == 0).all()


def test_a_normalizer_that_is_differentiated(route: Route, launches: list[str]) -> None:
    """It goes to PyTorch's form, which has its gradient."""
    x, normalizer = logits(torch.float64, route.device), torch.tensor(4.0, device=route.device, requires_grad=True)
    for loss in (BCE, FOCAL):
        out = loss.ours(x.detach(), hard_labels(x), reduction="sum", normalizer=normalizer)
        (gradient,) = torch.autograd.grad(out, normalizer)
        torch.testing.assert_close(gradient.double(), -out.detach() / 4)
    assert launches == []


def test_nothing_kept(route: Route) -> None:
    """A sum of nothing is 0, the mean of nothing NaN, as PyTorch has it; no gradient is anything but 0 or NaN."""
    x = logits(torch.float32, route.device)
    mask = torch.zeros(N, 1, dtype=torch.bool, device=x.device)
    for loss in (BCE, FOCAL):
        assert loss.ours(x, hard_labels(x), reduction="sum", mask=mask) == 0
        assert loss.ours(x, hard_labels(x), reduction="mean", mask=mask).isnan()
        (slope,) = torch.autograd.grad(loss.ours(x, hard_labels(x), reduction="sum", mask=mask), x)
        assert not slope.any()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "mask of another shape": ({"mask": torch.ones(3)}, ValueError, r"mask must broadcast .*\(12, 20\).*\(3,\)"),
    "mask with more dimensions": ({"mask": torch.ones(1, N, C)}, ValueError, r"mask must broadcast .*\(1, 12, 20\)"),
    "mask that is no tensor": ({"mask": True}, TypeError, "mask must be a tensor .*got True"),
    "complex mask": ({"mask": torch.ones((), dtype=torch.complex64)}, TypeError, "mask must be a tensor of bool"),
    "normalizer without a sum": ({"normalizer": 2.0, "reduction": "none"}, ValueError, "reduction='none'.*=2.0"),
    "zero": ({"normalizer": 0, "reduction": "sum"}, ValueError, "normalizer must be greater than 0.*got 0"),
    "negative": ({"normalizer": -1.5, "reduction": "sum"}, ValueError, "normalizer must be greater than 0.*got -1.5"),
    "NaN": ({"normalizer": float("nan"), "reduction": "sum"}, ValueError, "normalizer .*got nan"),
    "text": ({"normalizer": "3", "reduction": "sum"}, TypeError, "normalizer must be a number.*got '3'"),
    "bool": ({"normalizer": True, "reduction": "sum"}, TypeError, "normalizer must be a number.*got True"),
    "one dimension": ({"normalizer": torch.ones(1), "reduction": "sum"}, ValueError, r"normalizer .*got shape \(1,\)"),
    "truth": ({"normalizer": torch.tensor(True), "reduction": "sum"}, TypeError, "normalizer .*torch.bool"),
    "reduction": ({"normalizer": 2.0, "reduction": "average"}, ValueError, "average"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD.keys())
def test_errors(
    route: Route, launches: list[str], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What has no meaning is refused before any launch, by the name and the value of the argument."""
    x = logits(torch.float32, route.device).detach()
    on_device = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    for loss in (BCE, FOCAL):
        with pytest.raises(error, match=message):
            loss.ours(x, hard_labels(x), **on_device)
    for deprecated in ({"size_average": True}, {"reduce": False}):
        with pytest.raises(ValueError, match="mask and normalizer go with reduction"):
            BCE.ours(x, hard_labels(x), mask=x > 0, **deprecated)
    with pytest.raises(ValueError, match="Target size"):
        FOCAL.ours(x, torch.zeros(N + 1, dtype=torch.int64, device=x.device))
    assert launches == []


def test_modules_and_scripts(route: Route) -> None:
    """The modules take both in their call, and so do scripted and traced ones; of labels and of classes."""
    x = logits(torch.float32, route.device).detach()
    labels, of_rows = hard_labels(x), classes(x)
    given = {"mask": MASKS["bool"](x), "normalizer": torch.tensor(3, device=x.device)}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = [
        (BCEWithLogitsLoss(), labels, BCE.ours(x, labels, **given)),
        (SigmoidFocalLoss(reduction="sum"), labels, FOCAL.ours(x, labels, reduction="sum", **given)),
        (SigmoidFocalLoss(reduction="sum"), of_rows, FOCAL.ours(x, of_rows, reduction="sum", **given)),
        (SigmoidFocalLoss(), of_rows, FOCAL.ours(x, of_rows)),
    ]
    for module, target, expected in calls:
        for form in (module, torch.jit.script(module), torch.fx.symbolic_trace(module)):
            options = given if expected.dim() == 0 else {}
            torch.testing.assert_close(form(x, target, **options), expected)
