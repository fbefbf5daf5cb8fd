"""Each loss is right to the last digits: results, gradients in both tails, sums, and gradients of gradients."""

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sigmoid_op.ops.focal import sigmoid_focal_loss
from sigmoid_op.ops.logsigmoid import logsigmoid
from tests.conftest import Route
from tests.losses import BCE, FOCAL, Loss, every_loss, focal, log_sigmoid
from tests.ulp import FLOAT_DTYPES, assert_within_ulps, every_16bit, true_sigmoid, ulp_error

# Of logsigmoid: t errs by 0.94 ulp, and log(1 - t) has up to 1.34 times its relative error, and roundings of its own.
LOGSIGMOID_ULPS = {torch.float16: 0.51, torch.bfloat16: 0.51, torch.float32: 2.0, torch.float64: 3.0}
# Where the losses' tails end in results too small for the dtype.
LARGEST = {torch.float16: 16.0, torch.bfloat16: 90.0, torch.float32: 100.0, torch.float64: 740.0}


def _logits(dtype: torch.dtype) -> Tensor:
    """Both tails to their ends, the neighbourhood of 0 and what is between."""
    spread = torch.cat([torch.linspace(0, 5, 11), torch.logspace(-4, 0, 3), torch.linspace(5, LARGEST[dtype], 6)])
    return torch.cat([spread, -spread]).to(dtype)


def _exact_logsigmoid(x: Tensor) -> Tensor:
    """In float64; by mpmath for float64 input."""
    if x.dtype != torch.float64:
        return F.logsigmoid(x.double())
    with mpmath.workdps(40):
        return torch.tensor([float(log_sigmoid(mpmath.mpf(value))) for value in x.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_logsigmoid(kernel_route: Route, dtype: torch.dtype) -> None:
    """Every finite 16-bit input gives the nearest result, or nearly so; float32 and float64 ones are within 3 ulps."""
    x = every_16bit(dtype) if dtype.itemsize == 2 else torch.linspace(-120, 120, 6001, dtype=dtype)
    x = x[x.isfinite()].to(kernel_route.device).requires_grad_()
    out = logsigmoid(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert_within_ulps(out.detach().cpu(), _exact_logsigmoid(x.detach().cpu()), LOGSIGMOID_ULPS[dtype])
    assert_within_ulps(slope.cpu(), true_sigmoid(-x.detach().cpu()), LOGSIGMOID_ULPS[dtype])


def _check(route: Route, loss: Loss, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The losses to their last digits; also returns the gradients, and the exact ones."""
    x = x.to(route.device).requires_grad_()
    out = loss.ours(x, target.to(route.device), reduction="none", **loss.given(x))
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact, exact_slope = loss.truth(x, target)
    assert_within_ulps(out.detach().cpu(), exact, 0.52 if out.dtype.itemsize == 2 else loss.ulps)
    return slope.cpu(), exact_slope


@every_loss
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_hard_labels(kernel_route: Route, loss: Loss, dtype: torch.dtype, label: float) -> None:
    """Losses and gradients have all their digits, down to subnormal numbers, and do not die where σ saturates."""
    x = _logits(dtype)
    slope, exact = _check(kernel_route, loss, x, torch.full_like(x, label))
    assert_within_ulps(slope, exact, 0.52 if dtype.itemsize == 2 else loss.gradient_ulps)


@every_loss
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_soft_labels(kernel_route: Route, loss: Loss, dtype: torch.dtype) -> None:
    """Losses have all their digits; near the root of a gradient are no more than those of its terms, near 1."""
    x = _logits(dtype)
    slope, exact = _check(kernel_route, loss, x, torch.full_like(x, 0.25))
    near_root = (slope.double() - exact).abs() <= 12 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert bool((near_root | (ulp_error(slope, exact) <= 0.52)).all())


@pytest.mark.parametrize("loss", [BCE, FOCAL], ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    ("dtype", "target_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
def test_two_dtypes(kernel_route: Route, loss: Loss, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    """The loss has the digits of its own dtype, and the gradient those of the logit's, whatever the target's is."""
    x = _logits(dtype)
    slope, exact = _check(kernel_route, loss, x, torch.ones_like(x, dtype=target_dtype))
    assert_within_ulps(slope, exact, 0.52 if dtype.itemsize == 2 else loss.gradient_ulps)


@pytest.mark.parametrize("gamma", [1.5, 2, 2.2, 4])
def test_the_largest_logit(route: Route, gamma: float) -> None:
    """Where γ·|x| is more than a number can be, the gradient is still -α."""
    x = torch.tensor([-torch.finfo(torch.float32).max], device=route.device, requires_grad=True)
    (slope,) = torch.autograd.grad(sigmoid_focal_loss(x, torch.ones_like(x), gamma=gamma).sum(), x)
    assert slope.item() == -0.25


@every_loss
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_infinite_logits(route: Route, loss: Loss, dtype: torch.dtype) -> None:
    """A logit infinitely right has no loss, one infinitely wrong an infinite loss; gradients are those of the limit.

    So are gradients that can be differentiated again. Of the losses without kernels, BCE's is PyTorch's, with its NaN.
    """
    if loss.kernel == "bce" and not route.uses_kernels:
        return
    x = torch.tensor([-torch.inf, torch.inf] * 3, dtype=dtype, device=route.device).requires_grad_()
    target = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.25, 0.75], dtype=dtype, device=route.device)
    options, rtol = loss.given(x), 4 * torch.finfo(dtype).eps
    out = loss.ours(x, target, reduction="none", **options)
    exact, exact_slope = loss.truth(x.detach().sign() * 1e4, target)
    assert torch.equal(out.detach().cpu().double(), torch.where(exact > 1, torch.inf, exact))
    for create_graph in (False, True):
        (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(slope.detach().cpu().double(), exact_slope, rtol=rtol, atol=0)
    for reduction, divisor in (("mean", 6), ("sum", 1)):
        total = loss.ours(x, target, reduction=reduction, **options)
        (slope,) = torch.autograd.grad(total, x)
        torch.testing.assert_close(slope.cpu().double(), exact_slope / divisor, rtol=rtol, atol=0)
        assert total == torch.inf
        assert loss.ours(x[:2], target[:2], reduction=reduction, **options) == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_labels_that_count_for_nothing(route: Route, alpha: float) -> None:
    """With an alpha of 0 positive labels have no loss or gradient, however wrong the logit; with 1 negative ones."""
    x = torch.tensor([1.0, torch.inf, -torch.inf], device=route.device, requires_grad=True)
    out = sigmoid_focal_loss(x, torch.full_like(x, 1 - alpha, requires_grad=False), alpha=alpha)
    assert not out.any()
    for create_graph in (False, True):
        (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True, create_graph=create_graph)
        assert not slope.any()


@pytest.mark.parametrize("weights", [{"weight": 0.0}, {"pos_weight": 0.0}, {"weight": 0.0, "pos_weight": 2.0}], ids=str)
def test_infinite_logits_without_weight(kernel_route: Route, weights: dict[str, float]) -> None:
    """A weight of 0 leaves nothing, not even of an infinite loss; PyTorch's function finds NaN."""
    x = torch.tensor([-torch.inf, 1.0], device=kernel_route.device, requires_grad=True)
    tensors = {name: torch.tensor(value, device=x.device) for name, value in weights.items()}
    out = BCE.ours(x, torch.ones_like(x, requires_grad=False), **tensors, reduction="sum")
    assert out == 0
    assert (torch.autograd.grad(out, x)[0] == 0).all()


@every_loss
def test_undefined_logits_and_labels(route: Route, loss: Loss) -> None:
    """NaN gives NaN, and does not spoil its neighbours."""
    x = torch.tensor([1.0, torch.nan, -2.0, -2.0, torch.inf], device=route.device)
    target = torch.tensor([0.0, 0.0, torch.nan, 1.0, torch.nan], device=route.device)
    out = loss.ours(x, target, reduction="none", **loss.given(x))
    assert out.isnan().tolist() == [False, True, True, False, True]


def test_logsigmoid_of_infinity(route: Route) -> None:
    """It is 0 at infinity, -inf at -inf, and NaN of NaN."""
    x = torch.tensor([torch.inf, -torch.inf, torch.nan], device=route.device)
    torch.testing.assert_close(logsigmoid(x).cpu(), torch.tensor([0.0, -torch.inf, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 2.2, 5, 6])
def test_labels_outside_0_to_1(route: Route, gamma: float) -> None:
    """The focal loss and its gradient are torchvision's formula: NaN where a negative number has a broken power."""
    x = torch.tensor([-3.0, -0.5, 0.7, 2.0], dtype=torch.float64, device=route.device).requires_grad_()
    target = torch.tensor([-0.5, 1.75, -1.0, 2.5], dtype=torch.float64, device=route.device)
    p = torch.sigmoid(x.detach())
    missed = (target * (1 - p) + (1 - target) * p).cpu()
    assert (missed < 0).sum() == 2
    broken = (missed < 0) & bool(gamma % 1)
    loss = focal(0.25, gamma)
    out = loss.ours(x, target, **loss.options)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out.isnan().cpu(), broken)
    assert torch.equal(slope.isnan().cpu(), broken)
    exact, exact_slope = loss.truth(x.detach().cpu()[~broken], target.cpu()[~broken])
    torch.testing.assert_close(out.detach().cpu()[~broken], exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope.cpu()[~broken], exact_slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("loss", "dtype", "reduction", "n"),
    [
        (BCE, torch.float64, "sum", 2**14 + 77),
        (BCE, torch.float32, "mean", 2**20 + 77),
        (FOCAL, torch.float32, "sum", 2**16 + 77),
        (BCE, torch.bfloat16, "sum", 2**16 - 77),
        (FOCAL, torch.bfloat16, "mean", 2**16),
    ],
)
def test_sums(kernel_route: Route, loss: Loss, dtype: torch.dtype, reduction: str, n: int) -> None:
    """Sum and mean are within 1e-6 of the exact ones (float64: 1e-13), or the nearest number of 16 bits."""
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(n, generator=generator)).to(dtype)
    target = (torch.rand(n, generator=generator) < 0.1).to(dtype)
    exact = loss.theirs(x.double(), target.double(), reduction=reduction)
    result = loss.ours(x.to(kernel_route.device), target.to(kernel_route.device), reduction=reduction)
    if dtype == torch.bfloat16:
        assert_within_ulps(result.cpu(), exact, 0.52)
    else:
        rtol = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(result.cpu().double(), exact, rtol=rtol, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("loss", [BCE, FOCAL], ids=lambda loss: loss.name)
def test_sums_of_a_quarter_billion(loss: Loss, dtype: torch.dtype) -> None:
    """At 2^28 elements sums are still within 1e-6 and the same on every run, and so is every gradient of the mean."""
    n = 2**28
    torch.manual_seed(0)
    x = torch.randn(n, device="cuda", dtype=dtype).mul_(3).requires_grad_()
    target = torch.empty(n, device="cuda", dtype=dtype).bernoulli_(0.1)
    with torch.autocast("cuda"):  # float32 results of 16-bit logits
        runs = [loss.ours(x, target, reduction="mean") for _ in range(3)]
    assert runs[0].dtype == torch.float32
    assert all(torch.equal(run, runs[0]) for run in runs)
    (slope,) = torch.autograd.grad(runs[0], x)
    exact = torch.zeros((), dtype=torch.float64, device="cuda")
    for start in range(0, n, 2**25):
        part = x.detach()[start : start + 2**25].double().requires_grad_()
        of_part = loss.theirs(part, target[start : start + 2**25].double(), reduction="sum")
        (exact_slope,) = torch.autograd.grad(of_part / n, part)
        exact += of_part.detach()
        tolerance = 1e-5 if dtype == torch.float32 else 2.0**-8
        torch.testing.assert_close(slope[start : start + 2**25].double(), exact_slope, rtol=tolerance, atol=1e-16)
    torch.testing.assert_close(runs[0].double(), exact / n, rtol=1e-6, atol=0)
