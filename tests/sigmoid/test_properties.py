"""What holds of σ for whatever input: drawn by hypothesis over values, shapes, strides and dtypes, on every route."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.accuracy.sweeps import ascending
from sigmoid_op import sigmoid
from sigmoid_op.dispatch import is_dense
from tests.conftest import Route
from tests.ulp import FLOAT_DTYPES, HALF_DTYPES, assert_within_ulps, every_dtype, forward_ulps, true_sigmoid, ulp_of

SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 88.72, -88.73, -103.97, -745.2, 1e-45, 6.25, 17.33]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any float dtype, up to three dimensions, and the strides that views give it."""
    dtype = draw(st.sampled_from(FLOAT_DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    finite = st.floats(-800, 800) | st.floats(-1, 1) | st.floats(allow_nan=False, width=16)
    step = draw(st.integers(1, 3))
    n = torch.Size(shape).numel()
    values = draw(st.lists(finite | st.sampled_from(SPECIAL), min_size=n * step, max_size=n * step))
    x = torch.tensor(values, dtype=torch.float64).to(dtype).view(*shape, step)[..., 0]
    return x.permute(draw(st.permutations(range(x.dim()))))


# Few examples, since the interpreter needs milliseconds for each. In CI hypothesis itself draws the same every time.
# The fixtures choose a route; nothing in them changes from one example to the next.
@given(tensors())
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_the_result_is_right(route: Route, x: Tensor) -> None:
    """Dtype, shape and strides are torch.sigmoid's, values within the table's ulps of σ, unless torch flushes.

    They are from 0 to 1, above 1/2 only where x > 0, and below it only where x < 0.
    """
    out, theirs = sigmoid(x.to(route.device)), torch.sigmoid(x)
    assert (out.dtype, out.shape, out.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    out, exact = out.cpu(), true_sigmoid(x)
    by_kernel = route.uses_kernels and is_dense(x)
    compared = by_kernel | (exact >= 4 * torch.finfo(x.dtype).tiny) | exact.isnan()
    assert_within_ulps(out[compared], exact[compared], forward_ulps(x.dtype, by_kernel=by_kernel))
    assert (out.isnan() | (out >= 0) & (out <= 1) & ~out.signbit()).all()
    assert ((out > 0.5) <= (x > 0)).all()
    assert ((out < 0.5) <= (x < 0)).all()


@every_dtype
def test_never_decreases(route: Route, dtype: torch.dtype) -> None:
    """Over all numbers of a 16-bit dtype in order, and stretches of neighbours in wider ones, σ never decreases.

    In float64 the kernel may do so, by one ulp: Triton's own exponential does.
    """
    if dtype in HALF_DTYPES:
        stretches = list(ascending(dtype, torch.device("cpu"), 1, 2**17))
    else:
        integer = torch.int32 if dtype == torch.float32 else torch.int64
        values = [-745.0, -708.4, -104.0, -88.0, -20.0, -6.5, -1.8, -0.4, 1e-4, 0.3, 0.3465736, 0.6931472, 2.4, 16.0]
        bits = torch.tensor(values, dtype=dtype).view(integer)[:, None] + torch.arange(4096, dtype=integer)
        stretches = [stretch.sort().values for stretch in bits.view(dtype)]
    for x in stretches:
        out = sigmoid(x.to(route.device)).cpu()
        lowest = -ulp_of(out[1:], dtype) if route.uses_kernels and dtype == torch.float64 else 0.0
        assert (torch.diff(out.double()) >= lowest).all()
