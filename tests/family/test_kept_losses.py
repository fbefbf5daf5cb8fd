"""``mask``, ``normalizer`` and classes of the losses: what counts, what the sum is divided by, no one-hot tensor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from sigmoid_op import BCEWithLogitsLoss, SigmoidFocalLoss
from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss
from tests.conftest import Route, saved_tensors
from tests.losses import BCE, FOCAL, WEIGHTED_BCE, Loss, each_kind, focal
from tests.ulp import FLOAT_DTYPES, assert_within_ulps

pytestmark = pytest.mark.usefixtures("poisoned_empty")

N, C = 12, 20  # logits, as rows of classes
# Of float32 sums of some hundred losses, and of gradients that are divided once more, beside those of one.
SUM_ULPS, DIVISION_ULPS = 4.0, 2.0

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda x: (torch.arange(N * C).view(N, C) % 3 != 1).to(x.device),
    "weight": lambda x: (torch.arange(N * C).view(N, C) % 3 != 1).to(x.device, x.dtype),
    "integer": lambda x: (torch.arange(N * C).view(N, C) % 2).to(x.device),
    "rows": lambda x: (torch.arange(N).view(N, 1) % 4 < 2).to(x.device),
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


def _logits(dtype: torch.dtype, device: str) -> Tensor:
    x = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype).requires_grad_()


def _target(x: Tensor) -> Tensor:
    """Hard labels, whose gradients keep all their digits."""
    return (torch.arange(N * C).view(N, C) % 5 == 0).to(x.device, x.dtype)


def _truth(loss: Loss, x: Tensor, target: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64 of what is kept, and 0 elsewhere."""
    found = loss.truth(x.detach().cpu().flatten(), target.cpu().flatten())
    return tuple(torch.where(kept.cpu(), z.view(N, C), 0.0) for z in found)  # type: ignore[return-value]


def _options(loss: Loss, x: Tensor) -> dict[str, Any]:
    return {k: v.to(x.device, x.dtype) if isinstance(v, Tensor) else v for k, v in loss.options.items()}


@each_kind
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_what_is_masked_adds_nothing(
    kernel_route: Route, loss: Loss, dtype: torch.dtype, mask: Callable[[Tensor], Tensor]
) -> None:
    """Beside a 0 stands nothing, whatever logit and target are; the rest has its digits, and is what is averaged."""
    x = _logits(dtype, kernel_route.device)
    target, given = _target(x), mask(x)
    kept = (given != 0).expand(N, C)
    spoilt = torch.where(kept, x.detach(), torch.tensor([torch.nan, torch.inf] * (C // 2)).to(x)).requires_grad_()
    labels = torch.where(kept, target, torch.nan)
    losses, slopes = _truth(loss, x, target, kept)
    small = dtype.itemsize == 2
    count = int(kept.sum())
    for reduction, exact, divisor in (
        ("none", losses, 1),
        ("sum", losses.sum(), 1),
        ("mean", losses.sum() / count, count),
    ):
        out = loss.ours(spoilt, labels, reduction=reduction, mask=given, **_options(loss, x))
        (slope,) = torch.autograd.grad(out.sum(), spoilt)
        assert out.dtype == dtype
        assert_within_ulps(out.detach().cpu(), exact, 0.52 if small else loss.ulps + SUM_ULPS)
        assert_within_ulps(slope.cpu(), slopes / divisor, 0.52 if small else loss.gradient_ulps + DIVISION_ULPS)
        assert not slope[~kept].any()


@each_kind
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_pytorch_form_of_a_mask(fallback: Route, loss: Loss, mask: Callable[[Tensor], Tensor]) -> None:
    """So it is where no kernel serves."""
    x = _logits(torch.float64, fallback.device)
    target, given = _target(x), mask(x)
    kept = (given != 0).expand(N, C)
    spoilt = torch.where(kept, x.detach(), torch.nan).requires_grad_()
    losses, slopes = _truth(loss, x, target, kept)
    count = int(kept.sum())
    for reduction, exact, divisor in (
        ("none", losses, 1),
        ("sum", losses.sum(), 1),
        ("mean", losses.sum() / count, count),
    ):
        labels = torch.where(kept, target, torch.nan)
        out = loss.ours(spoilt, labels, reduction=reduction, mask=given, **_options(loss, x))
        (slope,) = torch.autograd.grad(out.sum(), spoilt)
        torch.testing.assert_close(out.detach(), exact, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(slope, slopes / divisor, rtol=1e-9, atol=1e-15)


@each_kind
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", [None, MASKS["rows"]], ids=["", "mask"])
@pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS.keys())
def test_normalizer(
    route: Route, loss: Loss, reduction: str, mask: Callable[[Tensor], Tensor] | None, normalizer: Callable[[str], Any]
) -> None:
    """The sum of what counts is divided by it, and so are the gradients; result and gradient keep their dtype."""
    x = _logits(torch.float32, route.device)
    target, divisor = _target(x), normalizer(route.device)
    given = None if mask is None else mask(x)
    kept = torch.ones(N, C, dtype=torch.bool) if given is None else given.expand(N, C)
    losses, slopes = _truth(loss, x, target, kept)
    out = loss.ours(x, target, reduction=reduction, mask=given, normalizer=divisor, **_options(loss, x))
    (slope,) = torch.autograd.grad(out, x)
    assert out.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(out.detach().cpu().double(), losses.sum() / float(divisor), rtol=1e-6, atol=0)
    if route.uses_kernels:
        assert_within_ulps(slope.cpu(), slopes / float(divisor), loss.gradient_ulps + DIVISION_ULPS)
    else:
        torch.testing.assert_close(slope.double(), slopes / float(divisor), rtol=1e-5, atol=1e-7)


def test_a_sum_too_large_for_float16(route: Route) -> None:
    """It is divided before it is rounded."""
    x = torch.full((4096,), 40.0, dtype=torch.float16, device=route.device)
    for options in ({"normalizer": 4096.0}, {"normalizer": torch.tensor(4096, device=route.device)}, {"mask": x > 0}):
        assert binary_cross_entropy_with_logits(x, torch.zeros_like(x), **options) == 40


CLASSES = [0, C, -1, 3, C - 1, 5, 5, -1, C, 7, 11, 0]
OPTIONS = [(0.25, 2), (-1, 0), (0.6, 0.5), (1, 1), (0, 2.2)]


def _labels(classes: Tensor, x: Tensor) -> Tensor:
    """One-hot; 0 throughout for the background."""
    return F.one_hot(classes.clamp(min=0).long(), C + 1)[:, :C].to(x.dtype)


@pytest.mark.parametrize(("alpha", "gamma"), OPTIONS)
@pytest.mark.parametrize("mask", [None, MASKS["columns"], MASKS["weight"]], ids=["", "columns", "weight"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_classes(
    route: Route, alpha: float, gamma: float, mask: Callable[[Tensor], Tensor] | None, dtype: torch.dtype
) -> None:
    """The loss is that of one-hot labels; rows of class -1, spoilt here, count as masked, also in a mean."""
    loss = focal(alpha, gamma, *((12.0, 15.0) if gamma != 2.2 else ()))
    x = _logits(dtype, route.device)
    classes = torch.tensor(CLASSES, device=route.device)
    given = None if mask is None else mask(x)
    kept = (classes >= 0)[:, None] & (given != 0 if given is not None else torch.ones_like(x, dtype=torch.bool))
    losses, slopes = _truth(loss, x, _labels(classes, x), kept)
    spoilt = torch.where((classes < 0)[:, None], torch.nan, x.detach()).requires_grad_()
    small, count = dtype.itemsize == 2, int(kept.sum())
    for reduction, exact, divisor in (
        ("none", losses, 1),
        ("sum", losses.sum(), 1),
        ("mean", losses.sum() / count, count),
    ):
        out = sigmoid_focal_loss(spoilt, classes, alpha, gamma, reduction, mask=given)
        (slope,) = torch.autograd.grad(out.sum(), spoilt)
        assert out.dtype == slope.dtype == dtype
        if route.uses_kernels:
            assert_within_ulps(out.detach().cpu(), exact, 0.52 if small else loss.ulps + SUM_ULPS)
            assert_within_ulps(slope.cpu(), slopes / divisor, 0.52 if small else loss.gradient_ulps + DIVISION_ULPS)
        else:
            close = 0.02 if small else 1e-5
            torch.testing.assert_close(out.detach().double(), exact, rtol=close, atol=close * 0.1)
            torch.testing.assert_close(slope.double(), slopes / divisor, rtol=close, atol=close * 0.1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 6), (2, 3, 4), (40, 80)], ids=str)
def test_shapes_of_classes(route: Route, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Any shape of rows, one class included, and integers of any width; also of transposed logits."""
    n_classes, rows = shape[-1], torch.Size(shape[:-1]).numel()
    classes = (torch.arange(rows) * 7 % (n_classes + 1)).view(shape[:-1]).to(route.device, dtype)
    labels = F.one_hot(classes.long(), n_classes + 1)[..., :n_classes].double()
    x = torch.linspace(-4, 4, rows * n_classes, device=route.device).view(shape)
    for logits in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
        exact = FOCAL.theirs(logits.double(), labels, reduction="none")
        torch.testing.assert_close(sigmoid_focal_loss(logits, classes).double(), exact, rtol=1e-5, atol=1e-7)


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


FORMS: dict[str, Callable[..., Tensor]] = {
    "bce mask": lambda x, **o: binary_cross_entropy_with_logits(x, _target(x), mask=MASKS["bool"](x), **o),
    "bce normalizer": lambda x, **o: BCE.ours(x, _target(x), normalizer=torch.tensor(7, device=x.device), **o),
    "bce weighted": lambda x, **o: WEIGHTED_BCE.ours(x, _target(x), mask=MASKS["rows"](x), **_options(WEIGHTED_BCE, x)),
    "focal mask": lambda x, **o: sigmoid_focal_loss(x, _target(x), reduction="mean", mask=MASKS["rows"](x), **o),
    "focal number": lambda x, **o: sigmoid_focal_loss(x, _target(x), reduction="sum", normalizer=3.0, **o),
    "classes": lambda x, **o: sigmoid_focal_loss(x, torch.tensor(CLASSES, device=x.device), reduction="mean", **o),
    "classes none": lambda x, **o: sigmoid_focal_loss(x, torch.tensor(CLASSES, device=x.device), gamma=0.5, **o),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@every_form
def test_derivatives(route: Route, form: Callable[..., Tensor]) -> None:
    """Gradients, and gradients of gradients, are those of finite differences; batched and forward-mode ones, too."""
    x = _logits(torch.float64, route.device)
    assert gradcheck(form, x, fast_mode=True, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(form, x, fast_mode=True)


@every_form
@pytest.mark.usefixtures("fresh_compiler")
def test_transforms(route: Route, launches: list[str], form: Callable[..., Tensor]) -> None:
    """Transforms and compilers see PyTorch's operators: nothing is launched, and the results are the same."""
    x = _logits(torch.float64, route.device)
    out = form(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    del launches[:]
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(lambda x: form(x).sum())(x), slope)
    torch.testing.assert_close(torch.vmap(form)(torch.stack([x, x]))[1], out.detach())
    torch.testing.assert_close(torch.compile(form, backend="aot_eager", fullgraph=True)(x), out.detach())
    assert launches == []


@pytest.mark.parametrize("form", ["bce mask", "bce normalizer", "focal mask", "focal number", "classes"])
def test_launches(kernel_route: Route, launches: list[str], form: str) -> None:
    """Two forward, one of them for the sums of the tiles, and one backward."""
    x = _logits(torch.float32, kernel_route.device)
    FORMS[form](x).sum().backward()
    assert len([name for name in launches if name != "sums_kernel"]) == 2
    assert launches.count("sums_kernel") <= 1
    assert launches[-1].endswith("_backward")


@every_form
def test_saved_tensors(kernel_route: Route, form: Callable[..., Tensor]) -> None:
    """Backward keeps what was given, and of it nothing as large as the logits but those, labels and a mask."""
    x = _logits(torch.float32, kernel_route.device)
    with saved_tensors() as saved:
        form(x)
    floats = [tensor for tensor in saved if tensor.is_floating_point() and tensor.numel() == x.numel()]
    assert len(floats) <= 2
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in floats)


def test_a_normalizer_that_is_differentiated(route: Route, launches: list[str]) -> None:
    """It goes to PyTorch's form, which has its gradient."""
    x, normalizer = _logits(torch.float64, route.device), torch.tensor(4.0, device=route.device, requires_grad=True)
    for loss in (BCE, FOCAL):
        out = loss.ours(x.detach(), _target(x), reduction="sum", normalizer=normalizer)
        (gradient,) = torch.autograd.grad(out, normalizer)
        torch.testing.assert_close(gradient.double(), -out.detach() / 4)
    assert launches == []


def test_nothing_kept(route: Route) -> None:
    """A sum of nothing is 0, the mean of nothing NaN, as PyTorch has it; no gradient is anything but 0 or NaN."""
    x = _logits(torch.float32, route.device)
    mask = torch.zeros(N, 1, dtype=torch.bool, device=x.device)
    for loss in (BCE, FOCAL):
        assert loss.ours(x, _target(x), reduction="sum", mask=mask) == 0
        assert loss.ours(x, _target(x), reduction="mean", mask=mask).isnan()
        (slope,) = torch.autograd.grad(loss.ours(x, _target(x), reduction="sum", mask=mask), x)
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
    x = _logits(torch.float32, route.device).detach()
    on_device = {k: v.to(x.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    for loss in (BCE, FOCAL):
        with pytest.raises(error, match=message):
            loss.ours(x, _target(x), **on_device)
    for deprecated in ({"size_average": True}, {"reduce": False}):
        with pytest.raises(ValueError, match="mask and normalizer go with reduction"):
            BCE.ours(x, _target(x), mask=x > 0, **deprecated)
    with pytest.raises(ValueError, match="Target size"):
        FOCAL.ours(x, torch.zeros(N + 1, dtype=torch.int64, device=x.device))
    assert launches == []


GIVEN: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "nothing": lambda x: {},
    "mask": lambda x: {"mask": MASKS["rows"](x)},
    "normalizer": lambda x: {"normalizer": 3.0},
    "both": lambda x: {"mask": MASKS["bool"](x), "normalizer": torch.tensor(3, device=x.device)},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())
def test_modules_and_scripts(route: Route, given: Callable[[Tensor], dict[str, Any]]) -> None:
    """The modules take both in their call, and so do scripted and traced ones; of labels and of classes."""
    x = _logits(torch.float32, route.device).detach()
    target, classes = _target(x), torch.tensor(CLASSES, device=x.device)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = [
        (BCEWithLogitsLoss(), target, binary_cross_entropy_with_logits(x, target, **given(x))),
        (SigmoidFocalLoss(reduction="sum"), target, FOCAL.ours(x, target, reduction="sum", **given(x))),
        (SigmoidFocalLoss(reduction="sum"), classes, FOCAL.ours(x, classes, reduction="sum", **given(x))),
    ]
    for module, labels, expected in calls:
        for form in (module, torch.jit.script(module), torch.fx.symbolic_trace(module)):
            torch.testing.assert_close(form(x, labels, **given(x)), expected)
