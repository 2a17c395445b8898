"""Numbers that callers give, checked in one place; each refusal is one line.

NumPy's numbers count as Python's; truth values, texts, infinities and NaN do not count as numbers.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from lvt_pipeline.errors import ConfigError

SEED_LIMIT = 2**63  # seeds are below it, as in a TOML file and in torch


def whole_number(name: str, value: Any, *, minimum: int = 0, maximum: int | None = None) -> int:
    """A whole number as Python's int.

    Raises:
        ConfigError: another type, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name}={shown(value)} must be a whole number")
    number = int(value)
    if number < minimum:
        raise ConfigError(f"{name}={shown(number)} must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise ConfigError(f"{name}={shown(number)} must be at most {maximum}")
    return number


def seed_number(name: str, value: Any) -> int:
    """A seed as Python's int, in [0, 2^63).

    Raises:
        ConfigError: another type, or out of range.
    """
    return whole_number(name, value, maximum=SEED_LIMIT - 1)


def real_number(name: str, value: Any) -> float:
    """A finite number as Python's float.

    Raises:
        ConfigError: another type, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}={shown(value)} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{name}={shown(value)} must be a finite number")
    return number


def shown(value: Any) -> str:
    """A value as a message shows it, shortened."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print some thousand digits
        return f"(a number of {value.bit_length()} bits)"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
