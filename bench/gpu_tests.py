"""Run the GPU tests, several files at once: most of a test's time is compiling its kernels, which the host does.

``python -m bench.gpu_tests --out FOLDER`` needs pytest and what the tests import, hypothesis, mpmath, rich,
matplotlib and scikit-learn, and leaves a junit file per test file.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from bench.environment import ROOT

PROCESSES = max(2, min(16, (os.cpu_count() or 2) - 2))
# They compile the most kernels, or run whole commands of the benchmark, and come first: none of them is left to run
# alone at the end.
LONGEST = (
    "family/test_layouts", "family/test_gradients", "family/test_loss_accuracy", "bench/test_gpu_programme",
    "bench/test_family", "bench/test_commands_and_checks", "family/test_losses", "family/test_results",
    "pytorch/test_family_subsystems", "sigmoid/test_tiled",
)  # fmt: skip
NO_TESTS_COLLECTED = 5  # pytest's exit code for a file in which no test is for a GPU
POLL_SECONDS, WRITING_SECONDS = 0.1, 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_tests", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="test files (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the junit files")
    args = parser.parse_args()
    # A shell starts what it runs in the background with SIGINT ignored, which every pytest would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    every_file = sorted((ROOT / "tests").rglob("test_*.py"))
    longest = [ROOT / "tests" / f"{name}.py" for name in LONGEST]
    files: list[Path] = args.files or longest + [file for file in every_file if file not in longest]
    return run(files, args.out)


def run(files: list[Path], folder: Path) -> int:
    """1 if a test failed, else 0; 130 when interrupted, as every pytest then is, and writes what it has."""
    waiting, running = list(files), dict[Path, subprocess.Popen[str]]()
    failed = False
    try:
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                file = waiting.pop(0)
                running[file] = _start(file, folder)
            time.sleep(POLL_SECONDS)
            for file in [file for file, process in running.items() if process.poll() is not None]:
                failed |= _tell(file, running.pop(file), folder)
    except KeyboardInterrupt:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(WRITING_SECONDS)
        return 130
    return int(failed)


def _name(file: Path) -> str:
    """That of its room, too: two rooms may have files of one name."""
    return f"{file.parent.name}-{file.stem}"


def _start(file: Path, folder: Path) -> subprocess.Popen[str]:
    output = (folder / f"{_name(file)}.log").open("w")
    junit = folder / f"{_name(file)}.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--quiet", f"--junitxml={junit}", str(file)]
    with output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)


def _tell(file: Path, process: subprocess.Popen[str], folder: Path) -> bool:
    """Print how a file's tests went, and why those that failed did; whether one did."""
    failed = process.returncode not in (0, NO_TESTS_COLLECTED)
    lines = (folder / f"{_name(file)}.log").read_text(errors="replace").splitlines()
    print(*(lines if failed else lines[-1:]), sep="\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
