"""``python -m bench``: wrong options end in one line, nothing is computed for a folder that cannot be, Ctrl-C keeps."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from bench.__main__ import main, make_parser, modules
from bench.environment import ROOT
from sigmoid_op import dispatch

WRITING = ("grid", "accuracy", "proof", "codegen", "host", "tune", "gpu")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without TRITON_INTERPRET, which the tests set."""
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setattr("sigmoid_op.kernels.launch.INTERPRETED", False)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--no-such-option", "--no-such-option"),
        ("no-such-command", "no-such-command"),
        ("--dtypes int8", "int8"),
        ("--sizes 2^x", "2^x"),
        ("--sizes 0", "'0'"),
        ("--sizes 2^63", "2^63"),
        ("--minutes nan", "minutes"),
        ("host --rounds -1", "-1"),
        ("--ops glu --cases recorded", "not allowed"),
        ("report", "FILE.json"),
        ("--device cpu --sizes 2^62 --out OUT", "no case is left"),
        ("--device cpu --ops sigmoid_gate --sizes 2^62 --out OUT", "no case is left"),
        ("proof --stride 100000000 --out OUT", "at most 1048576"),
        ("figure --out x.xyz", "'xyz'"),
        ("codegen --targets sm_1 --out OUT", "no target sm_1"),
        ("report no-such-file.json", "no-such-file.json"),
        ("report pyproject.toml", "Expecting value"),
        ("report bench/recorded_calls.json", "no results file"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_what_cannot_be_ends_with_one_line(
    line: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2; the line names what was wrong; nothing is measured. Before it, what is left out for want of memory."""
    try:
        code: object = main(line.replace("OUT", str(tmp_path)).split())
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    *before, last = captured.err.splitlines()
    assert (code, captured.out) == (2, "")
    assert complaint in last
    assert all(text.startswith("Left out for want of memory: ") for text in before)


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("where", ["/proc/nope", "a file"])
@pytest.mark.usefixtures("in_this_process")
def test_a_folder_that_cannot_be_is_told_before_anything_is_computed(
    command: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2 and one line; whatever a command would compute fails here."""

    def computed(*args: object, **options: object) -> None:
        raise AssertionError("something was computed")

    for target in ("bench.run.select", "bench.accuracy.plan", "bench.accuracy.proof.build", "bench.codegen.collect",
                   "bench.host.measure", "bench.tune.crossover", "bench.gpu.programme"):  # fmt: skip
        monkeypatch.setattr(target, computed)
    (tmp_path / "file").touch()
    folder = where if where.startswith("/") else str(tmp_path / "file")
    assert main([command, "--out", folder]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"cannot write into {folder}" in captured.err


def test_every_command_makes_a_folder_of_its_own() -> None:
    """Without --out none writes into the current folder, nor where an earlier run did."""
    for command in (*WRITING, "pytorch"):
        assert make_parser().parse_args([command]).out is None


def test_help_tells_every_command_and_the_options_of_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """One ``--help`` is enough to use the program."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in (*modules(), "--cases", "--ops", "--sizes", "--quick", "--compile", "--out"))
    assert "``python -m bench" not in text.partition("Without a command")[0]  # each command by what it does


def test_a_missing_library_is_named_in_one_line(tmp_path: Path) -> None:
    """What to install, and code 2, not a traceback."""
    program = "import sys; sys.modules['rich'] = None; from bench.__main__ import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", program, "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "python -m bench needs rich: pip install rich\n")


def test_ctrl_c_while_importing_ends_in_one_line() -> None:
    """Code 130, and no traceback."""
    program = """
import builtins, sys
from bench.__main__ import main
ordinary = builtins.__import__
def interrupted(name, *args):
    if name == "torch":
        raise KeyboardInterrupt
    return ordinary(name, *args)
builtins.__import__ = interrupted
sys.exit(main([]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").rglob("*.json")), ids=lambda path: path.name)
def test_committed_results_are_readable(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Code 0, a table, and pictures into the folder asked for."""
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\n") > 8
    if path.stem in ("accuracy", "codegen"):
        assert (tmp_path / f"{path.stem}.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["accuracy", "tune"])
def test_a_command_runs_itself_in_the_interpreter(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU without TRITON_INTERPRET it is run again with it, into the same folder, and says so."""
    calls = []

    def popen(line: list[str], env: dict[str, str]) -> MagicMock:
        calls.append((line, env["TRITON_INTERPRET"]))
        process = MagicMock(returncode=3)
        process.__enter__.return_value = process
        return process

    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    assert main([command, "--device", "cpu", "--out", str(tmp_path)]) == 3
    assert calls == [([sys.executable, "-m", "bench", command, "--device", "cpu", "--out", str(tmp_path)], "1")]
    assert "interpreter" in capsys.readouterr().out
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert main([command, "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "Triton is not installed (pip install triton)" in capsys.readouterr().err


def test_timing_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of TRITON_INTERPRET=1 would be mistaken for the kernels'."""
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    assert main(["--device", "cpu"]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


def test_the_readme_s_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the file asked for, whose folder need not be there; the committed one stays as it is."""
    committed = (ROOT / "docs" / "sigmoid.png").read_bytes()
    path = tmp_path / "folder" / "sigmoid.png"
    assert main(["figure", "--out", str(path)]) == 0
    assert path.stat().st_size > 10_000
    assert str(path) in capsys.readouterr().out
    assert (ROOT / "docs" / "sigmoid.png").read_bytes() == committed
