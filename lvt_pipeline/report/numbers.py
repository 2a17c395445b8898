"""Numbers as text for people."""

from __future__ import annotations

import math

from lvt_pipeline.evaluation.metrics import psnr


def format_number(value: float | str) -> str:
    """A number as a person would write it: three significant digits, thousands as k and M. Text stays as it is."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= unit and (unit > 1e3 or size >= 1e4):
            return f"{_three_digits(value / unit)}{name}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_fact(value: float | str) -> str:
    """A fact of a record: whole numbers in full, others with three significant digits."""
    return f"{value:,}" if isinstance(value, int) else format_number(value)


def format_decibels(mse: float) -> str:
    """PSNR of a squared error in [0, 1], in dB without the unit."""
    return f"{psnr(mse):.2f}" if mse > 0 else "∞"


def format_change(value: float, other: float) -> str:
    """How a number compares with a baseline: "23% less than 2.410"."""
    if other and value > 2 * other:
        return f"{value / other:.1f} times {other:.3f}"
    share = abs(1 - value / other) if other else 0.0
    return f"{share:.0%} {'less' if value < other else 'more'} than {other:.3f}"


def format_spread(mean: float, std: float | None) -> str:
    """A mean with its standard deviation where there is one: "125.8 ± 2.9"."""
    if std is None:
        return format_number(mean)
    decimals = max(0, 1 - math.floor(math.log10(std))) if std > 0 else 4
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"
