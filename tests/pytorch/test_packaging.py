"""What is installed is what is meant: one top-level name, working without Triton and without the sources beside it."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"sigmoid_op/__init__.py", "sigmoid_op/py.typed", "sigmoid_op/kernels/pointwise.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what git tracks or would track, so that no build folder of this checkout leaks in."""
    pytest.importorskip("build", reason="the wheel is built with the package `build`")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in listed:
        if not (ROOT / name).exists():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        else:
            target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_only_top_level_name_is_ours(wheel: Path) -> None:
    """The wheel installs ``sigmoid_op`` alone: no ``kernels``, ``tests`` or ``bench`` beside it."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = [name for name in names if name.endswith("top_level.txt")]
        assert archive.read(top_level).decode().split() == ["sigmoid_op"]
    folders = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert folders == {"sigmoid_op"}
    assert set(names) >= MODULES
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_works_without_the_sources(installed: Path, tmp_path: Path, interpret: str) -> None:
    """From an empty folder, the installed package imports from where it is installed and computes, kernels included."""
    if interpret == "1":
        pytest.importorskip("triton", reason="the interpreter is Triton's")
    code = (
        "import torch, sigmoid_op, sigmoid_op.dispatch as dispatch\n"
        f"assert sigmoid_op.__file__.startswith({str(installed)!r}), sigmoid_op.__file__\n"
        f"assert dispatch.INTERPRETED == ({interpret!r} == '1')\n"
        "x = torch.tensor([0.0, 100.0], requires_grad=True)\n"
        "out = sigmoid_op.SigmoidFunction.apply(x)\n"
        "out.sum().backward()\n"
        "assert out.tolist() == [0.5, 1.0] and x.grad.tolist() == [0.25, 0.0]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "TRITON_INTERPRET": interpret}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_a_users_mypy_accepts_it(wheel: Path, tmp_path: Path) -> None:
    """The installed package is typed: a program using it passes ``mypy --strict``, and a wrong use does not."""
    pytest.importorskip("mypy", reason="the type checker")
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "from sigmoid_op import Sigmoid, sigmoid, sigmoid_\n"
        "x = torch.zeros(3)\n"
        "y: torch.Tensor = sigmoid_(sigmoid(x, out=None))\n"
        "model: torch.nn.Sigmoid = Sigmoid()\n"
    )
    python = f"--python-executable={tmp_path}/venv/bin/python"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", python, str(program)]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    program.write_text("from sigmoid_op import sigmoid\nsigmoid('x')\n")
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "arg-type" in checked.stdout
