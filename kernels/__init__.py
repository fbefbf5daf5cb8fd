"""The Triton side of sigmoid_op. Importing this package does not import Triton; its modules do."""

if __name__ == "kernels":
    # With a checkout on sys.path, this folder is found under the name of Hugging Face's package. Where theirs is
    # installed, become it. Elsewhere be too old for transformers, which then runs without. A folder with no __init__.py
    # would do for most versions, but transformers 5.0 to 5.10 cannot be imported beside `kernels` without a version.
    import sys
    from importlib.util import module_from_spec
    from pathlib import Path

    elsewhere = [entry for entry in sys.path if not Path(entry, "kernels", "intrinsics.py").is_file()]
    specs = (finder.find_spec(__name__, elsewhere) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None and spec.loader is not None), None)
    if spec is None or spec.loader is None:
        __version__ = "0"
    else:
        sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[__name__])
