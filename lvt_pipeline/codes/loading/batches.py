"""Batches of windows for training: which windows a step sees, from one store or from several, and reading them.

In every tier a batch is a function of (seed, step, global batch) alone, so a run resumes anywhere at no cost and sees
the same batches with any number of processes. Two orders exist. `clips` (the default) chooses clips from anywhere in
the store and needs ram or mmap. `shards` goes through the store shard by shard (`shard_order`); every tier gives it bit
for bit, and streaming gives nothing else.

Codes stay as narrow as they are stored, since writing them as int64 would bound the speed of loading from memory. The
model converts them to int64 on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvt_pipeline.codes.loading.order import clip_batch, clip_sequence, mixture, mixture_positions
from lvt_pipeline.codes.loading.shard_order import Pool, ShardOrder
from lvt_pipeline.codes.loading.windows import CodeWindows, require_count, side_tensors
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import ConfigError

POOL_BYTES = 2**27  # of windows in a pool of the shard order; streaming holds two. Another value is another order.


Arrays = dict[str, NDArray[Any]]  # "codes" and side arrays


class Drawn(NamedTuple):
    """The windows of a batch of all processes together: a clip and a first frame for every row."""

    clips: list[CodeClip]
    starts: list[int]


class Batches(Protocol):
    """The batches of a training, steps counted from 0."""

    def draw(self, step: int) -> Drawn:
        """The windows of the batch of a step."""

    def read(self, step: int, rows: range) -> Any:
        """Some rows of it, a tensor (B, frames, h, w, n_c) in the type that `as_tensor` gives; where the windows have
        side arrays a dict of it as "codes" and of their rows (B, frames, d) by name.
        """


class WindowSequence(Protocol):
    """An endless sequence of windows of one store, by position."""

    windows: CodeWindows

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips and starts at positions [first, stop)."""

    def read(self, first: int, stop: int, rows: range) -> Arrays:
        """Windows at positions [first, stop), (N, frames, ...) in the dtype of the store, by name of the array.

        Args:
            rows: of their batch, which include the windows. The same rows of later batches are read ahead.
        """


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
        windows_per_clip: windows of each clip in an epoch of the order "shards".

    Raises:
        ConfigError: these windows cannot be read in this order, a number is out of range, or the weights do not fit the
            stores.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("windows_per_clip", windows_per_clip, 1),
        ("pool_bytes", pool_bytes, 1),
    ):
        require_count(name, value, at_least=least)
    if shuffle not in ("clips", "shards"):
        raise ConfigError(f"training.shuffle={shuffle!r} is not one of clips, shards")
    streamed = next((windows for windows in stores if windows.cache == "stream"), None)
    if shuffle == "clips" and streamed is not None:
        raise ConfigError(
            f"{streamed.store.path} is streamed, which gives training.shuffle=shards only; "
            "use --cache ram or mmap, or --set training.shuffle=shards"
        )
    require_mix(mix, len(stores))
    require_equal_arrays(stores)
    weights = tuple(mix or [1.0] * len(stores))
    sequences: list[WindowSequence] = []
    for number, windows in enumerate(stores):
        own_seed = seed if number == 0 else mixed_seed(seed, number)
        if shuffle == "clips":
            sequences.append(ClipSequence(windows, own_seed, batch_size if len(stores) == 1 else None))
        else:
            rows = partial(_rows_of_store, weights, seed, number, batch_size)
            sequences.append(ShardSequence(windows, own_seed, rows, windows_per_clip, pool_bytes))
    return SequenceBatches(sequences, batch_size, seed, weights)


def require_mix(mix: Sequence[float] | None, num_stores: int) -> None:
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


def require_equal_arrays(stores: Sequence[CodeWindows]) -> None:
    """Refuse stores whose windows do not fit into one batch.

    Raises:
        ConfigError: a side array differs between them.
    """
    for windows in stores:
        for name in stores[0].arrays:
            ours, first = windows.store.arrays[name], stores[0].store.arrays[name]
            if (ours.dtype, ours.dimension) != (first.dtype, first.dimension):
                raise ConfigError(
                    f"{windows.store.path} has the array {ours} and {stores[0].store.path} has {first}; train on "
                    "stores with equal arrays"
                )


def shares(mix: Sequence[float] | None, num_stores: int, total: int) -> list[int]:
    """Parts of a whole by the weights of a mixture, at least one each."""
    weights = np.asarray(mix or [1.0] * num_stores, float)
    ends = np.round(np.cumsum(weights) / weights.sum() * total).astype(int)
    return [max(1, int(part)) for part in np.diff([0, *ends])]


def mixed_seed(seed: int, number: int) -> int:
    """The seed of a further store of a mixture, so that the stores do not follow the same order."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


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

    def read(self, step: int, rows: range) -> Any:
        begin = step * self._batch_size
        stores, ranges = self._parts(begin + rows.start, begin + rows.stop)
        batch: Arrays = {}
        for number, (sequence, (first, stop)) in enumerate(zip(self._sequences, ranges, strict=True)):
            if first == stop:
                continue
            windows = sequence.read(first, stop, rows)
            if stop - first == len(stores):
                batch = windows
                break
            for name, values in windows.items():
                if name not in batch:
                    batch[name] = np.empty((len(stores), *values.shape[1:]), values.dtype)
                batch[name][stores == number] = values
        codes = as_tensor(batch.pop("codes"), self._sequences[0].windows.store.codebook_size)
        return {"codes": codes, **side_tensors(batch)} if batch else codes

    def _parts(self, first: int, stop: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """The store of every position in [first, stop), and the range of each store's own sequence that they take."""
        stores, before = mixture(self._weights, self._seed, first, stop)
        counts = np.bincount(stores, minlength=len(self._sequences))
        return stores, [(int(a), int(a + n)) for a, n in zip(before, counts, strict=True)]


class ClipSequence:
    """Clips from anywhere in a store, each once an epoch at a random place. See `WindowSequence`."""

    def __init__(self, windows: CodeWindows, seed: int, batch_size: int | None = None) -> None:
        """
        Args:
            batch_size: of the batches that this store fills alone. Places are then random by step (`order.clip_batch`),
                otherwise by epoch (`order.clip_sequence`).
        """
        self.windows, self._seed, self._batch_size = windows, seed, batch_size

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        size = self._batch_size
        if size is None:
            return clip_sequence(self.windows.num_starts, self._seed, first, stop)
        begin = first // size
        parts = [clip_batch(self.windows.num_starts, size, self._seed, step) for step in range(begin, -(-stop // size))]
        clips, starts = (np.concatenate([part[k] for part in parts] or [np.zeros(0, np.int64)]) for k in (0, 1))
        chosen = slice(first - begin * size, stop - begin * size)
        return clips[chosen], starts[chosen]

    def read(self, first: int, stop: int, rows: range) -> Arrays:
        return _read(self.windows, *self.items(first, stop))


class PoolRows(NamedTuple):
    """Some rows of all the batches that a pool is cut into.

    Attributes:
        places: in the pool, int64 (N,), ascending.
        windows: (N or more, frames, ...) of each array; rows after the first N are left over from another pool.
    """

    places: NDArray[np.int64]
    windows: Arrays


class ShardSequence:
    """Windows shard by shard. See `WindowSequence` and `ShardOrder`.

    Windows that are streamed come from a pool in memory, of which only the rows that are asked for are read. Those of
    the next pool are read in a thread at the same time, into the memory of the pool before: the kernel needs more time
    to provide fresh memory of that size than reading into it takes.
    """

    def __init__(
        self,
        windows: CodeWindows,
        seed: int,
        rows: Callable[[int, int], NDArray[np.int64]],
        windows_per_clip: int = 1,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        """
        Args:
            rows: see `ShardOrder`.
        """
        self.windows = windows
        self.order = ShardOrder(
            windows.offsets,
            windows.num_starts,
            seed,
            shard_frames=windows.store.schema.shard_frames,
            pool_windows=max(1, pool_bytes // windows.window_bytes),
            rows=rows,
            windows_per_clip=windows_per_clip,
        )
        # By rows, and then by the position of the pool's first window.
        self._reading: dict[range, dict[int, Future[PoolRows]]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._lock = Lock()  # a batch is copied before its pool makes room for another

    def items(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.order.items(first, stop)

    def read(self, first: int, stop: int, rows: range) -> Arrays:
        if self.windows.cache != "stream":
            return _read(self.windows, *self.items(first, stop))
        windows = self.windows.empty(stop - first)
        filled = 0
        with self._lock:
            for pool, begin, end in self.order.pools(first, stop):
                held = self._rows_of(pool, rows)
                start = int(np.searchsorted(held.places, begin))
                for name, values in held.windows.items():
                    windows[name][filled : filled + end - begin] = values[start : start + end - begin]
                filled += end - begin
        return windows

    def _rows_of(self, pool: Pool, rows: range) -> PoolRows:
        following = self.order.pool_at(pool.stop)
        known = self._reading.get(rows, {})
        held = {first: known[first] for first in (pool.first, following.first) if first in known}
        left = [future for first, future in known.items() if first not in held]
        spare = [future.result().windows for future in left if future.done() and future.exception() is None]
        for wanted in (pool, following):
            if wanted.first not in held:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "lvt-stream")
                memory = spare.pop() if spare else None
                held[wanted.first] = self._thread.submit(self._read_rows, wanted, rows, memory)
        self._reading[rows] = held
        return held[pool.first].result()

    def _read_rows(self, pool: Pool, rows: range, memory: Arrays | None) -> PoolRows:
        places = np.flatnonzero((pool.rows >= rows.start) & (pool.rows < rows.stop))
        if memory is None or len(memory["codes"]) < len(places):
            memory = self.windows.empty(len(places))
        _read(self.windows, pool.clips[places], pool.starts[places], memory)
        return PoolRows(places, memory)


def _read(
    windows: CodeWindows, clips: NDArray[np.int64], starts: NDArray[np.int64], memory: Arrays | None = None
) -> Arrays:
    """Windows of every array, in the first rows of `memory` where that is given."""
    memory = windows.empty(len(clips)) if memory is None else memory
    return {name: windows.read(clips, starts, values[: len(clips)], name) for name, values in memory.items()}


def as_tensor(codes: NDArray[Any], codebook_size: int) -> Tensor:
    """Codes in [0, K) as a tensor: uint8 as they are, uint16 as int16 in the same memory if K fits, as int32 if not.

    torch does little with uint16, and nothing at all on some devices.
    """
    if codes.dtype == np.uint16:
        codes = codes.view(np.int16) if codebook_size <= 2**15 else codes.astype(np.int32)
    return torch.from_numpy(codes)


def _rows_of_store(
    weights: Sequence[float], seed: int, number: int, batch_size: int, first: int, stop: int
) -> NDArray[np.int64]:
    """The rows of their batches that windows [first, stop) of one store of a mixture are."""
    return mixture_positions(weights, seed, number, first, stop) % batch_size
