"""What a results file tells of where it comes from: the arguments, the sources, and how it is written."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bench import environment
from bench.environment import ROOT, without_out
from bench.results import write


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["grid", "--quick", "--out", "/home/someone/results"], ["grid", "--quick"]),
        (["--out=/home/someone/results", "--sizes", "1", "2^12"], ["--sizes", "1", "2^12"]),
        (["train", "--out", "a folder", "--task", "multilabel"], ["train", "--task", "multilabel"]),
        (["gpu", "--minutes", "3", "--out"], ["gpu", "--minutes", "3"]),
    ],
)
def test_no_path_of_the_machine_is_recorded(
    arguments: list[str], kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--out`` is left out of the recorded arguments with what follows it, however it is written, and nothing else."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert environment.environment(torch.device("cpu"))["argv"] == without_out(arguments) == kept


def test_the_digest_is_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte in any Python or C file of the library or the benchmark changes it; another file does not."""
    folders = ("bench", "kernels", "sigmoid_op")
    for folder in folders:
        ignored = shutil.ignore_patterns("__pycache__", "results", "out")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    before = environment.sources_sha256()
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.sources_sha256() == before
    sources = [path for folder in folders for end in ("py", "c") for path in (tmp_path / folder).rglob(f"*.{end}")]
    assert {"float32.c", "dispatch.py", "formulas.py", "silu.py"} <= {path.name for path in sources}
    for path in sources:
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        assert environment.sources_sha256() != before, path
        path.write_bytes(text)
    (tmp_path / "bench" / "README.md").write_text("")
    assert environment.sources_sha256() == before


def test_a_file_has_an_item_a_line(tmp_path: Path) -> None:
    """Schema, kind and environment stand in every file; a change of one item is a change of one line."""
    path = tmp_path / "file.json"
    items = [{"name": "σ", "samples": [1.5, 2.0]}, {"name": "copy", "samples": []}]
    write(path, "test", {"torch": "2.13", "gpu": None}, items=items, groups={"a": [1, 2], "b": {}}, steps=3, none=[])
    assert json.loads(path.read_text()) == {
        "schema": 1,
        "kind": "test",
        "environment": {"torch": "2.13", "gpu": None},
        "items": items,
        "groups": {"a": [1, 2], "b": {}},
        "steps": 3,
        "none": [],
    }
    lines = path.read_text().splitlines()
    assert '  {"name": "σ", "samples": [1.5, 2.0]},' in lines
    assert '  "a": [1, 2],' in lines
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
