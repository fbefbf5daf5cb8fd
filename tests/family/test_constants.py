"""Numbers that kernels are compiled for: checked before anything runs, and heeded by every route."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.reference import sigmoid64
from sigmoid_op import QuickGELU, SiLU, SwiGLU, silu, swiglu
from tests.conftest import Route
from tests.members import CLAMPED_SWIGLU, Clamped
from tests.ulp import FLOAT_DTYPES, PRODUCT_ULPS, assert_within_ulps

NUMBERS: list[tuple[Callable[..., Any], str]] = [
    (lambda **numbers: silu(torch.ones(2), **numbers), "beta"),
    (SiLU, "beta"),
    *((lambda **numbers: swiglu(torch.ones(2), **numbers), name) for name in ("alpha", "limit", "up_offset")),
    *((SwiGLU, name) for name in ("alpha", "limit", "up_offset")),
]
TENSORS = [torch.tensor(1.0), nn.Parameter(torch.ones(()))]  # a kernel is compiled for the number
NO_NUMBERS = [True, "1", 1j, [1.0], *TENSORS, np.float32(1)]


@pytest.mark.parametrize(("call", "name"), NUMBERS)
def test_what_is_refused(kernel_route: Route, launches: list[str], call: Callable[..., Any], name: str) -> None:
    """TypeError for no number; ValueError for NaN, infinities, integers past float64, and a limit not above 0.

    Either names the argument and the value.
    """
    positive, not_positive = (" above 0", [0, 0.0, -7.0]) if name == "limit" else ("", [])
    for error, message, values in (
        (TypeError, "a number", NO_NUMBERS),
        (ValueError, f"a finite number{positive}", [float("nan"), float("inf"), -float("inf"), 2**1024, *not_positive]),
    ):
        for value in values:
            with pytest.raises(error, match=re.escape(f"{name} must be {message}, got {value!r}")):
                call(**{name: value})
    assert launches == []


def test_interleaved_beside_up_is_refused(kernel_route: Route, launches: list[str]) -> None:
    """There is no such layout of two tensors."""
    x = torch.ones(2, 4, device=kernel_route.device)
    with pytest.raises(ValueError, match="interleaved=True is for one packed tensor"):
        swiglu(x, x, interleaved=True)
    assert launches == []


def test_integers_are_numbers(route: Route) -> None:
    """Constants may be integers, as gpt-oss's limit of 7 is, however large; swiglu's defaults are silu(gate)·up."""
    x = torch.linspace(-9, 9, 8, device=route.device)
    for alpha, limit, up_offset in ((2, 7, 1), (2**200, 2**90, 0)):
        result = swiglu(x, x, alpha=alpha, limit=limit, up_offset=up_offset)
        expected = swiglu(x, x, alpha=float(alpha), limit=float(limit), up_offset=float(up_offset))
        assert torch.equal(result, expected)
        assert torch.equal(silu(x, beta=alpha), silu(x, beta=float(alpha)))
    assert torch.equal(swiglu(x, x, alpha=1, up_offset=0), swiglu(x, x))


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


def test_a_limit_that_is_zero_in_the_dtype(route: Route) -> None:
    """It clamps to 0, and does not pass for none."""
    x = torch.ones(2, 4, dtype=torch.float16, device=route.device)
    assert swiglu(x, x, limit=1e-9).eq(0).all()


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
    """A prepared launch is found again for its own constants only, of either sign."""
    x = torch.linspace(-9, 9, 8, device=kernel_route.device)
    for alpha, limit, up_offset in product((1.0, -2.0), (None, 3.0), (0.0, -0.5, 2.0)):
        member = replace(CLAMPED_SWIGLU, exact=Clamped(alpha, limit or torch.inf, up_offset).exact)
        out = swiglu(x, x, alpha=alpha, limit=limit, up_offset=up_offset)
        assert_within_ulps(out, member.truth(x, x), PRODUCT_ULPS[x.dtype])
    results = [silu(x, beta=beta) for beta in (1.0, 2.0)]
    assert not torch.equal(*results)
    assert len(launches) == 12 + 2


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
