"""What stands in a cell of the printed tables."""

from bench.results import Measurement, Spread


def time_cell(m: Measurement, provider: str) -> str:
    """Microseconds: median (p20–p80)."""
    if provider in m.failures:
        return "failed"
    time_us = m.time_us(provider)
    return f"{number(time_us.median)} ({number(time_us.p20)}–{number(time_us.p80)})" if time_us else ""


def ratio_cell(ratio: Spread | None) -> str:
    return f"{ratio.median:.3f} ({ratio.p20:.2f}–{ratio.p80:.2f})" if ratio else ""


def number(value: float) -> str:
    """Three digits, without an exponent where there are more."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def peak_cell(m: Measurement, *providers: str) -> str:
    """MiB of each."""
    return ", ".join(f"{m.peak_bytes[name] / 2**20:.4g}" if name in m.peak_bytes else "-" for name in providers)
