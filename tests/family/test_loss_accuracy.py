"""Each loss is right to the last digits: results, gradients in both tails, sums, and gradients of gradients."""

from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sigmoid_op.ops.bce import binary_cross_entropy_with_logits
from sigmoid_op.ops.focal import sigmoid_focal_loss
from sigmoid_op.ops.logsigmoid import logsigmoid
from tests.conftest import CUDA, Route
from tests.losses import BCE, FOCAL, WEIGHTED_BCE, Loss, Op, each_kind, every_loss, focal
from tests.ulp import FLOAT_DTYPES, assert_within_ulps, every_16bit, true_sigmoid, ulp_error

# Of logsigmoid: t errs by 0.94 ulp, and log(1 - t) has up to 1.34 times its relative error, and roundings of its own.
LOGSIGMOID_ULPS = {torch.float16: 0.51, torch.bfloat16: 0.51, torch.float32: 2.0, torch.float64: 3.0}
# Where the losses' tails end in results too small for the dtype.
LARGEST = {torch.float16: 16.0, torch.bfloat16: 90.0, torch.float32: 100.0, torch.float64: 740.0}


def _logits(dtype: torch.dtype, device: str) -> Tensor:
    """Both tails to their ends, the neighbourhood of 0 and what is between."""
    spread = torch.cat([torch.linspace(0, 5, 11), torch.logspace(-4, 0, 3), torch.linspace(5, LARGEST[dtype], 6)])
    return torch.cat([spread, -spread]).to(dtype).to(device)


def _on(loss: Loss, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The loss's options, with weights of ``dtype``."""
    return {key: value.to(device, dtype) if isinstance(value, Tensor) else value for key, value in loss.options.items()}


def _exact_logsigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """log σ(x) and its derivative σ(-x), in float64; by mpmath for float64 input."""
    x = x.detach().cpu()
    if x.dtype == torch.float64:
        with mpmath.workdps(40):
            exponentials = [mpmath.exp(-mpmath.mpf(value)) for value in x.tolist()]
            values = [float(-mpmath.log1p(e)) for e in exponentials]
        return torch.tensor(values, dtype=torch.float64), true_sigmoid(-x)
    e = torch.exp(-x.double().abs())
    return x.double().clamp(max=0) - torch.log1p(e), torch.where(x < 0, 1.0, e) / (1 + e)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_logsigmoid(kernel_route: Route, dtype: torch.dtype) -> None:
    """Every finite 16-bit input gives the nearest result, or nearly so; float32 and float64 ones are within 3 ulps."""
    x = every_16bit(dtype) if dtype.itemsize == 2 else torch.linspace(-120, 120, 6001, dtype=dtype)
    x = x[x.isfinite()].to(kernel_route.device).requires_grad_()
    out = logsigmoid(x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact, exact_slope = _exact_logsigmoid(x)
    assert_within_ulps(out.detach().cpu(), exact, LOGSIGMOID_ULPS[dtype])
    assert_within_ulps(slope.cpu(), exact_slope, LOGSIGMOID_ULPS[dtype])


@every_loss
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_loss_and_gradient(kernel_route: Route, loss: Loss, dtype: torch.dtype, label: float) -> None:
    """Losses have all their digits, down to subnormal numbers; so do gradients of hard labels.

    The gradient of a soft label has a root. Near it are no more digits than those of its terms, which are near 1.
    """
    x = _logits(dtype, kernel_route.device).requires_grad_()
    target = torch.full_like(x, label, requires_grad=False)
    out = loss.ours(x, target, reduction="none", **_on(loss, dtype, kernel_route.device))
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact, exact_slope = loss.truth(x, target)
    small = dtype.itemsize == 2
    assert_within_ulps(out.detach().cpu(), exact, 0.52 if small else loss.ulps)
    if label in (0.0, 1.0):
        assert_within_ulps(slope.cpu(), exact_slope, 0.52 if small else loss.gradient_ulps)
    else:
        atol = 3 * torch.finfo(torch.float32 if small else dtype).eps
        error = (slope.cpu().double() - exact_slope).abs()
        assert bool(((error <= 4 * atol) | (ulp_error(slope.cpu(), exact_slope) <= 0.52)).all()), error.max()


@pytest.mark.parametrize("loss", [BCE, FOCAL], ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    ("dtype", "target_dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
def test_two_dtypes(kernel_route: Route, loss: Loss, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    """The loss has the digits of its own dtype, and the gradient those of the logit's, whatever the target's is."""
    x = _logits(dtype, kernel_route.device).requires_grad_()
    target = torch.ones_like(x, dtype=target_dtype, requires_grad=False)
    out = loss.ours(x, target, reduction="none")
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact, exact_slope = loss.truth(x, target)
    assert_within_ulps(out.detach().cpu(), exact, 0.52 if out.dtype == torch.bfloat16 else loss.ulps)
    assert_within_ulps(slope.cpu(), exact_slope, 0.52 if dtype == torch.bfloat16 else loss.gradient_ulps)


def test_an_alpha_of_zero_is_a_weight(route: Route) -> None:
    """It leaves nothing of the positive examples: no loss and no gradient, also of one that is differentiated again."""
    x = torch.ones(3, device=route.device, requires_grad=True)
    loss = sigmoid_focal_loss(x, torch.ones(3, device=route.device), alpha=0, reduction="sum")
    assert loss == 0
    for create_graph in (False, True):
        (slope,) = torch.autograd.grad(loss, x, retain_graph=True, create_graph=create_graph)
        assert (slope == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_do_not_die(kernel_route: Route, dtype: torch.dtype) -> None:
    """At a logit of 40, right or wrong by e^-40, PyTorch's float32 gradient of a hard label is 0 and ours is not."""
    x = torch.tensor([40.0, -40.0], dtype=dtype, device=kernel_route.device, requires_grad=True)
    target = torch.tensor([1.0, 0.0], dtype=dtype, device=kernel_route.device)
    (slope,) = torch.autograd.grad(binary_cross_entropy_with_logits(x, target, reduction="sum"), x)
    tail = torch.exp(torch.tensor(-40.0, dtype=torch.float64))
    torch.testing.assert_close(slope.cpu().double(), torch.stack([-tail, tail]), rtol=1e-6, atol=0)
    assert bool((logsigmoid(x.abs()) != 0).all())
    assert bool((sigmoid_focal_loss(x / 2, target) != 0).all())


@pytest.mark.parametrize("gamma", [1.5, 2, 2.2, 4])
def test_the_largest_logit(route: Route, gamma: float) -> None:
    """Where γ·|x| is more than a number can be, the gradient is still -α."""
    x = torch.tensor([-torch.finfo(torch.float32).max], device=route.device, requires_grad=True)
    (slope,) = torch.autograd.grad(sigmoid_focal_loss(x, torch.ones_like(x), gamma=gamma).sum(), x)
    assert slope.item() == -0.25


def _limits(loss: Loss, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of infinite logits: those of ±10^4, but that a loss which grows there is infinite."""
    losses, slopes = loss.truth(x.sign() * 1e4, target)
    return torch.where(losses > 1, torch.inf, losses), slopes


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
    options = _on(loss, dtype, route.device)
    out = loss.ours(x, target, reduction="none", **options)
    exact, exact_slope = _limits(loss, x.detach().cpu(), target.cpu())
    assert torch.equal(out.detach().cpu().double(), exact)
    for create_graph in (False, True):
        (slope,) = torch.autograd.grad(out.sum(), x, retain_graph=True, create_graph=create_graph)
        torch.testing.assert_close(slope.detach().cpu().double(), exact_slope, rtol=4 * torch.finfo(dtype).eps, atol=0)
    for reduction, divisor in (("mean", 6), ("sum", 1)):
        (slope,) = torch.autograd.grad(loss.ours(x, target, reduction=reduction, **options), x)
        scaled = exact_slope / divisor
        torch.testing.assert_close(slope.cpu().double(), scaled, rtol=4 * torch.finfo(dtype).eps, atol=0)
        assert loss.ours(x, target, reduction=reduction, **options) == torch.inf
        assert loss.ours(x[:2], target[:2], reduction=reduction, **options) == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_infinite_logits_of_labels_that_count_for_nothing(route: Route, alpha: float) -> None:
    """With an alpha of 0 positive labels have no loss or gradient, however wrong the logit; with 1 negative ones."""
    x = torch.tensor([torch.inf, -torch.inf], device=route.device, requires_grad=True)
    out = sigmoid_focal_loss(x, torch.full_like(x, 1 - alpha, requires_grad=False), alpha=alpha)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert (out == 0).all()
    assert (slope == 0).all()


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
    out = loss.ours(x, target, reduction="none", **_on(loss, torch.float32, route.device))
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
    with mpmath.workdps(40):
        pairs = zip(x.tolist(), target.tolist(), strict=True)
        missed = [(b * mpmath.exp(-a) + 1 - b) / (1 + mpmath.exp(-a)) for a, b in pairs]
    assert sum(m < 0 for m in missed) == 2
    broken = torch.tensor([m < 0 and gamma % 1 != 0 for m in missed])
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
    if dtype in (torch.float32, torch.float64):
        rtol = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(result.cpu().double(), exact, rtol=rtol, atol=0)
    else:
        assert_within_ulps(result.cpu(), exact, 0.52)


@each_kind
@pytest.mark.gpu
@pytest.mark.parametrize("kernel_route", [CUDA], indirect=True)
def test_sums_are_reproducible(kernel_route: Route, loss: Loss) -> None:
    """Sums have the same bits on every run."""
    x = torch.linspace(-9, 9, 10001, device=kernel_route.device)
    target = (x > 1).float()
    options = _on(loss, torch.float32, kernel_route.device)
    runs = [loss.ours(x, target, reduction="sum", **options) for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs)


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


def _check_derivatives(route: Route, call: Op, *, twice: bool) -> None:
    x = torch.tensor([-2.3, 0.4, 3.1], dtype=torch.float64, device=route.device, requires_grad=True)
    assert gradcheck(call, x, fast_mode=True, check_batched_grad=twice, check_forward_ad=twice)
    if twice:
        assert gradgradcheck(call, x, fast_mode=True)


@every_loss
def test_gradcheck(route: Route, loss: Loss) -> None:
    """Gradients of a soft target are those of finite differences.

    For each kind of loss so are those of reductions, gradients of gradients, and batched and forward-mode ones.
    """
    target = torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64, device=route.device)
    options = _on(loss, torch.float64, route.device)
    for reduction in ["none", "mean"] if loss in (BCE, FOCAL) else ["sum"]:
        twice = loss is WEIGHTED_BCE or reduction == "mean"
        _check_derivatives(route, lambda x, r=reduction: loss.ours(x, target, reduction=r, **options), twice=twice)


def test_gradcheck_of_logsigmoid(route: Route) -> None:
    """The same of logsigmoid."""
    _check_derivatives(route, logsigmoid, twice=True)


@each_kind
def test_transforms(route: Route, launches: list[str], loss: Loss) -> None:
    """Transforms and compilers see PyTorch's operators: nothing is launched, and the results are the same."""
    x = torch.linspace(-3, 3, 12, device=route.device).view(3, 4)
    target = (x > 1).float()
    options = _on(loss, torch.float32, route.device)

    def call(x: Tensor, target: Tensor) -> Tensor:
        return loss.ours(x, target, reduction="sum", **options)

    expected = torch.stack([loss.theirs(*pair, reduction="sum", **options) for pair in zip(x, target, strict=True)])
    torch.testing.assert_close(torch.vmap(call)(x, target), expected)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.theirs(leaf, target, reduction="sum", **options), leaf)
    torch.testing.assert_close(torch.func.grad(call)(x, target), gradient)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, target), expected.sum())
    assert launches == []
