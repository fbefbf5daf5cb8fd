"""What holds between the members of the family for whatever input, drawn by hypothesis."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_op import glu, sigmoid, sigmoid_gate, silu, swiglu
from tests.conftest import Route
from tests.ulp import PRODUCT_ULPS, ulp_of

# Few examples, since the interpreter needs milliseconds for each. The fixtures choose a route; nothing in them changes.
properties = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of float32 or float64 and of one shape, of one to three dimensions, in one of their memory orders."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    numbers = st.floats(-30, 30) | st.floats(-1, 1) | st.sampled_from([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    n = torch.Size(shape).numel()
    order = draw(st.permutations(range(len(shape))))
    first, second = (
        torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float64).to(dtype).view(shape)
        for _ in range(2)
    )
    return first.permute(order), second.permute(order)


def _assert_close(result: Tensor, expected: Tensor, ulps: float) -> None:
    """Within so many ulps; NaN, the infinities and numbers past the largest in the same places."""
    result64, expected64 = result.double(), expected.double()
    assert torch.equal(result64.isnan(), expected64.isnan())
    finite = result64.isfinite() & expected64.isfinite()
    assert bool((finite | (result64 == expected64) | result64.isnan()).all())
    error = (result64 - expected64).abs()[finite]
    assert bool((error <= ulps * ulp_of(expected64[finite], result.dtype)).all())


@given(pairs())
@properties
def test_halves_of_one_tensor_are_two_tensors(kernel_route: Route, pair: tuple[Tensor, Tensor]) -> None:
    """glu is sigmoid_gate of the halves, and packed swiglu is swiglu of them, side by side or interleaved."""
    first, second = (x.to(kernel_route.device) for x in pair)
    ulps = 2 * PRODUCT_ULPS[first.dtype]
    for dim in range(-1, first.dim()):
        _assert_close(glu(torch.cat([first, second], dim), dim), sigmoid_gate(first, second), ulps)
    _assert_close(swiglu(torch.cat([first, second], -1)), swiglu(first, second), ulps)
    interleaved = torch.stack([first, second], -1).flatten(-2)
    _assert_close(swiglu(interleaved, interleaved=True), swiglu(first, second), ulps)


@given(pairs())
@properties
def test_swiglu_is_silu_times_up(kernel_route: Route, pair: tuple[Tensor, Tensor]) -> None:
    """swiglu(gate, up) is silu(gate)·up within the ulps of both; swiglu(gate, 1) is silu(gate)."""
    gate, up = (x.to(kernel_route.device) for x in pair)
    exact = silu(gate).double() * up.double()
    _assert_close(swiglu(gate, up), exact, 2 * PRODUCT_ULPS[gate.dtype])
    _assert_close(swiglu(gate, torch.ones_like(gate)), silu(gate), PRODUCT_ULPS[gate.dtype])


@given(pairs())
@properties
def test_silu_is_odd_but_for_x(kernel_route: Route, pair: tuple[Tensor, Tensor]) -> None:
    """silu(x) - silu(-x) = x, as σ(x) + σ(-x) = 1, within the ulps of the larger of both; silu(x) = x·σ(x)."""
    x = pair[0].to(kernel_route.device)
    x = x[x.isfinite()]
    both = silu(x).double() - silu(-x).double()
    assert bool(((both - x.double()).abs() <= 2 * PRODUCT_ULPS[x.dtype] * ulp_of(x.double(), x.dtype)).all())
    _assert_close(sigmoid_gate(x, x), silu(x), 2 * PRODUCT_ULPS[x.dtype])
    _assert_close(sigmoid_gate(torch.ones_like(x), x), sigmoid(x), PRODUCT_ULPS[x.dtype])


@given(pairs(), st.sampled_from([-4.0, -0.5, 0.25, 2.0]))
@properties
def test_a_slope_scales_x(kernel_route: Route, pair: tuple[Tensor, Tensor], beta: float) -> None:
    """β·silu(x, beta=β) = silu(βx), and a power of two rounds nothing."""
    x = pair[0].to(kernel_route.device)
    _assert_close(beta * silu(x, beta=beta), silu(beta * x), 2 * PRODUCT_ULPS[x.dtype])


@given(pairs(), st.floats(0.5, 40))
@properties
def test_a_limit_clamps_the_operands(kernel_route: Route, pair: tuple[Tensor, Tensor], limit: float) -> None:
    """swiglu with a limit is swiglu of what torch.clamp makes of the operands, bit for bit."""
    gate, up = (x.to(kernel_route.device) for x in pair)
    expected = swiglu(gate.clamp(max=limit), up.clamp(-limit, limit))
    torch.testing.assert_close(swiglu(gate, up, limit=limit), expected, rtol=0, atol=0, equal_nan=True)
