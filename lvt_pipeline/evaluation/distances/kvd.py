"""Kernel video distance: how far two sets of videos are from each other, without the bias of FVD for few videos.

It is the squared maximum mean discrepancy (Gretton et al. 2012) of feature vectors of F numbers with the polynomial
kernel k(x, y) = (x·y / F + 1)^3 (Binkowski et al. 2018). A generated video continues or repeats a real clip, so the two
sets are paired, and only pairs of different clips count:

    mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

Its expectation is the true distance for any number of clips (their Lemma 6, which holds for pairs that depend on each
other), so it may be a little below 0 where the true distance is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError

LEVEL = 0.95
RESAMPLES = 1000
_AT_ONCE = 1024  # clips of a block of the matrix of pairs
CARD = (
    "squared MMD, kernel (x·y / F + 1)^3, unbiased: pairs of different clips; "
    f"{LEVEL:.0%} bootstrap interval over clips, {RESAMPLES:,} resamples"
)


@dataclass(frozen=True)
class KernelDistance:
    """A distance and the interval around it."""

    value: float
    low: float
    high: float


def kernel_distance(
    real: NDArray[np.float64], other: NDArray[np.float64], owners: NDArray[np.int64] | None = None, *, seed: int = 0
) -> KernelDistance:
    """The distance of paired sets of feature vectors, with its bootstrap interval over clips.

    A resample takes clips with replacement, and both videos of each. Two copies of a clip are not a pair of different
    clips, so resamples have no other expectation than the distance itself.

    Args:
        real: (N, F), a vector for each clip.
        other: (M, F), at least one for each clip; several are averaged.
        owners: (M,), which clip each of `other` belongs to, ascending; by default one for each.

    Raises:
        ShapeError: fewer than two clips, or sets that do not belong together.
    """
    owners = np.arange(len(real)) if owners is None else owners
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    fits = len(owners) == len(other) and np.array_equal(owners[firsts], np.arange(len(real)))
    if len(real) < 2 or not fits or real.shape[1:] != other.shape[1:]:
        raise ShapeError(f"features {real.shape} and {other.shape} are not of two clips or more and videos of each")
    weights = np.ones((RESAMPLES + 1, len(real)))  # the first row is the set itself
    weights[1:] = np.random.default_rng(seed).multinomial(len(real), np.full(len(real), 1 / len(real)), RESAMPLES)
    sums = np.zeros(RESAMPLES + 1)
    blocks = [slice(start, start + _AT_ONCE) for start in range(0, len(real), _AT_ONCE)]
    for one in blocks:
        for two in blocks:
            pairs = _pairs(real, other, owners, one, two)
            sums += ((weights[:, one] @ pairs) * weights[:, two]).sum(1)
    num_pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    distances = sums[num_pairs > 0] / num_pairs[num_pairs > 0]  # of few clips, a resample may be one clip N times
    low, high = np.quantile(distances[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return KernelDistance(float(distances[0]), float(low), float(high))


def _pairs(
    real: NDArray[np.float64], other: NDArray[np.float64], owners: NDArray[np.int64], one: slice, two: slice
) -> NDArray[np.float64]:
    """The summand of every pair of a clip in one block and a clip in another; 0 for a clip with itself."""
    videos_one, videos_two = (slice(*np.searchsorted(owners, (block.start, block.stop))) for block in (one, two))
    firsts_one = np.flatnonzero(np.diff(owners[videos_one], prepend=-1))
    firsts_two = np.flatnonzero(np.diff(owners[videos_two], prepend=-1))
    counts = np.bincount(owners)
    among_other = np.add.reduceat(_kernel(other[videos_one], other[videos_two]), firsts_one, axis=0)
    among_other = np.add.reduceat(among_other, firsts_two, axis=1) / np.outer(counts[one], counts[two])
    across = np.add.reduceat(_kernel(real[one], other[videos_two]), firsts_two, axis=1) / counts[two]
    back = np.add.reduceat(_kernel(other[videos_one], real[two]), firsts_one, axis=0) / counts[one, None]
    pairs: NDArray[np.float64] = _kernel(real[one], real[two]) + among_other - across - back
    if one == two:
        np.fill_diagonal(pairs, 0.0)
    return pairs


def _kernel(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (one @ two.T / one.shape[1] + 1) ** 3
    return found
