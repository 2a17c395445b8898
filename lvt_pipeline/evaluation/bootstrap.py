"""Confidence intervals by resampling clips: how much a mean would move if other clips had been evaluated.

Percentile bootstrap (Efron 1979) of the mean. It assumes that the clips are independent draws of what one cares about;
it knows nothing of another training seed. With fewer than about twenty values the intervals come out somewhat too
narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ConfigError, ShapeError

RESAMPLES = 4000
LEVEL = 0.95
DRAWS_AT_ONCE = 4_000_000  # bounds the memory that large test sets take


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def mean_interval(values: NDArray[Any], *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Mean of the values and its interval.

    Args:
        values: finite numbers (N,), N at least 2.
        level: how often such intervals hold the true mean, between 0 and 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ShapeError: fewer than two values.
        ConfigError: the level is not between 0 and 1.
    """
    return _interval(_resampled_means(values, seed), float(np.mean(values)), level)


def difference_interval(
    values: NDArray[Any], against: NDArray[Any], *, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Difference of the means of two unrelated sets of values, each resampled by itself; arguments as above.

    For values of the same clips, give their differences to `mean_interval`: what makes a clip hard then cancels, and
    the interval is usually much narrower.
    """
    means = _resampled_means(values, seed) - _resampled_means(against, seed + 1)
    return _interval(means, float(np.mean(values) - np.mean(against)), level)


def _resampled_means(values: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Means of `RESAMPLES` draws with replacement, as many values as there are in each."""
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(f"an interval needs at least two values, found {values.shape}")
    generator = np.random.default_rng(seed)
    at_once = max(DRAWS_AT_ONCE // len(values), 1)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        parts.append(values[generator.integers(0, len(values), (count, len(values)))].mean(1))
    return np.concatenate(parts)


def _interval(means: NDArray[np.float64], mean: float, level: float) -> Interval:
    if not 0 < level < 1:
        raise ConfigError(f"level={level} must lie between 0 and 1, such as {LEVEL}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
