"""A run's raw data: one JSON file with the environment and every sample, and the statistics made from them."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

SCHEMA = 1
KINDS = GRID, FAMILY = "grid", "family"
CLOCKS = WALL, COLD, WARM = "wall", "device, cold L2", "device, warm L2"
SAVE_EVERY_SECONDS = 5.0


def write(path: Path, kind: str, environment: dict[str, Any], **parts: Any) -> None:
    """Replace the file as a whole, so that a reader never sees half of it. Of each part an item a line."""
    record = {"schema": SCHEMA, "kind": kind, "environment": environment, **parts}
    text = ",\n".join(f' "{name}": {_lines(part)}' for name, part in record.items())
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(f"{{\n{text}\n}}\n")
    os.replace(unfinished, path)


def _lines(part: Any) -> str:
    dump = partial(json.dumps, ensure_ascii=False)
    if not part or not isinstance(part, dict | list):
        return dump(part)
    items = [f"{dump(key)}: {dump(item)}" for key, item in part.items()] if isinstance(part, dict) else map(dump, part)
    start, end = "{}" if isinstance(part, dict) else "[]"
    return f"{start}\n  " + ",\n  ".join(items) + f"\n {end}"


@dataclass(frozen=True)
class Spread:
    """A median with its 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), deciles[1], deciles[7])


@dataclass
class Measurement:
    """One pass of one case on one clock. ``samples_ns[provider][i]``: nanoseconds of a call in round i.

    ``route``: what ran for the library, its "kernel" or "torch". ``peak_bytes``: memory of one user's call beyond its
    operands, on CUDA. ``failures``: why a provider is missing from the samples.
    """

    case: dict[str, Any]
    pass_: str
    clock: str
    route: str
    bytes_moved: int
    calls_per_sample: int = 1
    samples_ns: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def time_us(self, provider: str) -> Spread | None:
        samples = self.samples_ns.get(provider)
        return Spread.of([ns / 1e3 for ns in samples]) if samples else None

    def gigabytes_per_second(self, provider: str) -> float | None:
        time_us = self.time_us(provider)
        return self.bytes_moved / time_us.median / 1e3 if time_us else None

    def ratio(self, other: str, provider: str) -> Spread | None:
        """How many times as long as ``provider`` did ``other`` take: above 1, ``provider`` is faster.

        The quotients are taken round by round, then their median: what slows the machine for a while slows both.
        """
        pairs = zip(self.samples_ns.get(other, ()), self.samples_ns.get(provider, ()), strict=False)
        quotients = [a / b for a, b in pairs]
        return Spread.of(quotients) if quotients else None


@dataclass
class Results:
    """``status`` is "running", "interrupted", "out of time" or "complete"; ``kind`` is one of KINDS."""

    path: Path
    environment: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    status: str = "running"
    kind: str = GRID
    _saved_at: float = 0.0

    def add(self, measurement: Measurement) -> None:
        """Keep it, and write the file if that was not done within the last few seconds."""
        self.measurements.append(measurement)
        if time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        measurements = [asdict(measurement) for measurement in self.measurements]
        write(self.path, self.kind, self.environment, status=self.status, measurements=measurements)
        self._saved_at = time.monotonic()

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file that ``save`` wrote; ValueError for any other."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("kind") not in KINDS:
            raise ValueError(f"{path} holds no run of the grid or the family, of schema {SCHEMA}")
        return cls(
            path, data["environment"], [Measurement(**m) for m in data["measurements"]], data["status"], data["kind"]
        )

    @property
    def failures(self) -> list[str]:
        """One line for each provider that was wrong, or raised, in a case."""
        lines = [
            f"{m.case['dtype']} {m.case['label']}, {provider}: {reason}"
            for m in self.measurements
            for provider, reason in m.failures.items()
        ]
        return list(dict.fromkeys(lines))
