"""Numbers and durations as a person would write them."""

from __future__ import annotations

import math

from lvt_pipeline.evaluation.metrics import psnr
from lvt_pipeline.report.charts import spoken_number


def spoken_decibels(mse: float) -> str:
    """PSNR of a squared error, as a text."""
    return f"{psnr(mse):.2f}" if mse > 0 else "∞"


def spoken_change(value: float, other: float) -> str:
    """How a number compares with a baseline: "23% less than 2.410"."""
    if other and value > 2 * other:
        return f"{value / other:.1f} times {other:.3f}"
    share = abs(1 - value / other) if other else 0.0
    return f"{share:.0%} {'less' if value < other else 'more'} than {other:.3f}"


def spoken_spread(mean: float, std: float | None) -> str:
    """A mean with its standard deviation where there is one: "125.8 ± 2.9"."""
    if std is None:
        return spoken_number(mean)
    decimals = max(0, 1 - math.floor(math.log10(std))) if std > 0 else 4
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def spoken_value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else spoken_number(value)


def spoken_range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
