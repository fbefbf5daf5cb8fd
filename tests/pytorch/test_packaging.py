"""What is installed is what is meant: one top-level name, typed, working without the sources; an sdist tests itself."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

import sigmoid_op

ROOT = Path(__file__).parents[2]
ADDRESSES = (
    "https://github.com/sigmoid-op/sigmoid_op/blob/main/",
    "https://raw.githubusercontent.com/sigmoid-op/sigmoid_op/main/",
)
LEFTOVERS = shutil.ignore_patterns(
    ".git", ".venv*", ".editable", ".*cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "out"
)


def _files(root: Path, *folders: str) -> set[str]:
    """The files below some folders, links followed, caches and results of one's own left out."""
    found = set()
    for folder in folders:
        for parent, names, files in os.walk(root / folder, followlinks=True):
            names[:] = [name for name in names if name not in ("__pycache__", "out")]
            found |= {str(Path(parent, file).relative_to(root)) for file in files if not file.endswith(".pyc")}
    return found


def _run(site: Path | None, cwd: Path, *arguments: str, **environment: str) -> None:
    path = {"PYTHONPATH": str(site)} if site else {}
    command = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | path | environment
    subprocess.run([sys.executable, *arguments], check=True, cwd=cwd, env=command)


def _unpacked(folder: Path) -> Path:
    """The contents of the one wheel in it."""
    (archive,) = folder.glob("*.whl")
    shutil.unpack_archive(archive, folder / "site", "zip")
    return folder / "site"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that no build folder of it leaks in and none is left behind."""
    pytest.importorskip("build", reason="wheels and sdists are built with the package `build`")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "source", symlinks=True, ignore=LEFTOVERS))


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    _run(None, out, "-m", "build", "--no-isolation", "--outdir", str(out), str(source))
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """A folder that holds what the wheel installs."""
    return _unpacked(built)


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    """The root of the unpacked sdist."""
    (archive,) = built.glob("*.tar.gz")
    shutil.unpack_archive(archive, built, filter="data")
    return built / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what ``pip install --editable`` installs."""
    out = tmp_path_factory.mktemp("editable")
    code = f"from build import ProjectBuilder; ProjectBuilder({str(source)!r}).build('editable', {str(out)!r})"
    _run(None, out, "-c", code)
    return _unpacked(out)


def test_the_wheel_holds_what_runs(wheel: Path) -> None:
    """The wheel has every file of the library and its kernels, and nothing else: no benchmark, no tests."""
    (metadata,) = (folder.name for folder in wheel.iterdir() if folder.name != "sigmoid_op")
    assert _files(wheel, "sigmoid_op") == _files(ROOT, "sigmoid_op")
    assert (wheel / metadata / "top_level.txt").read_text().split() == ["sigmoid_op"]


def test_metadata(wheel: Path) -> None:
    """One version everywhere; and a description whose links and pictures work away from the repository."""
    (folder,) = wheel.glob("*.dist-info")
    metadata = PathDistribution(folder).metadata
    assert metadata["Version"] == sigmoid_op.__version__
    assert f"\n## [{sigmoid_op.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL") or []} >= {"Homepage", "Changelog", "Issues"}
    description = str(metadata.get_payload())  # type: ignore[attr-defined]  # it is an email.message.Message
    assert "$$" not in description, "PyPI renders no formulas"
    for target in re.findall(r"\]\(([^)#]+)", description) + re.findall(r'(?:src|href)="([^"#]+)', description):
        assert target.startswith("https://"), f"{target} is relative"
        for address in ADDRESSES:
            if target.startswith(address):
                assert (ROOT / target.removeprefix(address)).exists(), target


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_works_without_the_sources(wheel: Path, tmp_path: Path, interpret: str) -> None:
    """From an empty folder, the installed package imports from where it is installed and computes, kernels included."""
    if interpret == "1":
        pytest.importorskip("triton", reason="the interpreter is Triton's")
    code = (
        "import torch, sigmoid_op, sigmoid_op.dispatch as dispatch\n"
        f"assert sigmoid_op.__file__.startswith({str(wheel)!r}), sigmoid_op.__file__\n"
        f"assert dispatch.INTERPRETED == ({interpret!r} == '1')\n"
        "x = torch.tensor([0.0, 100.0], requires_grad=True)\n"
        "out = sigmoid_op.SigmoidFunction.apply(x)\n"
        "out.sum().backward()\n"
        "assert out.tolist() == [0.5, 1.0] and x.grad.tolist() == [0.25, 0.0]\n"
    )
    _run(wheel, tmp_path, "-c", code, TRITON_INTERPRET=interpret)


def test_the_sdist_tests_itself(sdist: Path) -> None:
    """The sdist has all that the tests need, and a test file passes in it, unbuilt and uninstalled."""
    folders = ("bench", "docs", "examples", "kernels", "sigmoid_op", "tests")
    assert _files(sdist, *folders) == _files(ROOT, *folders)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt"):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    _run(None, sdist, "-m", "pytest", *options, "tests/sigmoid/test_in_place.py")


def test_an_editable_install_shows_one_name(editable: Path, tmp_path: Path) -> None:
    """An editable install is a plain path to a folder where sigmoid_op, and nothing else, can be imported."""
    (pth,) = editable.glob("*.pth")
    folder = Path(pth.read_text().strip())
    assert [entry.name for entry in folder.iterdir()] == ["sigmoid_op"]
    code = f"import sigmoid_op, sigmoid_op.kernels; assert sigmoid_op.__file__.startswith({str(folder)!r})"
    _run(folder, tmp_path, "-c", code)


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_a_users_mypy_accepts_it(
    installed: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """The installed package is typed: a program using it passes ``mypy --strict``, and a wrong use does not."""
    pytest.importorskip("mypy", reason="the type checker")
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib"))
    shutil.copytree(request.getfixturevalue(installed), site, dirs_exist_ok=True)
    (tmp_path / "right.py").write_text(
        "import torch\n"
        "from sigmoid_op import Sigmoid, sigmoid, sigmoid_\n"
        "x = torch.zeros(3)\n"
        "y: torch.Tensor = sigmoid_(sigmoid(x, out=None))\n"
        "model: torch.nn.Sigmoid = Sigmoid()\n"
    )
    (tmp_path / "wrong.py").write_text("from sigmoid_op import sigmoid\nsigmoid('x')\n")
    options = [
        "--strict",
        "--config-file=",
        f"--python-executable={tmp_path}/venv/bin/python",
        f"--cache-dir={tmp_path_factory.getbasetemp()}/mypy",  # PyTorch's types are read once for both installs
    ]
    command = [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert line.startswith("wrong.py:2:")
    assert "[arg-type]" in line


# What transformers 5 does to find Hugging Face's package `kernels`, in the order that reaches furthest.
LOOK_FOR_KERNELS = """
import importlib, importlib.metadata, importlib.util
found = importlib.util.find_spec("kernels") is not None
try:
    version = importlib.metadata.version("kernels")
except importlib.metadata.PackageNotFoundError:
    version = importlib.import_module("kernels").__version__ if found else "0"
"""


@pytest.mark.parametrize("here", [True, False], ids=["in the checkout's root", "by PYTHONPATH"])
def test_a_checkout_is_not_hugging_faces_kernels(here: bool, tmp_path: Path) -> None:
    """A checkout on sys.path passes for no release of the package ``kernels``, and its import raises nothing."""
    code = (
        f"{LOOK_FOR_KERNELS}assert version == '0'\ntry:\n    from kernels import get_kernel\nexcept ImportError: pass"
    )
    _run(None if here else ROOT, ROOT if here else tmp_path, "-c", code)


@pytest.mark.parametrize("first", [True, False], ids=["before the checkout", "after the checkout"])
def test_hugging_faces_kernels_wins(first: bool, tmp_path: Path) -> None:
    """Where a package ``kernels`` is installed, it is what ``import kernels`` gives, submodules included."""
    (tmp_path / "kernels" / "layer").mkdir(parents=True)
    (tmp_path / "kernels" / "__init__.py").write_text("from .layer.mode import Mode\n__version__ = '9.9'\n")
    (tmp_path / "kernels" / "layer" / "mode.py").write_text("import kernels.layer\nclass Mode: ...\n")
    paths = [tmp_path, ROOT] if first else [ROOT, tmp_path]
    code = (
        f"{LOOK_FOR_KERNELS}assert version == '9.9'\n"
        "import kernels, kernels.layer.mode\n"
        f"assert kernels.__file__.startswith({str(tmp_path)!r}) and kernels.Mode is kernels.layer.mode.Mode"
    )
    _run(None, tmp_path / "kernels", "-c", code, PYTHONPATH=os.pathsep.join(map(str, paths)))
