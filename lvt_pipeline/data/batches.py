"""Batches of windows for training: which windows a step sees, from one store or from several, and reading them.

Whatever the tier, a batch is a function of (seed, step, global batch) alone, so a run resumes anywhere for nothing and
sees the same batches with any number of processes. Two orders exist. `clips` (the default) draws clips from anywhere in
the store and needs ram or mmap. `shards` goes through the store shard by shard (`data.shard_order`); every tier gives
it bit for bit, and streaming gives nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvt_pipeline.data.codes import CodeClip
from lvt_pipeline.data.order import clip_batch, clip_sequence, mixture
from lvt_pipeline.data.shard_order import Pool, ShardOrder
from lvt_pipeline.data.windows import CodeWindows
from lvt_pipeline.errors import ConfigError

POOL_BYTES = 2**27  # of windows in a pool of the shard order; streaming holds two. Another value is another order.


class Drawn(NamedTuple):
    """The windows of a batch of all processes together: a clip and a first frame for every row."""

    clips: list[CodeClip]
    starts: list[int]


class Batches(Protocol):
    """The batches of a training, steps counted from 0."""

    def draw(self, step: int) -> Drawn:
        """Which windows make up the batch of a step."""

    def read(self, step: int, rows: range) -> Tensor:
        """Some rows of it, int64 (B, frames, h, w, n_c)."""


class WindowSequence(Protocol):
    """An endless sequence of windows of one store, by position."""

    windows: CodeWindows

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips and starts at positions [first, stop)."""

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """Windows at positions [first, stop), (N, frames, h, w, n_c)."""


def make_batches(
    stores: Sequence[CodeWindows],
    batch_size: int,
    seed: int,
    *,
    shuffle: str = "clips",
    mix: Sequence[float] | None = None,
    windows_per_clip: int = 1,
    pool_bytes: int = POOL_BYTES,
) -> Batches:
    """Batches of windows of one store, or of several by their weights.

    Args:
        batch_size: rows of a batch over all processes.
        shuffle: "clips" or "shards".
        mix: share of each store in the windows; as many as there are stores. None: equal shares.
        windows_per_clip: how often a clip comes in an epoch of the order "shards".

    Raises:
        ConfigError: the order cannot be had from these windows, or the weights do not fit the stores.
    """
    if shuffle not in ("clips", "shards"):
        raise ConfigError(f"training.shuffle={shuffle!r} is not one of clips, shards")
    streamed = next((windows for windows in stores if windows.cache == "stream"), None)
    if shuffle == "clips" and streamed is not None:
        raise ConfigError(
            f"{streamed.store.path} is streamed, which gives training.shuffle=shards only; "
            "use --cache ram or mmap, or --set training.shuffle=shards"
        )
    if shuffle == "clips" and len(stores) == 1:
        return ClipBatches(stores[0], batch_size, seed)
    check_mix(mix, len(stores))
    sequences: list[WindowSequence] = []
    for number, windows in enumerate(stores):
        own_seed = seed if number == 0 else mixed_seed(seed, number)
        if shuffle == "clips":
            sequences.append(ClipSequence(windows, own_seed))
        else:
            sequences.append(ShardSequence(windows, own_seed, windows_per_clip, pool_bytes))
    return SequenceBatches(sequences, batch_size, seed, mix or [1.0] * len(stores))


def check_mix(mix: Sequence[float] | None, num_stores: int) -> None:
    """
    Raises:
        ConfigError: the weights do not fit that many stores.
    """
    if mix is None:
        return
    if len(mix) != num_stores:
        raise ConfigError(f"training.mix has {len(mix)} weights for {num_stores} code stores; give one each")
    if not all(0 < weight < float("inf") for weight in mix):
        raise ConfigError(f"training.mix={list(mix)} needs weights above 0; leave out a store instead")


def shares(mix: Sequence[float] | None, num_stores: int, total: int) -> list[int]:
    """Parts of a whole by the weights of a mixture, at least one each."""
    weights = np.asarray(mix or [1.0] * num_stores, float)
    ends = np.round(np.cumsum(weights) / weights.sum() * total).astype(int)
    return [max(1, int(part)) for part in np.diff([0, *ends])]


def mixed_seed(seed: int, number: int) -> int:
    """The seed of a further store of a mixture: the stores do not move in step."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class ClipBatches:
    """One window of each of `batch_size` random clips, every clip once an epoch (`data.order.clip_batch`)."""

    def __init__(self, windows: CodeWindows, batch_size: int, seed: int) -> None:
        self._windows, self._batch_size, self._seed = windows, batch_size, seed

    def draw(self, step: int) -> Drawn:
        clips, starts = self._items(step)
        return Drawn([self._windows.clips[clip] for clip in clips], starts.tolist())

    def read(self, step: int, rows: range) -> Tensor:
        clips, starts = self._items(step)
        return self._windows.at(clips[rows.start : rows.stop], starts[rows.start : rows.stop])

    def _items(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return clip_batch(self._windows.num_starts, self._batch_size, self._seed, step)


class SequenceBatches:
    """Batches cut from the endless sequences of one or more stores."""

    def __init__(
        self, sequences: Sequence[WindowSequence], batch_size: int, seed: int, weights: Sequence[float]
    ) -> None:
        """Weights are shares of the windows, one for each sequence."""
        self._sequences, self._batch_size, self._seed, self._weights = list(sequences), batch_size, seed, weights

    def draw(self, step: int) -> Drawn:
        stores, ranges = self._parts(step * self._batch_size, (step + 1) * self._batch_size)
        drawn: list[tuple[CodeClip, int] | None] = [None] * len(stores)
        for number, (sequence, (first, stop)) in enumerate(zip(self._sequences, ranges, strict=True)):
            clips, starts = sequence.items(first, stop)
            for row, clip, start in zip(np.flatnonzero(stores == number), clips, starts, strict=True):
                drawn[row] = (sequence.windows.clips[clip], int(start))
        rows = [row for row in drawn if row is not None]
        return Drawn([clip for clip, _ in rows], [start for _, start in rows])

    def read(self, step: int, rows: range) -> Tensor:
        begin = step * self._batch_size
        stores, ranges = self._parts(begin + rows.start, begin + rows.stop)
        batch: NDArray[np.int64] | None = None
        for number, (sequence, (first, stop)) in enumerate(zip(self._sequences, ranges, strict=True)):
            if first == stop:
                continue
            windows = sequence.read(first, stop)
            if len(windows) == len(stores):
                return torch.from_numpy(windows.astype(np.int64))
            if batch is None:
                batch = np.empty((len(stores), *windows.shape[1:]), np.int64)
            batch[stores == number] = windows
        assert batch is not None, "a part of a batch has rows"
        return torch.from_numpy(batch)

    def _parts(self, first: int, stop: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """The store of every position in [first, stop), and the range of each store's own sequence that they take."""
        stores, before = mixture(self._weights, self._seed, first, stop)
        counts = np.bincount(stores, minlength=len(self._sequences))
        return stores, [(int(a), int(a + n)) for a, n in zip(before, counts, strict=True)]


class ClipSequence:
    """Clips from anywhere in a store, each once an epoch at a random place. See `WindowSequence`."""

    def __init__(self, windows: CodeWindows, seed: int) -> None:
        self.windows, self._seed = windows, seed

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return clip_sequence(self.windows.num_starts, self._seed, first, stop)

    def read(self, first: int, stop: int) -> NDArray[Any]:
        return self.windows.read(*self.items(first, stop))


class ShardSequence:
    """Windows shard by shard. See `WindowSequence` and `ShardOrder`.

    Windows that are streamed come from a pool in memory; the next one is read in a thread meanwhile.
    """

    def __init__(
        self, windows: CodeWindows, seed: int, windows_per_clip: int = 1, pool_bytes: int = POOL_BYTES
    ) -> None:
        self.windows = windows
        self.order = ShardOrder(
            windows.shards,
            windows.num_starts,
            seed,
            pool_windows=max(1, pool_bytes // windows.window_bytes),
            windows_per_clip=windows_per_clip,
        )
        self._reading: dict[int, Future[NDArray[Any]]] = {}  # by position of the pool's first window
        self._thread: ThreadPoolExecutor | None = None

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.order.items(first, stop)

    def read(self, first: int, stop: int) -> NDArray[Any]:
        if self.windows.cache != "stream":
            return self.windows.read(*self.items(first, stop))
        parts = [self._codes_of(pool)[begin:end] for pool, begin, end in self.order.pools(first, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _codes_of(self, pool: Pool) -> NDArray[Any]:
        following = self.order.pool_at(pool.stop)
        self._reading = {
            first: future for first, future in self._reading.items() if first in (pool.first, following.first)
        }
        for wanted in (pool, following):
            if wanted.first not in self._reading:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "lvt-stream")
                self._reading[wanted.first] = self._thread.submit(self.windows.read, wanted.clips, wanted.starts)
        return self._reading[pool.first].result()
