"""The few machine operations the formulas are built on, each with its stated error.

On NVIDIA they are one instruction or a few. In Triton's interpreter, which runs a kernel as NumPy and knows neither
inline assembly nor a fused multiply-add, each is what the hardware does, spelled in NumPy's terms: the same roundings,
so that a test in the interpreter sees the arithmetic of the GPU. Elsewhere (AMD) they are Triton's portable forms.
"""

import triton
import triton.language as tl
from triton import knobs
from triton.language import target_info

# Read once, as triton.jit reads it once: what is compiled would else follow the environment of the moment, and Triton's
# cache on disk would keep it for all.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.constexpr_function
def _emits_ptx() -> bool:
    return not INTERPRETED and target_info.is_cuda()


@triton.jit
def fma(a, b, c):
    """a·b + c with one rounding for float32, whose b and c may be constants; with two for float64.

    The interpreter rounds every product: it takes the sum in float64, where the product is exact, and rounds it again,
    which differs about once in 2^29 times.
    """
    if a.dtype == tl.float64:
        return a * b + c
    elif INTERPRETED:
        return (a.to(tl.float64) * b + c).to(tl.float32)
    else:
        return tl.fma(a, b, c)


@triton.jit
def exp2_approx(x):
    """2^x for float32; at most 2 ulp off (PTX ``ex2.approx.ftz``); subnormal results become 0."""
    if _emits_ptx():
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal_approx(x):
    """1/x for float32; at most 1 ulp off (PTX ``rcp.approx.ftz``); subnormal results become 0."""
    if _emits_ptx():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def one_minus(x):
    """1 - x rounded toward zero, for a float32 x from 0 to 1 (PTX ``sub.rz``): 1 where x is 0, and only there."""
    if _emits_ptx():
        return tl.inline_asm_elementwise(
            "sub.rz.f32 $0, 0f3F800000, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        nearest = 1.0 - x
        above = (1.0 - nearest < x).to(tl.int32)  # this difference is exact
        return (nearest.to(tl.int32, bitcast=True) - above).to(tl.float32, bitcast=True)


@triton.jit
def multiply_to_odd(a, b):
    """a·b for float32, rounded to odd: where it is not exact, the neighbour whose last bit is 1.

    A float32 rounded to odd is neither a number of 22 bits or fewer nor halfway between two of those, so rounding it
    again, to nearest, decides as the exact product would.
    """
    if _emits_ptx():
        down = tl.inline_asm_elementwise(
            "mul.rm.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
        up = tl.inline_asm_elementwise(
            "mul.rp.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.where((down.to(tl.int32, bitcast=True) & 1) != 0, down, up)
    else:
        product = a.to(tl.float64) * b  # exact
        nearest = product.to(tl.float32)
        distance = tl.abs(product) - tl.abs(nearest)
        bits = nearest.to(tl.int32, bitcast=True)
        even = (bits & 1) == 0
        step = (even & (distance > 0)).to(tl.int32) - (even & (distance < 0)).to(tl.int32)
        return (bits + step).to(tl.float32, bitcast=True)


@triton.jit
def widen(x):
    """A 16-bit value as float32; wider types as they are.

    Spelled out for the interpreter, whose conversion of bfloat16 takes zero and subnormal numbers for normal ones.
    """
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype.primitive_bitwidth == 16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """``x.to(dtype)``, rounded to nearest even.

    Spelled out for the interpreter, whose conversion to bfloat16 truncates: adding 0x7fff, and 1 more where the last
    kept bit is odd, makes truncation round to nearest even. A NaN is quietened instead, lest the carry change it.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        rounded = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000)
        return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)
