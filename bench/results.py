"""A run's raw data: one JSON file with the environment and every sample, and the statistics made from them."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

SCHEMA = 1
OURS, TORCH, COMPILED, COPY = "sigmoid_op", "torch", "torch.compile", "copy"
CLOCKS = WALL, COLD, WARM = "wall", "device, cold L2", "device, warm L2"
SAVE_EVERY_SECONDS = 5.0
LONGEST_REASON = 300  # characters: Inductor names its own error first, and what went wrong after it

T = TypeVar("T")
U = TypeVar("U")


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


def load(path: Path) -> dict[str, Any]:
    """A file that :func:`write` wrote; ValueError for any other."""
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "kind" not in record:
        raise ValueError(f"{path} is no results file of schema {SCHEMA}")
    return record


def run_each(make: Callable[[T], U], sources: Mapping[str, T], failures: dict[str, str]) -> dict[str, U]:
    """``make`` of each source; where one raises, ``failures`` gets the reason and the others go on."""
    made = {}
    for name, source in sources.items():
        try:
            made[name] = make(source)
        except Exception as error:
            failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
    return made


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
    """One pass of one case on one clock. ``samples_ns[form][i]``: nanoseconds of a call in round i.

    ``route``: what ran for the library, its "kernel" or "torch". ``peak_bytes``: memory of one call beyond its
    operands, on CUDA. ``failures``: why a form is missing from the samples.
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

    def time_us(self, form: str) -> Spread | None:
        samples = self.samples_ns.get(form)
        return Spread.of([ns / 1e3 for ns in samples]) if samples else None

    def gigabytes_per_second(self, form: str) -> float | None:
        """Of the bytes that the form moves: PyTorch's more than ours, also where its operators ran for ours."""
        time_us = self.time_us(form)
        of_torch = form == TORCH or (form == OURS and self.route == "torch")
        moved = self.case["pytorch_bytes"][self.pass_] if of_torch else self.bytes_moved
        return moved / time_us.median / 1e3 if time_us else None

    def ratio(self, other: str, form: str = OURS) -> Spread | None:
        """How many times as long as ``form`` did ``other`` take: above 1, ``form`` is faster.

        The quotients are taken round by round, then their median: what slows the machine for a while slows both.
        """
        pairs = zip(self.samples_ns.get(other, ()), self.samples_ns.get(form, ()), strict=False)
        quotients = [a / b for a, b in pairs]
        return Spread.of(quotients) if quotients else None


@dataclass
class Results:
    """The measurements of a run, in the file ``path``, which has ``parts``, too.

    ``status`` is "running", "interrupted", "out of time" or "complete".
    """

    path: Path
    environment: dict[str, Any] = field(default_factory=dict)
    kind: str = "measurements"
    parts: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    status: str = "running"

    def collect(self, measurements: Iterable[Measurement]) -> None:
        """Keep all of them, saved every few seconds and at the end; Ctrl-C keeps what is done."""
        saved = 0.0
        try:
            for measurement in measurements:
                self.measurements.append(measurement)
                if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    self.save()
                    saved = time.monotonic()
            if self.status == "running":
                self.status = "complete"
        except KeyboardInterrupt:
            self.status = "interrupted"
        finally:
            self.save()

    def save(self) -> None:
        measurements = [asdict(measurement) for measurement in self.measurements]
        write(self.path, self.kind, self.environment, status=self.status, **self.parts, measurements=measurements)


def load_measurements(record: Mapping[str, Any]) -> list[Measurement]:
    return [Measurement(**measurement) for measurement in record["measurements"]]


def failures(measurements: Iterable[Measurement]) -> list[str]:
    """One line for each form that was wrong, or raised, in a case."""
    lines = (
        f"{m.case['dtype']} {m.case['label']}, {form}: {reason}"
        for m in measurements
        for form, reason in m.failures.items()
    )
    return list(dict.fromkeys(lines))
