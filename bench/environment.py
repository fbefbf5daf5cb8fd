"""Where and with what a measurement was made."""

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from sigmoid_op import dispatch

ROOT = Path(__file__).resolve().parents[1]
_NVIDIA_SMI = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def environment(device: torch.device) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the run; None for what this machine does not tell."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": without_out(sys.argv[1:]),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "sources_sha256": sources_sha256(),
        "device": device_name(device),
        "device_type": device.type,
        "gpu": gpu(device) if device.type == "cuda" else None,
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "min_elements": dispatch.MIN_ELEMENTS,
        "interpreted": dispatch.INTERPRETED,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "os": platform.platform(),
    }


def one_line(where: dict[str, Any]) -> str:
    """What a table's reader wants to know of it."""
    commit = f"commit {(where['commit'] or 'unknown')[:12]}{' with changes' if where['dirty'] else ''}"
    versions = f"torch {where['torch']}, Triton {where['triton']}, Python {where['python']}"
    return f"{where['device']}, {versions}, {commit}, {where['date'][:10]}"


def without_out(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--out`` and the path that follows it, which says nothing of what was run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", nargs="?")
    return parser.parse_known_args(arguments)[1]


def sources_sha256() -> str:
    """A digest of the Python and C files of library and benchmark: it ties a run to a commit where there is no git."""
    digest = hashlib.sha256()
    for folder in ("bench", "kernels", "sigmoid_op"):
        for path in sorted((ROOT / folder).rglob("*.*")):  # not through links: sigmoid_op/kernels is kernels
            if path.suffix in (".py", ".c"):
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({_cpu_model()})"


def gpu(device: torch.device) -> dict[str, Any]:
    """The GPU as torch and, where it is there, nvidia-smi describe it; the clocks are those of this moment, in MHz."""
    properties = torch.cuda.get_device_properties(device)
    query = f"--query-gpu={_NVIDIA_SMI}"
    described = _output("nvidia-smi", f"--id=GPU-{properties.uuid}", query, "--format=csv,noheader,nounits")
    values = described.split(", ") if described else []
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        **dict(zip_longest(_NVIDIA_SMI.split(","), values)),
    }


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_model() -> str:
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    return model[1] if model else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
