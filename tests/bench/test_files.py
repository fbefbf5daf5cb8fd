"""What a results file tells of where it comes from: the arguments, the sources, and how it is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import environment
from bench.environment import without_out
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


@pytest.mark.parametrize("source", ["bench/accuracy/float32.c", "kernels/scalar.py", "sigmoid_op/ops/silu.py"])
def test_the_digest_is_of_every_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed Python or C file of the library or the benchmark changes it, in any folder; another file does not."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    path = tmp_path / source
    path.parent.mkdir(parents=True)
    path.write_text("")
    before = environment.sources_sha256()
    (path.parent / "README.md").write_text("")
    assert environment.sources_sha256() == before
    path.write_text("\n")
    assert environment.sources_sha256() != before


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
    parts = {"items": [{"name": "σ", "samples": [1.5, 2.0]}, {"samples": []}], "groups": {"a": [1, 2]}, "none": []}
    write(path, "test", {"torch": "2.13", "gpu": None}, **parts)
    first = {"schema": 1, "kind": "test", "environment": {"torch": "2.13", "gpu": None}}
    assert json.loads(path.read_text()) == {**first, **parts}
    assert {'  {"name": "σ", "samples": [1.5, 2.0]},', '  "a": [1, 2]'} <= set(path.read_text().splitlines())
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
