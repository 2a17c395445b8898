"""An order of windows that a store can be read in without holding it: a function of (seed, position, batch size) alone.

An epoch passes through the shards of the store in a new random order. As many of them as make up a pool of windows are
taken together, each window at a random place of its clip. So memory holds one pool and the next, and every clip still
comes once an epoch (or `windows_per_clip` times).

Within a pool the windows are shared out to the rows of the batches in the order of their places in the store: the
first rows take theirs from the beginning of the pool, the last rows from its end, each in random order. So every batch
spans the whole pool, and the rows that one of several processes takes come from a part of the pool of their size: each
process decompresses its own part and no more, although none of them enters into the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# What a generator is for, so that two uses of one seed never share numbers (`codes.loading.order` has 0, 1, 4 and 5).
_SHARDS, _POOL = 2, 3


@dataclass(frozen=True)
class Pool:
    """Windows that are in memory together.

    Attributes:
        first: position of its first window in the endless sequence.
        clips: int64 (N,), clips of its windows in the order they are used.
        starts: int64 (N,), first frame of each within its clip.
        rows: int64 (N,), the row of its batch that each window is.
    """

    first: int
    clips: NDArray[np.int64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """Position after its last window."""
        return self.first + len(self.clips)


class ShardOrder:
    """The endless sequence of windows of a split, shard by shard."""

    def __init__(
        self,
        offsets: NDArray[np.int64],
        num_starts: NDArray[np.int64],
        seed: int,
        *,
        shard_frames: int,
        pool_windows: int,
        rows: Callable[[int, int], NDArray[np.int64]],
        windows_per_clip: int = 1,
    ) -> None:
        """
        Args:
            offsets: int64 (clips,), where each clip begins in the code array.
            num_starts: int64 (clips,), in how many places a window fits in each clip, at least 1.
            shard_frames: frames of the code array in a shard.
            pool_windows: windows that make up a pool, at most, unless a single shard has more.
            rows: the rows of their batches that positions [first, stop) of the sequence are, int64 (stop - first,).
            windows_per_clip: how often a clip comes in an epoch, each time at another random place.

        Raises:
            ValueError: there is no clip, or a number is out of range.
        """
        if not len(offsets) or pool_windows < 1 or windows_per_clip < 1:
            raise ValueError(f"no order of {len(offsets)} clips in pools of {pool_windows}, {windows_per_clip} each")
        self._num_starts = num_starts
        self._seed = seed
        self._pool_windows = pool_windows
        self._windows_per_clip = windows_per_clip
        self._rows = rows
        self._by_place = np.argsort(offsets, kind="stable")
        _, counts = np.unique(offsets // shard_frames, return_counts=True)
        self._ends = np.cumsum(counts)  # clips up to and including each shard, in the order of `_by_place`
        self._counts = counts
        self.num_items = len(offsets) * windows_per_clip
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
        lying = np.concatenate(
            [self._by_place[self._ends[shard] - self._counts[shard] : self._ends[shard]] for shard in groups[number]]
        )
        lying = np.repeat(lying, self._windows_per_clip)
        first = epoch * self.num_items + int(ends[number - 1] if number else 0)
        rows = self._rows(first, first + len(lying))
        generator = np.random.default_rng([_POOL, self._seed, epoch, number])
        # Where the pool's first row finds its windows is random too, or the same clips would share rows in every epoch.
        lying = np.roll(lying, generator.integers(len(lying)))
        clips = np.empty_like(lying)
        clips[np.lexsort((generator.random(len(lying)), rows))] = lying
        starts = generator.integers(0, self._num_starts[clips])
        return Pool(first, clips, starts, rows)
