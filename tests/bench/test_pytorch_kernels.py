"""The count of PyTorch's own kernels: the same path, read in the same way, as that of ours."""

import argparse
from pathlib import Path

import pytest
import torch

from bench import pytorch_kernels

# Of a kernel with 128-bit accesses for whole blocks and masked ones for the rest, as cuobjdump prints it.
SASS = """
        /*0000*/                   S2R R2, SR_CTAID.X ;
        /*0010*/              @!P0 BRA 0x60 ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R4.64] ;
        /*0030*/                   MUFU.EX2 R9, R8 ;
        /*0040*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*0050*/                   EXIT ;
        /*0060*/              @!P1 LDG.E.U16 R8, desc[UR4][R4.64] ;
        /*0070*/              @!P1 STG.E.U16 desc[UR4][R2.64], R8 ;
        /*0080*/                   EXIT ;
"""


@pytest.mark.parametrize(("dtype", "elements"), [(torch.bfloat16, 8), (torch.float32, 4)], ids=str)
def test_counts_from_the_first_load_to_the_exit(dtype: torch.dtype, elements: int) -> None:
    """Of the full-block path, per element: 4 instructions, of which one is a special function."""
    facts = pytorch_kernels.count(SASS, dtype)
    assert facts == {"dtype": str(dtype)[6:], "instructions": 4 / elements, "mufu": 1 / elements}


def test_a_uniform_branch_may_fall_through() -> None:
    """BRA.U has its condition among the operands, not before it: what stands behind it belongs to the path."""
    facts = pytorch_kernels.count(SASS.replace("MUFU.EX2 R9, R8", "BRA.U UP0, 0x50"), torch.float32)
    assert facts is not None
    assert facts["instructions"] == 3 / 4  # the load, the branch and the store


def test_instances_with_narrower_accesses_are_left_out() -> None:
    """PyTorch has instances for misaligned operands, too."""
    assert pytorch_kernels.count(SASS.replace(".128", ".64"), torch.float32) is None


def test_a_pytorch_without_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build for the CPU has no library to look into."""
    monkeypatch.setattr(pytorch_kernels, "LIBRARY", tmp_path / "libtorch_cuda.so")
    assert pytorch_kernels.run(argparse.Namespace(out=tmp_path)) == 2
    assert "not built for CUDA" in capsys.readouterr().err
