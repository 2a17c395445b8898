"""An order of windows that a store can be read in without holding it: a function of (seed, position) and nothing else.

An epoch passes through the shards of the store in a new random order. As many of them as make up a pool of windows are
taken together, and the windows of a pool come in random order, each at a random place of its clip. So memory holds one
pool and the next, and every clip still comes once an epoch (or `windows_per_clip` times). Pools of thousands of windows
from dozens of random shards mix as well as training needs; only clips that were neighbours on disk meet more often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# What a generator is for, so that two uses of one seed never share numbers (`data.order` has 0 and 1).
_SHARDS, _POOL = 2, 3


@dataclass(frozen=True)
class Pool:
    """Windows that are in memory together.

    Attributes:
        epoch, number: which pool of which epoch.
        first: position of its first window in the endless sequence.
        clips: int64 (N,), clips of its windows in the order they are used.
        starts: int64 (N,), first frame of each within its clip.
    """

    epoch: int
    number: int
    first: int
    clips: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """Position after its last window."""
        return self.first + len(self.clips)


class ShardOrder:
    """The endless sequence of windows of a split, shard by shard."""

    def __init__(
        self,
        shards: NDArray[np.int64],
        num_starts: NDArray[np.int64],
        seed: int,
        *,
        pool_windows: int,
        windows_per_clip: int = 1,
    ) -> None:
        """
        Args:
            shards: int64 (clips,), the shard in which each clip begins.
            num_starts: int64 (clips,), in how many places a window fits in each clip, at least 1.
            pool_windows: windows that make up a pool, at most, unless a single shard has more.
            windows_per_clip: how often a clip comes in an epoch, each time at another random place.
        """
        if not len(shards) or pool_windows < 1 or windows_per_clip < 1:
            raise ValueError(f"no order of {len(shards)} clips in pools of {pool_windows}, {windows_per_clip} each")
        self._num_starts = num_starts
        self._seed = seed
        self._pool_windows = pool_windows
        self._windows_per_clip = windows_per_clip
        self._by_shard = np.argsort(shards, kind="stable")
        _, counts = np.unique(shards, return_counts=True)
        self._ends = np.cumsum(counts)  # clips up to and including each shard, in the order of `_by_shard`
        self._counts = counts
        self.num_items = len(shards) * windows_per_clip
        self._layout = lru_cache(maxsize=4)(self._new_layout)
        self._pool = lru_cache(maxsize=4)(self._new_pool)

    def pool_at(self, position: int) -> Pool:
        """The pool that holds a position of the sequence, counted from 0."""
        epoch, within = divmod(position, self.num_items)
        return self._pool(epoch, int(np.searchsorted(self._layout(epoch)[1], within, side="right")))

    def pools(self, first: int, stop: int) -> Iterator[tuple[Pool, int, int]]:
        """Pools that positions [first, stop) come from, each with the range within it."""
        while first < stop:
            pool = self.pool_at(first)
            end = min(stop, pool.stop)
            yield pool, first - pool.first, end - pool.first
            first = end

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips and starts at positions [first, stop), int64 each."""
        parts = [(pool.clips[begin:end], pool.starts[begin:end]) for pool, begin, end in self.pools(first, stop)]
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _new_layout(self, epoch: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Shards of every pool of an epoch, and the windows up to and including each pool."""
        order = np.random.default_rng([_SHARDS, self._seed, epoch]).permutation(len(self._counts))
        sizes = self._counts[order] * self._windows_per_clip
        cuts, held = [], 0
        for index, size in enumerate(sizes.tolist()):
            if held and held + size > self._pool_windows:
                cuts.append(index)
                held = 0
            held += size
        groups = np.split(order, cuts)
        return groups, np.cumsum([self._counts[group].sum() * self._windows_per_clip for group in groups])

    def _new_pool(self, epoch: int, number: int) -> Pool:
        groups, ends = self._layout(epoch)
        clips = np.concatenate(
            [self._by_shard[self._ends[shard] - self._counts[shard] : self._ends[shard]] for shard in groups[number]]
        )
        generator = np.random.default_rng([_POOL, self._seed, epoch, number])
        clips = generator.permutation(np.repeat(clips, self._windows_per_clip))
        starts = generator.integers(0, self._num_starts[clips])
        first = epoch * self.num_items + int(ends[number - 1] if number else 0)
        return Pool(epoch, number, first, clips, starts)
