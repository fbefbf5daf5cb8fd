"""Run the whole GPU programme: tests, accuracy, the grid, the family, recorded calls, host profile, training, tuning.

The parts run in order of worth, each in a process of its own, and write their files as they end. When the time is
spent, the part that runs is interrupted, keeps what it has measured, and the rest is left out. Without CUDA, or with
--rehearse, every part runs with its smallest sizes: the figures mean nothing, but every line has run.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

from bench.environment import ROOT, environment, without_out
from bench.options import choose_device, device_slug, minutes, output_folder
from bench.report import output_console
from bench.results import write

RESULTS = Path(__file__).with_name("results")
SUMMARY = "programme.json"
MINUTES = 9.0
LEAST_SECONDS = 10.0  # below this no part is started: importing PyTorch and making a CUDA context take seconds
GRACE_SECONDS = 15.0  # from the interrupt to the kill: writing results, tables and plots
# What --minutes of a part that paces itself does not count, by estimate: 7 s for imports and the CUDA context, 8 s for
# a last case of 2^30 elements, 10 s for tables and plots.
UNPACED_SECONDS = 25.0

Status = Literal["done", "failed", "cut", "left out"]


@dataclass(frozen=True)
class Part:
    """A command of the programme; ``python -m`` goes before it and the place for its files after it.

    ``rehearsal``: options that make it small, after the others and so in their place. ``limit``: seconds it may take of
    the default nine minutes; all together more than there are, since most end earlier. ``paced``: it takes --minutes,
    and so ends by itself.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    rehearsal: tuple[str, ...] = ()
    paced: bool = False


PARTS: tuple[Part, ...] = (
    Part("tests", ("bench.gpu_tests",), 180, ("tests/sigmoid/test_launch.py", "tests/sigmoid/test_devices.py")),
    Part("accuracy", ("bench", "accuracy"), 80, ("--stride", "1000003")),
    Part(
        "grid", ("bench", "grid"), 190, ("--quick", "--sizes", "1", "2^12", "--dtypes", "bfloat16", "float32"),
        paced=True,
    ),
    Part(
        "family", ("bench", "grid", "--ops", "all", "--no-compile"), 90, ("--quick", "--dtypes", "bfloat16"),
        paced=True,
    ),
    Part("recorded", ("bench", "grid", "--cases", "recorded"), 75, ("--quick",), paced=True),
    # By estimate torch.compile takes half a minute for its 36 graphs, more than all timing here.
    Part(
        "compiled", ("bench", "grid", "--ops", "all", "--compile", "--sizes", "2^26", "--dtypes", "bfloat16"), 90,
        ("--quick", "--no-compile", "--sizes", "2^18"), paced=True,
    ),
    Part("host", ("bench", "host"), 40, ("--rounds", "3")),
    Part("ways_in", ("bench", "ways_in"), 40),
    Part("digits", ("bench", "train"), 40, ("--steps", "5")),
    # About 20 s at an estimated 3 ms a step; with its defaults, 800 steps and 10 seeds, it would take 100 s.
    Part("revive", ("bench", "revive", "--steps", "400", "--seeds", "3"), 45, ("--steps", "3", "--seeds", "1")),
    Part("multilabel", ("bench", "train", "--task", "multilabel"), 45, ("--steps", "3")),
    Part("tune", ("bench", "tune"), 210, ("--rehearse",), paced=True),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of a part. ``files`` and ``log`` are relative to the programme's folder."""

    part: str
    command: list[str]
    status: Status
    seconds: float = 0.0
    exit_code: int | None = None
    log: str = ""
    files: list[str] = field(default_factory=list)
    failed_tests: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [part.name for part in PARTS]
    parser.add_argument("--minutes", type=minutes, default=MINUTES, help="time for everything (default: %(default)g)")
    parser.add_argument(
        "--parts", nargs="+", choices=names, metavar="PART", default=names,
        help=f"some of {', '.join(names)} (default: all, in this order)",
    )  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="smallest sizes (default without CUDA)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: bench/results/<gpu>; bench/out/<time> in a rehearsal)",
    )


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 if a part failed (not if time ended it), 2 for a folder in use, 130 when interrupted."""
    device = choose_device(None)
    rehearse = args.rehearse or device.type == "cpu"
    folder: Path = output_folder(args.out, device) if args.out or rehearse else RESULTS / device_slug(device)
    if (folder / SUMMARY).exists():
        print(f"python -m bench gpu: error: {folder} holds a run already: name another with --out", file=sys.stderr)
        return 2
    folder = folder.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    # A shell starts what it runs in the background with SIGINT ignored, which the parts would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [part for part in PARTS if part.name in args.parts]
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for outcome in programme(chosen, folder, 60 * args.minutes, rehearse=rehearse):
            outcomes.append(outcome)
            _save(folder / SUMMARY, device, args.minutes, rehearse, outcomes)
            _tell(outcome, folder)
    except KeyboardInterrupt:
        interrupted = True
    output_console().print(_table(outcomes, folder, rehearse))
    if interrupted:
        return 130
    return int(any(outcome.status == "failed" for outcome in outcomes))


def programme(parts: list[Part], folder: Path, seconds: float, *, rehearse: bool) -> Iterator[Outcome]:
    """Run part after part within ``seconds``, yielding what became of each. If they are few, they share all of it."""
    end = time.monotonic() + seconds
    stretch = seconds / min(60 * MINUTES, sum(part.limit for part in parts))
    for part in parts:
        left = end - time.monotonic()
        limit = min(part.limit * stretch, left) - GRACE_SECONDS
        line = command(part, folder, limit, rehearse=rehearse)
        if limit < LEAST_SECONDS:
            yield Outcome(part.name, without_out(line[1:]), "left out")
            continue
        (folder / part.name).mkdir(exist_ok=True)
        print(f"{part.name}: {' '.join(line[1:])} (at most {limit:.0f} s)", flush=True)
        yield _outcome(part, line, folder, limit)


def command(part: Part, folder: Path, limit: float, *, rehearse: bool) -> list[str]:
    """The command line of a part that is interrupted after ``limit`` seconds."""
    line = [sys.executable, "-m", *part.command, *(part.rehearsal if rehearse else ())]
    if part.paced:  # it ends early enough to draw its plots before it would be interrupted
        line += ["--minutes", f"{max(limit - UNPACED_SECONDS, 1) / 60:.3f}"]
    return [*line, "--out", str(folder / part.name)]


def _outcome(part: Part, line: list[str], folder: Path, limit: float) -> Outcome:
    log = folder / "logs" / f"{part.name}.log"
    start = time.monotonic()
    exit_code, cut = _execute(line, log, limit)
    seconds = round(time.monotonic() - start, 1)
    files = sorted(str(path.relative_to(folder)) for path in (folder / part.name).rglob("*") if path.is_file())
    failed_tests = [name for path in (folder / part.name).glob("*.xml") for name in failed_in(path)]
    status: Status = "failed" if failed_tests else "cut" if cut else "failed" if exit_code else "done"
    told = without_out(line[1:])
    return Outcome(part.name, told, status, seconds, exit_code, str(log.relative_to(folder)), files, failed_tests)


def _execute(line: list[str], log: Path, limit: float) -> tuple[int | None, bool]:
    """The exit code, None for one that had to be killed; and whether time ended it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # a part that needs the interpreter sets it itself
    # All that is compiled here are graphs of one or two kernels: starting Inductor's processes takes longer than that.
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with log.open("w") as output:
        process = subprocess.Popen(
            line, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(GRACE_SECONDS), True
            return None, True
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            raise
        finally:
            with suppress(ProcessLookupError):  # it and what it started, such as compiling and testing processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def failed_in(junit: Path) -> list[str]:
    """The tests that failed, or whose setup did, by the file that ``pytest --junitxml`` wrote."""
    try:
        cases = list(ElementTree.parse(junit).iter("testcase"))
    except ElementTree.ParseError:  # pytest was killed while it wrote
        return []
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def _save(path: Path, device: torch.device, limit: float, rehearse: bool, outcomes: list[Outcome]) -> None:
    parts = [asdict(outcome) for outcome in outcomes]
    write(path, "gpu", environment(device), minutes=limit, rehearsal=rehearse, parts=parts)


def _tell(outcome: Outcome, folder: Path) -> None:
    """One line; of a failed part also the failed tests and the end of its log."""
    print(f"{outcome.part}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    if outcome.status == "failed":
        for name in outcome.failed_tests:
            print(f"  FAILED {name}")
        lines = (folder / outcome.log).read_text(errors="replace").splitlines()
        print(*(f"  | {line}" for line in lines[-20:]), sep="\n", flush=True)


def _table(outcomes: list[Outcome], folder: Path, rehearse: bool) -> Table:
    table = Table(title=f"{'Rehearsal' if rehearse else 'GPU programme'}, results in {folder}", title_justify="left")
    table.add_column("part")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("files")
    for outcome in outcomes:
        failed = f" ({len(outcome.failed_tests)} tests)" if outcome.failed_tests else ""
        table.add_row(outcome.part, outcome.status + failed, f"{outcome.seconds:.1f}", ", ".join(outcome.files))
    return table
