"""What the interpreter takes, Triton's compiler takes, too."""

from bench.codegen.catalogue import FAMILY, SIGMOID
from tests.conftest import printed_by


def test_every_call_compiles() -> None:
    """The kernel of each call in the tests' tables, whatever its shapes and layouts; every formula is among them."""
    formulas = {kernel.formula.__name__ for kernel in (*SIGMOID, *FAMILY)}
    assert {*formulas, "sums_kernel"} <= set(printed_by("tests.compile_calls"))
