"""Numbers that kernels are compiled for: checked before anything runs, and heeded by every route."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.reference import sigmoid64
from sigmoid_op import QuickGELU, SiLU, SwiGLU, convert, quick_gelu, silu, swiglu
from tests.conftest import Route
from tests.ulp import FLOAT_DTYPES, PRODUCT_ULPS, assert_within_ulps

NUMBERS: list[tuple[Callable[..., Any], str]] = [
    (lambda **numbers: silu(torch.ones(2), **numbers), "beta"),
    (SiLU, "beta"),
    *((lambda **numbers: swiglu(torch.ones(2), **numbers), name) for name in ("alpha", "limit", "up_offset")),
    *((SwiGLU, name) for name in ("alpha", "limit", "up_offset")),
]
NO_NUMBERS = [True, "1", 1j, [1.0], torch.tensor(1.0), nn.Parameter(torch.ones(())), np.float32(1)]


@pytest.mark.parametrize(("call", "name"), NUMBERS)
def test_what_is_no_number_is_refused(
    kernel_route: Route, launches: list[str], call: Callable[..., Any], name: str
) -> None:
    """TypeError names the argument and the value; a tensor is refused, too, as a kernel is compiled for the number."""
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match=re.escape(f"{name} must be a number, got {value!r}")):
            call(**{name: value})
    assert launches == []


@pytest.mark.parametrize(("call", "name"), NUMBERS)
def test_numbers_without_a_meaning_are_refused(
    kernel_route: Route, launches: list[str], call: Callable[..., Any], name: str
) -> None:
    """ValueError names the argument and the value: NaN, infinities, integers past float64, and a limit not above 0."""
    for value in [float("nan"), float("inf"), -float("inf"), 2**1024, *([0, 0.0, -7.0] if name == "limit" else [])]:
        positive = " above 0" if name == "limit" else ""
        with pytest.raises(ValueError, match=re.escape(f"{name} must be a finite number{positive}, got {value!r}")):
            call(**{name: value})
    assert launches == []


def test_interleaved_beside_up_is_refused(kernel_route: Route, launches: list[str]) -> None:
    """There is no such layout of two tensors."""
    x = torch.ones(2, 4, device=kernel_route.device)
    with pytest.raises(ValueError, match="interleaved=True is for one packed tensor"):
        swiglu(x, x, interleaved=True)
    assert launches == []


def test_integers_are_numbers(route: Route) -> None:
    """Constants may be integers, as gpt-oss's limit of 7 is; swiglu's defaults are silu(gate)·up."""
    x = torch.linspace(-9, 9, 8, device=route.device)
    assert torch.equal(swiglu(x, x, alpha=2, limit=7, up_offset=1), swiglu(x, x, alpha=2.0, limit=7.0, up_offset=1.0))
    assert torch.equal(swiglu(x, x, alpha=1, up_offset=0), swiglu(x, x))
    assert torch.equal(silu(x, beta=2), silu(x, beta=2.0))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("limit", [7.0, 7.1, 7.11, 1e-3], ids=str)
def test_gradients_at_the_limit(route: Route, launches: list[str], dtype: torch.dtype, limit: float) -> None:
    """They are 0 exactly where torch.clamp's are: past the limit and for NaN, and not at the limit itself.

    The limit is that of the dtype: 7.11 is 7.125 in bfloat16, which is not past it.
    """
    bound = torch.tensor(limit, dtype=dtype)
    up_one, down_one = (torch.nextafter(bound, torch.tensor(end, dtype=dtype)) for end in (9.0, 0.0))
    inputs = torch.stack([down_one, bound, up_one, -down_one, -bound, -up_one, bound * torch.nan, bound * torch.inf])
    gate, up = (x.flatten().to(route.device) for x in torch.meshgrid(inputs, inputs, indexing="ij"))
    leaves = gate.requires_grad_(), up.requires_grad_()
    gradients = torch.autograd.grad(swiglu(*leaves, alpha=1.5, limit=limit, up_offset=20.0).sum(), leaves)
    clamps = gate.clamp(max=limit), up.clamp(-limit, limit)
    for gradient, clamped, leaf in zip(gradients, clamps, leaves, strict=True):
        (passed,) = torch.autograd.grad(clamped.sum(), leaf)
        assert torch.equal(gradient == 0, passed == 0)
    assert launches == (["swiglu", "swiglu_backward"] if route.uses_kernels else [])


@pytest.mark.parametrize("offset", [-0.5, 2.0])
def test_an_up_offset_is_added_to_up(route: Route, offset: float) -> None:
    """Of either sign."""
    gate, up = torch.linspace(-3, 3, 16, dtype=torch.float64, device=route.device).view(2, 8)
    torch.testing.assert_close(swiglu(gate, up, up_offset=offset), swiglu(gate, up + offset))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_interleaved_rows_an_odd_step_apart(route: Route, dtype: torch.dtype) -> None:
    """No pair of every second row is one integer in memory: the result is that of a contiguous copy."""
    x = torch.linspace(-3, 3, 28, dtype=dtype, device=route.device).view(4, 7)[:, :6].requires_grad_()
    copy = x.detach().contiguous().requires_grad_()
    outs = [swiglu(operand, interleaved=True) for operand in (x, copy)]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.sum(), leaf) for out, leaf in zip(outs, (x, copy), strict=True))
    )


def test_a_limit_that_is_zero_in_the_dtype(route: Route) -> None:
    """It clamps to 0, and does not pass for none."""
    x = torch.ones(2, 4, dtype=torch.float16, device=route.device)
    assert swiglu(x, x, limit=1e-9).eq(0).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_special_values_of_clamped_operands(route: Route, interleaved: bool) -> None:
    """Infinities are clamped, NaN stays NaN, in gate and in up."""
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 7.0, -7.0, 1e30])
    gate, up = torch.meshgrid(special, special, indexing="ij")
    x = torch.stack([gate, up], -1).flatten(-2) if interleaved else torch.cat([gate, up], -1)
    out = swiglu(x.to(route.device), alpha=1.702, limit=7.0, up_offset=1.0, interleaved=interleaved)
    g, u = gate.clamp(max=7), up.clamp(-7, 7)
    torch.testing.assert_close(out, g * torch.sigmoid(1.702 * g) * (u + 1), equal_nan=True, check_device=False)


def test_whole_numbers_beyond_64_bits(route: Route) -> None:
    """A constant that is an int is taken as the float it stands for, however large."""
    x = torch.tensor([[0.5, 1.0, -2.0, 3.0]], device=route.device)
    assert torch.equal(silu(x, beta=2**200), silu(x, beta=2.0**200))
    assert torch.equal(swiglu(x, alpha=2**200, limit=2**90), swiglu(x, alpha=2.0**200, limit=2.0**90))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("beta", [0.0, 1e-30, 2.0**-20, -3.0, 30.0, 2.0**99, -1e300], ids=str)
def test_every_slope(route: Route, launches: list[str], dtype: torch.dtype, beta: float) -> None:
    """No slope of σ overflows or loses digits; one above 2^100 goes to PyTorch."""
    x = torch.tensor([0.0, 1e-4, -1e-4, 0.5, -0.5, 3.0, -3.0, 300.0, -300.0], dtype=dtype, device=route.device)
    x.requires_grad_()
    out = silu(x, beta=beta)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    product = (x.detach().double() * beta).cpu()
    s, s_minus = sigmoid64(product), sigmoid64(-product)
    exact = x.detach().cpu().double() * s
    slope = s + torch.where(s_minus == 0, 0, product * s * s_minus)
    if route.uses_kernels and abs(beta) < 2.0**100:
        ulps = PRODUCT_ULPS | {torch.float64: 2.0**-47 / torch.finfo(torch.float64).eps}  # the reference is of float64
        assert_within_ulps(out.detach(), exact, ulps[dtype])
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double().cpu(), slope, rtol=tolerance * 4, atol=tolerance)
        assert launches == ["silu", "silu_backward"]
    else:
        assert bool((out.detach().cpu().isnan() | (out.detach().cpu().double() - exact).abs().le(1)).all())
        assert launches == []


def test_each_set_of_constants_has_its_kernel(kernel_route: Route, launches: list[str]) -> None:
    """A prepared launch is found again for its own constants only."""
    x = torch.linspace(-9, 9, 8, device=kernel_route.device)
    results = [swiglu(x, x, alpha=a, limit=c, up_offset=o) for a in (1.0, 2.0) for c in (None, 3.0) for o in (0.0, 1.0)]
    results += [silu(x, beta=beta) for beta in (1.0, 2.0)]
    assert len({tuple(result.tolist()) for result in results}) == len(results) == len(launches)


def test_in_place_with_a_slope(route: Route) -> None:
    """silu overwrites its input for every slope; the gradient flows through, and a leaf that needs one is refused."""
    for grad in (False, True):
        leaf = torch.linspace(-3, 3, 5, dtype=torch.float64, device=route.device, requires_grad=grad)
        x = leaf * 1
        assert silu(x, inplace=True, beta=1.5) is x
        torch.testing.assert_close(x.detach(), leaf.detach() * torch.sigmoid(1.5 * leaf.detach()))
    (gradient,) = torch.autograd.grad(x.sum(), leaf)
    (expected,) = torch.autograd.grad((leaf * torch.sigmoid(1.5 * leaf)).sum(), leaf)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        silu(leaf, True, beta=1.5)


def test_modules_say_their_constants() -> None:
    """A module prints what differs from the default; without, it prints as PyTorch's."""
    assert repr(SiLU()) == repr(nn.SiLU())
    assert repr(SiLU(True)) == repr(nn.SiLU(True))
    assert repr(SiLU(True, beta=2)) == "SiLU(inplace=True, beta=2)"
    assert repr(QuickGELU()) == "QuickGELU()"
    assert repr(SwiGLU()) == "SwiGLU()"
    assert repr(SwiGLU(alpha=1.702, limit=7, interleaved=True)) == "SwiGLU(alpha=1.702, limit=7, interleaved=True)"


@pytest.mark.parametrize("module", [SiLU(beta=2), SwiGLU(alpha=2, limit=7, up_offset=1)], ids=str)
def test_whole_numbers_script(module: nn.Module) -> None:
    """TorchScript takes a module whose constants were given as whole numbers, of which it converts none."""
    x = torch.linspace(-9, 9, 8)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))


def test_converted_modules_have_the_slope_of_theirs(route: Route) -> None:
    """A converted nn.SiLU has no attribute beta of its own, and computes F.silu."""
    module = nn.SiLU()
    convert(module)
    x = torch.linspace(-3, 3, 5, device=route.device)
    assert type(module) is SiLU
    assert repr(module) == "SiLU()"
    torch.testing.assert_close(module(x), nn.SiLU()(x))


@pytest.mark.parametrize("op", [partial(silu, beta=1.702), quick_gelu])
def test_one_launch_in_place_of_three(kernel_route: Route, launches: list[str], op: Callable[..., Tensor]) -> None:
    """CLIP's activation is one launch forward and one backward."""
    x = torch.ones(3, device=kernel_route.device, requires_grad=True)
    op(x).sum().backward()
    assert launches == ["silu", "silu_backward"]
