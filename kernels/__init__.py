"""The Triton side of sigmoid_op. Importing this package does not import Triton; its modules do."""

if __name__ != "sigmoid_op.kernels":
    raise ImportError(
        f"this folder is the package sigmoid_op.kernels, not {__name__!r} "
        "(which on PyPI is a different project); import sigmoid_op instead"
    )
