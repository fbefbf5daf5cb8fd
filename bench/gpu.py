"""Run the whole GPU programme: tests, accuracy, σ, the family, recorded calls, host time, examples, tuning.

The parts run in priority order, each in a process of its own, and write their files as they end. A part gets its share
of the time that is left; when it is spent, the part is interrupted and keeps what it has measured. A part is left out
only when no time is left. Without CUDA, or with --dry-run, every part runs with its smallest sizes: the figures mean
nothing, but every line has run.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from bench import results
from bench.environment import ROOT, environment, without_out
from bench.options import UsageError, choose_device, device_slug, minutes, output_folder
from bench.tables import output_console, print_files

RESULTS = Path(__file__).with_name("results")
SUMMARY = "programme.json"
MINUTES = 9.0
LEAST_SECONDS = 10.0  # with less no part is started: importing PyTorch and making a CUDA context take seconds
GRACE_SECONDS = 15.0  # from the interrupt to the kill: writing results, tables and plots
# What --minutes of a part that paces itself does not count, by estimate: 7 s for imports and the CUDA context, 8 s for
# a last case of 2^30 elements, 10 s for tables and plots.
UNPACED_SECONDS = 25.0

Status = Literal["done", "failed", "cut", "left out"]


@dataclass(frozen=True)
class Part:
    """A command of the programme; Python goes before it and the place for its files after it.

    ``seconds``: its share of the time that is left, against those of the parts after it. ``dry_run``: options that make
    it small, after the others and so in their place. ``paced``: it takes --minutes, and so ends by itself.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    dry_run: tuple[str, ...] = ()
    paced: bool = False
    out: str = "--out={}"


def _bench(name: str, command: str, seconds: float, dry_run: str = "", *, paced: bool = False) -> Part:
    return Part(name, ("-m", "bench", *command.split()), seconds, tuple(dry_run.split()), paced)


def _example(name: str, seconds: float, dry_run: str, options: str = "") -> Part:
    return Part(name, (f"examples/{name}.py", *options.split()), seconds, tuple(dry_run.split()))


_SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "16", "--dist", "loadfile") if find_spec("xdist") else ()
PARTS: tuple[Part, ...] = (
    Part("tests", ("-m", "pytest", "-m", "gpu", "-q", *_SIDE_BY_SIDE), 150,
         ("tests/sigmoid/test_launch.py", "tests/sigmoid/test_devices.py"), out="--junitxml={}/junit.xml"),
    _bench("accuracy", "accuracy", 70, "--stride 1000003"),
    _bench("sigmoid", "grid", 150, "--quick --sizes 1 2^12 --dtypes bfloat16 float32", paced=True),
    _bench("family", "grid --ops all --no-compile", 120, "--quick --sizes 2^12 --dtypes bfloat16", paced=True),
    _bench("host", "host", 45, "--rounds 3"),
    _bench("recorded", "grid --cases recorded", 60, "--quick", paced=True),
    # By estimate torch.compile takes half a minute for its graphs, more than all timing here.
    _bench("compiled", "grid --ops all --compile --sizes 2^26 --dtypes bfloat16", 80,
           "--quick --no-compile --sizes 2^12", paced=True),
    _example("digits", 30, "--steps 5"),
    # About 20 s at an estimated 3 ms a step; with its defaults, 800 steps and 10 seeds, it would take 100 s.
    _example("saturated_gates", 40, "--steps 3 --seeds 1", "--steps 400 --seeds 3"),
    _example("multilabel", 40, "--steps 3"),
    _example("swiglu_block", 30, "--steps 3"),
    _bench("tune", "tune", 200, "--dry-run", paced=True),
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
    parser.add_argument("--dry-run", action="store_true", help="smallest sizes (default without CUDA)")
    parser.add_argument(
        "--out", type=Path, help="folder (default: bench/results/<gpu>; bench/out/<time>-<device> for a dry run)"
    )


def run(args: argparse.Namespace) -> int:
    """The command: 0, 1 if a part failed (not if time ended it), 2 for a folder in use, 130 when interrupted."""
    device = choose_device(None)
    dry = args.dry_run or device.type == "cpu"
    folder = output_folder(args.out or (None if dry else RESULTS / device_slug(device)), device).resolve()
    if (folder / SUMMARY).exists():
        raise UsageError(f"{folder} holds a run already: name another with --out")
    (folder / "logs").mkdir(exist_ok=True)
    # A shell starts what it runs in the background with SIGINT ignored, which the parts would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [part for part in PARTS if part.name in args.parts]
    outcomes: list[Outcome] = []
    status = "interrupted"
    print(f"{len(chosen)} parts, at most {args.minutes:g} minutes.", flush=True)
    with suppress(KeyboardInterrupt):
        for outcome in programme(chosen, folder, 60 * args.minutes, dry=dry):
            outcomes.append(outcome)
            parts = [asdict(outcome) for outcome in outcomes]
            results.write(folder / SUMMARY, "gpu", environment(device), minutes=args.minutes, dry_run=dry, parts=parts)
            _tell(outcome, folder)
        status = "complete"
    if not outcomes:
        raise KeyboardInterrupt
    show(results.load(folder / SUMMARY), folder)
    print_files(folder, status, [folder / SUMMARY])
    return 130 if status == "interrupted" else int(any(outcome.status == "failed" for outcome in outcomes))


def programme(parts: list[Part], folder: Path, seconds: float, *, dry: bool) -> Iterator[Outcome]:
    """Run part after part within ``seconds``, each in its share of what is left, yielding what became of it."""
    end = time.monotonic() + seconds
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        line = [sys.executable, *part.command, *(part.dry_run if dry else ())]
        if left < LEAST_SECONDS + GRACE_SECONDS:
            yield Outcome(part.name, without_out(line[1:]), "left out")
            continue
        limit = part_limit(part, parts[i:], left)
        if part.paced:  # it ends early enough to draw its plots before it would be interrupted
            line += ["--minutes", f"{max(limit - UNPACED_SECONDS, 1) / 60:.3f}"]
        (folder / part.name).mkdir(exist_ok=True)
        print(f"{part.name}: {' '.join(line[1:])} (at most {limit:.0f} s)", flush=True)
        line.append(part.out.format(folder / part.name))
        yield _outcome(part, line, folder, limit)


def part_limit(part: Part, waiting: list[Part], left: float) -> float:
    """Seconds until a part is interrupted: its share, but enough to start, and never beyond the end."""
    share = left * part.seconds / sum(other.seconds for other in waiting)
    return min(max(share, LEAST_SECONDS + GRACE_SECONDS), left) - GRACE_SECONDS


def _outcome(part: Part, line: list[str], folder: Path, limit: float) -> Outcome:
    log = folder / "logs" / f"{part.name}.log"
    start = time.monotonic()
    exit_code, cut = _execute(line, log, limit)
    seconds = round(time.monotonic() - start, 1)
    files = sorted(str(path.relative_to(folder)) for path in (folder / part.name).rglob("*") if path.is_file())
    failed_tests = [name for path in (folder / part.name).glob("*.xml") for name in failed_in(path)]
    status: Status = "failed" if failed_tests else "cut" if cut else "failed" if exit_code else "done"
    told = without_out(line[1:-1])
    return Outcome(part.name, told, status, seconds, exit_code, str(log.relative_to(folder)), files, failed_tests)


def _execute(line: list[str], log: Path, limit: float) -> tuple[int | None, bool]:
    """The exit code, None for one that had to be killed; and whether time ended it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # a part that needs the interpreter sets it itself
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))  # examples
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


def _tell(outcome: Outcome, folder: Path) -> None:
    """One line; of a failed part also the failed tests and the end of its log."""
    print(f"{outcome.part}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    if outcome.status == "failed":
        for name in outcome.failed_tests:
            print(f"  FAILED {name}")
        lines = (folder / outcome.log).read_text(errors="replace").splitlines()
        print(*(f"  | {line}" for line in lines[-20:]), sep="\n", flush=True)


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of a programme.json. It has no picture."""
    table = Table(title="Dry run" if record["dry_run"] else "GPU programme", title_justify="left")
    for heading in ("part", "status", "seconds", "files"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for outcome in record["parts"]:
        failed = f" ({len(outcome['failed_tests'])} tests)" if outcome["failed_tests"] else ""
        files = ", ".join(outcome["files"])
        table.add_row(outcome["part"], outcome["status"] + failed, f"{outcome['seconds']:.1f}", files)
    output_console().print(table)
    return []
