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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import results
from bench.environment import ROOT, environment, without_out
from bench.options import UsageError, choose_device, device_slug, minutes, output_folder
from bench.tables import left_table, output_console, present

RESULTS = Path(__file__).with_name("results")
SUMMARY = "programme.json"
MINUTES = 9.0
LEAST_SECONDS = 10.0  # with less no part is started: importing PyTorch and making a CUDA context take seconds
GRACE_SECONDS = 15.0  # from the interrupt to the kill: writing results, tables and plots
# What --minutes of a part does not count, by estimate: 7 s for imports and the CUDA context, 8 s for a last case of
# 2^30 elements, 10 s for tables and plots.
UNPACED_SECONDS = 25.0


@dataclass(frozen=True)
class Part:
    """Arguments of Python. ``seconds``: the part's share of the time that is left, against those of the parts after it.

    In ``command``, {out} stands for the folder for its files and {minutes} for the time that it may take, where it
    paces itself. ``dry_run``: options that make it small, after the others and so in their place.
    """

    name: str
    seconds: float
    command: str
    dry_run: str = ""


_SIDE_BY_SIDE = " -n auto --maxprocesses 16 --dist loadfile" if find_spec("xdist") else ""
_GRID = "-m bench grid --out {out} --minutes {minutes}"
PARTS = (
    Part("tests", 150, "-m pytest -m gpu -q" + _SIDE_BY_SIDE,
         "tests/sigmoid/test_launch.py"),
    Part("accuracy", 70, "-m bench accuracy --out {out}", "--stride 1000003"),
    Part("sigmoid", 150, _GRID, "--quick --sizes 1 2^12 --dtypes bfloat16 float32"),
    Part("family", 120, _GRID + " --ops all --no-compile", "--quick --sizes 2^12 --dtypes bfloat16"),
    Part("host", 45, "-m bench host --out {out}", "--rounds 3"),
    Part("recorded", 60, _GRID + " --cases recorded", "--quick"),
    # By estimate torch.compile takes half a minute for its graphs, more than all timing here.
    Part("compiled", 80, _GRID + " --ops all --compile --sizes 2^26 --dtypes bfloat16",
         "--quick --no-compile --sizes 2^12"),
    Part("digits", 30, "examples/digits.py --out {out}", "--steps 5"),
    # About 20 s at an estimated 3 ms a step; with its defaults, 800 steps and 10 seeds, it would take 100 s.
    Part("saturated_gates", 40, "examples/saturated_gates.py --out {out} --steps 400 --seeds 3", "--steps 3 --seeds 1"),
    Part("multilabel", 40, "examples/multilabel.py --out {out}", "--steps 3"),
    Part("swiglu_block", 30, "examples/swiglu_block.py --out {out}", "--steps 3"),
    Part("tune", 200, "-m bench tune --out {out} --minutes {minutes}", "--dry-run"),
)  # fmt: skip


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
    path = folder / SUMMARY
    if path.exists():
        raise UsageError(f"{folder} holds a run already: name another with --out")
    (folder / "logs").mkdir(exist_ok=True)
    # A shell starts what it runs in the background with SIGINT ignored, which the parts would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [part for part in PARTS if part.name in args.parts]
    parts: list[dict[str, Any]] = []
    print(f"{len(chosen)} parts, at most {args.minutes:g} minutes.", flush=True)

    def save(status: str) -> None:
        where = environment(device)
        results.write(path, "gpu", where, status=status, minutes=args.minutes, dry_run=dry, parts=parts)

    status = "interrupted"
    with suppress(KeyboardInterrupt):
        for outcome in programme(chosen, folder, 60 * args.minutes, dry=dry):
            parts.append(outcome)
            save(status)
            _tell(outcome, folder)
        status = "complete"
    if not parts:
        raise KeyboardInterrupt
    save(status)
    present(path, show)
    return 130 if status == "interrupted" else int(any(outcome["status"] == "failed" for outcome in parts))


def programme(parts: list[Part], folder: Path, seconds: float, *, dry: bool) -> Iterator[dict[str, Any]]:
    """Run part after part within ``seconds``, each in its share of what is left, yielding what became of it."""
    end = time.monotonic() + seconds
    for i, part in enumerate(parts):
        left = end - time.monotonic()
        limit = part_limit(part, parts[i:], left)
        # A part that paces itself ends early enough to draw its plots before it would be interrupted.
        places = {"out": folder / part.name, "minutes": f"{max(limit - UNPACED_SECONDS, 1) / 60:.3f}"}
        line = [piece.format(**places) for piece in f"{part.command} {part.dry_run if dry else ''}".split()]
        told = {"part": part.name, "command": without_out(line)}
        if left < LEAST_SECONDS + GRACE_SECONDS:
            yield {**told, "status": "left out", "seconds": 0.0, "files": [], "failures": []}
            continue
        print(f"{part.name}: {' '.join(told['command'])} (at most {limit:.0f} s)", flush=True)
        yield {**told, **_outcome(part.name, line, folder, limit)}


def part_limit(part: Part, waiting: list[Part], left: float) -> float:
    """Seconds until a part is interrupted: its share, but enough to start, and never beyond the end."""
    share = left * part.seconds / sum(other.seconds for other in waiting)
    return min(max(share, LEAST_SECONDS + GRACE_SECONDS), left) - GRACE_SECONDS


def _outcome(name: str, line: list[str], folder: Path, limit: float) -> dict[str, Any]:
    """What became of a part: "done", "cut" by time, or "failed"; paths are relative to ``folder``."""
    log = folder / "logs" / f"{name}.log"
    start = time.monotonic()
    exit_code, cut = _execute([sys.executable, *line], log, limit)
    lines = log.read_text(errors="replace").splitlines()
    failures = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return {
        "status": "failed" if failures or (exit_code and not cut) else "cut" if cut else "done",
        "seconds": round(time.monotonic() - start, 1),
        "exit_code": exit_code,
        "log": str(log.relative_to(folder)),
        "files": sorted(str(path.relative_to(folder)) for path in (folder / name).rglob("*") if path.is_file()),
        "failures": failures,
    }


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
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as end:
            process.send_signal(signal.SIGINT)
            exit_code = None
            with suppress(subprocess.TimeoutExpired):
                exit_code = process.wait(GRACE_SECONDS)
            if isinstance(end, KeyboardInterrupt):
                raise
            return exit_code, True
        finally:
            with suppress(ProcessLookupError):  # it and what it started, such as compiling and testing processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tell(outcome: dict[str, Any], folder: Path) -> None:
    """One line, and of a failed part the end of its log."""
    print(f"{outcome['part']}: {outcome['status']} after {outcome['seconds']:.0f} s", flush=True)
    if outcome["status"] == "failed":
        lines = (folder / outcome["log"]).read_text(errors="replace").splitlines()
        print(*(f"  | {line}" for line in lines[-20:]), sep="\n", flush=True)


def show(record: dict[str, Any], folder: Path) -> list[Path]:
    """Print the table of a programme.json. It has no picture."""
    table = left_table("Dry run" if record["dry_run"] else "GPU programme", ["part", "status"], ["seconds"])
    table.add_column("files")
    for outcome in record["parts"]:
        failed = f" ({len(outcome['failures'])} failures)" if outcome.get("failures") else ""
        files = ", ".join(outcome["files"])
        table.add_row(outcome["part"], outcome["status"] + failed, f"{outcome['seconds']:.1f}", files)
    output_console().print(table)
    return []
