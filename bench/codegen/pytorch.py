"""Count the instructions of PyTorch's own sigmoid kernels for sm_90, in its CUDA library, as codegen counts ours.

Needs a PyTorch built for CUDA and Triton's disassembler, but no GPU.
"""

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bench import results
from bench.cases import dtype_name
from bench.environment import environment
from bench.options import CPU, UsageError, add_out, output_folder
from bench.tables import output_console, print_files

LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
# The kernel that large contiguous tensors take, and the types of its lambda's first argument; others are complex.
_KERNEL = re.compile(rb"_ZN2at6native29vectorized_elementwise_kernelI\w+?sigmoid(?:_backward)?_kernel_cuda\w+EviT0_T1_")
_TYPES = {"d": torch.float64, "f": torch.float32, "N3c104HalfE": torch.float16, "N3c108BFloat16E": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out(parser)


def run(args: argparse.Namespace) -> int:
    """The command: 0; 2 for a PyTorch without CUDA."""
    if not LIBRARY.exists():
        raise UsageError("this PyTorch is not built for CUDA")
    path = output_folder(args.out) / "pytorch.json"
    results.write(path, "pytorch", environment(CPU), kernels=count_kernels(LIBRARY))
    print_files(path.parent, "complete", [path, *show(results.load(path), path.parent)])
    return 0


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of a pytorch.json. It has no picture."""
    title = f"PyTorch {record['environment']['torch']}, sm_90, per element"
    table = Table("kernel", "dtype", "instructions", "MUFU", title=title)
    for kernel in record["kernels"]:
        table.add_row(kernel["kernel"], kernel["dtype"], f"{kernel['instructions']:.3f}", f"{kernel['mufu']:.2f}")
    output_console().print(table)
    return []


def count_kernels(library: Path) -> list[dict[str, Any]]:
    """For each kernel and dtype the instance whose accesses are 128 bits wide, as PyTorch launches it on sm_90."""
    from triton import knobs

    symbols = {match[0].decode() for match in _KERNEL.finditer(library.read_bytes())}
    command = [knobs.nvidia.cuobjdump.path, "--dump-sass", "--gpu-architecture", "sm_90"]
    command += ["--function", ",".join(sorted(symbols)), str(library)]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for function in re.split(r"^\s*Function : ", dump, flags=re.MULTILINE)[1:]:
        symbol = function.split(maxsplit=1)[0]
        argument = re.search(f"EUl({'|'.join(_TYPES)})", symbol)
        if argument and (facts := count(function, _TYPES[argument[1]])):
            name = "backward" if "sigmoid_backward" in symbol else "forward"
            found[name, facts["dtype"]] = {"kernel": name, "symbol": symbol, **facts}
    return [found[key] for key in sorted(found, reverse=True)]


def count(sass: str, dtype: torch.dtype) -> dict[str, Any] | None:
    """Per element, from the first load to the EXIT; None for an instance with narrower accesses."""
    from bench.codegen.machine_code import read_path

    path = read_path(sass)
    accesses = [instruction for instruction in path if instruction.access]
    if {instruction.bits for instruction in accesses} != {128}:
        return None
    elements = sum(i.bits for i in accesses if i.access == "store") // (8 * dtype.itemsize)
    mufu = sum(instruction.name == "MUFU" for instruction in path)
    return {"dtype": dtype_name(dtype), "instructions": len(path) / elements, "mufu": mufu / elements}
