"""What a results file tells of where it comes from: the arguments, the sources, and how it is written."""

import json
import shutil
import subprocess
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


def test_a_file_names_the_commit_and_whether_it_had_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD; "dirty" for a change anywhere but in the results, which a run itself writes; and the sources' digest."""

    def git(*arguments: str) -> str:
        line = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "tests").mkdir()
    (tmp_path / "bench" / "results").mkdir(parents=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    (tmp_path / "bench" / "results" / "new.json").write_text("{}")
    clean = environment.environment(torch.device("cpu"))
    (tmp_path / "tests" / "new.py").write_text("")
    changed = environment.environment(torch.device("cpu"))
    assert (clean["commit"], clean["dirty"], changed["dirty"]) == (git("rev-parse", "HEAD"), False, True)
    assert clean["sources_sha256"] == environment.sources_sha256()


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
    assert {"float32.c", "dispatch.py", "scalar.py", "silu.py"} <= {path.name for path in sources}
    for path in sources:
        text = path.read_bytes()
        path.write_bytes(text + b"\n")
        assert environment.sources_sha256() != before, path
        path.write_bytes(text)
    (tmp_path / "bench" / "README.md").write_text("")
    assert environment.sources_sha256() == before


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Who has it open while it is written anew reads the old one to its end."""
    path = tmp_path / "file.json"
    write(path, "test", {}, items=["old"])
    with path.open() as reader:
        write(path, "test", {}, items=["new"])
        assert json.load(reader)["items"] == ["old"]
    assert json.loads(path.read_text())["items"] == ["new"]


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
