"""Windows of codes for training the prior: no video, no pixels and no tokenizer is opened.

A window is `frames` consecutive frames of one clip (16 in the paper). Reading windows through zarr decompresses a chunk
for each; so the codes of a split are loaded into memory once, or into a memory-mapped file that all processes of a host
share, and a batch is one gather. A store that fits into neither is streamed: `batches` reads pools of windows ahead,
shard by shard.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lvt_pipeline.codes.loading.cache import Cache, Tier, cache_file, choose_tier, map_file, open_cache_file
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.machine import num_cores
from lvt_pipeline.progress import SILENT, Progress

READ_FRAMES = 4096  # frames that are in memory at a time while a split is read
MAX_THREADS = 8
CHUNKS_PER_READ = 16  # fetched with one read by one thread; some are skipped when no window touches them
LARGEST_COUNT = 2**62  # of frames or windows: larger numbers do not fit the arithmetic of int64


class CodeWindows(Dataset[Tensor]):
    """Every window of one split: `windows[i]` is int64 (frames, h, w, n_c) in [0, K).

    Windows begin `stride` frames apart within a clip and never cross clips. Clips shorter than a window are skipped
    and counted.

    Attributes:
        store: the generation of the code store that is read.
        clips: the clips that hold at least one window, in order.
        offsets: int64 (clips,), where each of them begins in the store's code array.
        num_starts: int64 (clips,), in how many places a window fits in each of them, whatever the stride.
        num_short_clips: clips of the split that are shorter than a window.
        cache: "ram", "mmap" or "stream".
    """

    def __init__(
        self,
        store: CodeStore | Path | str,
        frames: int = 16,
        stride: int = 1,
        split: str = "train",
        cache: Cache = "auto",
        generation: int | None = None,
        *,
        progress: Progress = SILENT,
    ) -> None:
        """Open a split and load its codes, unless they are streamed.

        Args:
            frames: frames in a window.
            stride: frames from the beginning of one window to that of the next in the same clip.
            cache: where the codes are kept: "ram", "mmap" (a file in the folder `<store>.cache`, made once for each
                content), "stream" (not at all: windows are read from the store, which is slow one by one and fast in
                the order of `batches`), or "auto": ram if they take less than a quarter of the available memory, mmap
                if the disk has room for the file, stream otherwise.
            generation: which generation of the store, the current one by default.

        Raises:
            StoreError: the store cannot be opened, or a shard is damaged.
            LVTError: no clip of the split is long enough for a window.
            ConfigError: a number is out of range, or there is no such tier.
        """
        frames, stride = require_count("frames", frames), require_count("stride", stride)
        self.store = store if isinstance(store, CodeStore) else open_codes(store, generation)
        self.frames = frames
        self.stride = stride
        self.split = split
        members = self.store.split(split)
        self.clips = [clip for clip in members if clip.length >= frames]
        self.num_short_clips = len(members) - len(self.clips)
        if not self.clips:
            raise LVTError(_why_empty(self.store, split, frames))

        positions = np.cumsum([0, *(clip.length for clip in members)])[:-1]
        self._first_frame = np.array(
            [position for position, clip in zip(positions, members, strict=True) if clip.length >= frames], np.int64
        )
        self.offsets = np.array([clip.offset for clip in self.clips], np.int64)
        self.num_starts = np.array([clip.length - frames + 1 for clip in self.clips], np.int64)
        counts = -(-self.num_starts // stride)
        self._end_of_clip = np.cumsum(counts)  # windows up to and including each clip

        self._load(cache, members, progress)

    def _load(self, cache: Cache, members: Sequence[CodeClip], progress: Progress) -> None:
        """Choose where the codes of the split are kept, and load them there."""
        num_frames = sum(clip.length for clip in members)
        shape = (num_frames, *self.store.schema.frame_shape)
        file = cache_file(self.store, self.split)
        self.cache: Tier = choose_tier(cache, int(np.prod(shape)) * self.store.dtype.itemsize, file)
        self._file = file if self.cache == "mmap" else None
        self._codes: NDArray[Any] | None = None
        if self.cache == "ram":
            self._codes = np.empty(shape, self.store.dtype)
            end = 0
            for part in _read_clips(self.store, members, progress):
                self._codes[end : end + len(part)] = part
                end += len(part)
        if self._file is not None:
            self._codes = open_cache_file(
                self._file, self.store, members, lambda: _read_clips(self.store, members, progress), progress
            )
        self._shape = shape

    def __repr__(self) -> str:
        return f"CodeWindows({str(self.store.path)!r}, {len(self):,} windows of {self.frames} frames, {self.split})"

    def __len__(self) -> int:
        return int(self._end_of_clip[-1])

    @property
    def num_clips(self) -> int:
        """Clips that hold at least one window."""
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        """One window, int64 (frames, h, w, n_c). Here and in all methods a negative index counts from the end.

        Raises:
            IndexError: the index is out of range.
        """
        return self.batch([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Windows by index, in one gather: a `torch.utils.data.DataLoader` fetches a batch with it."""
        return list(self.batch(indices).unbind())

    def batch(self, indices: NDArray[np.integer[Any]] | Sequence[int]) -> Tensor:
        """Windows by index, int64 (B, frames, h, w, n_c), in one gather. Errors as in `windows[index]`."""
        clips, starts = self._locate(indices)
        return self.at(clips, starts)

    def at(self, clips: NDArray[np.integer[Any]], starts: NDArray[np.integer[Any]]) -> Tensor:
        """Windows that begin at any frame: the companion of `codes.loading.order.clip_batch`.

        Args:
            clips: integers (B,), positions in `self.clips`.
            starts: integers (B,), first frames, in [0, num_starts) of the clip.

        Returns:
            int64 (B, frames, h, w, n_c).
        """
        windows = np.empty((len(clips), self.frames, *self.store.schema.frame_shape), np.int64)
        return torch.from_numpy(self.read(clips, starts, windows))

    def read(
        self, clips: NDArray[np.integer[Any]], starts: NDArray[np.integer[Any]], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """As `at`, an array (B, frames, h, w, n_c).

        Args:
            out: where they are put, in any integer dtype that holds them; by default a new array in that of the store.

        Raises:
            IndexError: there is no such clip, or a window would reach beyond its clip.
        """
        clips = _positions(clips, len(self.clips), "clip")
        starts = _integers(starts)
        if np.any(starts < 0) or np.any(starts >= self.num_starts[clips]):
            raise IndexError("a window would begin outside its clip or reach beyond the end of it")
        if out is None:
            out = np.empty((len(clips), self.frames, *self.store.schema.frame_shape), self.store.dtype)
        if self.cache == "stream":
            _read_streamed(self.store, self.offsets[clips] + starts, out)
            return out
        codes, first = self.codes, self._first_frame[clips] + starts
        for window, row in zip(out, first.tolist(), strict=True):
            window[:] = codes[row : row + self.frames]
        return out

    def clip(self, index: int) -> CodeClip:
        """The clip that a window is cut from."""
        return self.clips[int(self._locate([operator.index(index)])[0][0])]

    def label(self, index: int) -> str | None:
        """The label of the clip that a window is cut from."""
        return self.clip(index).label

    @property
    def codes(self) -> NDArray[Any]:
        """Codes of all clips of the split, short ones too, one after another: (frames, h, w, n_c) uint8 or uint16.

        Raises:
            LVTError: they are streamed, so that there is no such array; or another process has removed the mapped file
                before this one opened it.
        """
        if self._codes is None:
            if self._file is None:
                raise LVTError(f"the codes of {self.store.path} are streamed; open the windows with cache='mmap'")
            self._codes = map_file(self._file, self._shape, self.store.dtype)
            if self._codes is None:
                raise LVTError(f"{self._file} is gone; run the same command again, which makes it again")
        return self._codes

    def __getstate__(self) -> dict[str, Any]:
        # A memory-mapped file is opened again by the process that receives the windows, never copied to it.
        return {**self.__dict__, "_codes": self._codes if self._file is None else None}

    @property
    def window_bytes(self) -> int:
        """Bytes of a window in the dtype of the store."""
        return self.frames * int(np.prod(self.store.schema.frame_shape)) * self.store.dtype.itemsize

    def _locate(self, indices: NDArray[np.integer[Any]] | Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The clip and the first frame within it of each window."""
        found = _positions(indices, len(self), "window")
        clips = np.searchsorted(self._end_of_clip, found, side="right")
        before = np.where(clips > 0, self._end_of_clip[clips - 1], 0)
        return clips, (found - before) * self.stride


def require_count(name: str, value: Any, at_least: int = 1) -> int:
    """An argument that must be an integer in range; NumPy integers are accepted.

    Raises:
        ConfigError: it is something else.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not at_least <= value <= LARGEST_COUNT:
        raise ConfigError(f"{name}={value!r} must be an integer from {at_least} to {LARGEST_COUNT}")
    return int(value)


def _integers(values: Any) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"windows are found by integers, not by {found.dtype}")
    return found.astype(np.int64)


def _positions(values: Any, count: int, noun: str) -> NDArray[np.int64]:
    """Positions in [0, count) from indices, of which negative ones count from the end.

    Raises:
        IndexError: one is out of range.
    """
    found = _integers(values)
    wrong = found[(found < -count) | (found >= count)]
    if wrong.size:
        raise IndexError(f"{noun} {wrong.flat[0]} of {count}")
    return np.where(found < 0, found + count, found)


def _why_empty(store: CodeStore, split: str, frames: int) -> str:
    members = store.split(split)
    if not members:
        found = ", ".join(f"{name} ({len(store.split(name))})" for name in sorted({c.split for c in store.clips}))
        return f"{store.path} has no clips in split {split}; it has {found}"
    longest = max(clip.length for clip in members)
    return (
        f"no clip of split {split} in {store.path} is long enough: the longest has {longest} frames and a window needs "
        f"{frames}; use shorter windows or longer clips"
    )


def _read_clips(store: CodeStore, clips: Sequence[CodeClip], progress: Progress) -> Iterator[NDArray[Any]]:
    """Codes of clips one after another, in pieces of at most READ_FRAMES frames."""
    with progress.bar("reading codes", sum(clip.length for clip in clips), "frames") as bar:
        for start, stop in _runs(clips):
            # Pieces end where shards do, so no chunk is decompressed twice.
            while start < stop:
                end = min(stop, (start // READ_FRAMES + 1) * READ_FRAMES)
                yield store.read_range(start, end)
                bar.advance(end - start)
                start = end


def _runs(clips: Sequence[CodeClip]) -> Iterator[tuple[int, int]]:
    """Ranges of the code array that hold the clips in order; neighbours become one range."""
    start = stop = 0
    for clip in clips:
        if clip.offset != stop:
            if stop > start:
                yield start, stop
            start = clip.offset
        stop = clip.offset + clip.length
    yield start, stop


# Streaming ------------------------------------------------------------------------------------------------------------
# The chunks that hold the windows are decompressed once each, one after another in a buffer small enough for the cache
# of the processor, and the part that each window needs is copied to its place. Chunks that no window touches are not
# read. Several threads share the work, since neither decompression nor copying holds Python's lock.


def _read_streamed(store: CodeStore, first_frames: NDArray[np.int64], windows: NDArray[Any]) -> None:
    """Put frames [first, first + frames) of the code array into every window.

    Args:
        first_frames: int64 (N,), positions in the code array, in any order.
        windows: (N, frames, h, w, n_c), of any integer dtype that holds the codes; written.

    Raises:
        StoreError: a shard is missing or damaged; it is named.
    """
    frames = windows.shape[1]
    per_chunk = store.schema.frames_per_chunk
    chunks_per_shard = store.schema.shard_frames // per_chunk
    pieces = _pieces(*_touched_chunks(first_frames, frames, per_chunk), chunks_per_shard)
    first_of = first_frames.tolist()

    def read(piece: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        chunks, members = piece
        numbers, begins = np.unique(chunks, return_index=True)
        ends = [*begins[1:].tolist(), len(chunks)]
        shard, within = numbers[0] // chunks_per_shard, numbers % chunks_per_shard
        codes_of_chunks = store.codes.read_chunks(int(shard), within.tolist())
        for number, begin, end, codes in zip(numbers.tolist(), begins.tolist(), ends, codes_of_chunks, strict=True):
            for window in members[begin:end].tolist():
                start = first_of[window] - number * per_chunk  # of the window, counted within the chunk
                if start >= 0:
                    part = codes[start : start + frames]
                    windows[window, : len(part)] = part
                else:
                    part = codes[: start + frames]
                    windows[window, -start : len(part) - start] = part

    threads = min(_own_cores(), MAX_THREADS, len(pieces))
    if threads <= 1:
        for piece in pieces:
            read(piece)
        return
    # The threads end with the read: none is left behind for a process that forks later to inherit.
    with ThreadPoolExecutor(threads, "read-windows") as pool:
        for _ in pool.map(read, pieces):
            pass


def _touched_chunks(
    first_frames: NDArray[np.int64], frames: int, per_chunk: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of a chunk of the array and a window that needs it, by chunk: int64 (P,) each."""
    first_chunks = first_frames // per_chunk
    counts = (first_frames + frames - 1) // per_chunk - first_chunks + 1
    members = np.repeat(np.arange(len(first_frames)), counts)
    nth = np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)  # chunk of its window
    chunks = first_chunks[members] + nth
    order = np.argsort(chunks, kind="stable")
    return chunks[order], members[order]


def _pieces(
    chunks: NDArray[np.int64], members: NDArray[np.int64], chunks_per_shard: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The pairs in pieces that are fetched at once: no piece holds chunks of two shards, or of two places in one."""
    if not len(chunks):
        return []
    shards, within = np.divmod(chunks, chunks_per_shard)
    cuts = np.flatnonzero(np.diff(shards * chunks_per_shard + within // CHUNKS_PER_READ)) + 1
    return list(zip(np.split(chunks, cuts), np.split(members, cuts), strict=True))


def _own_cores() -> int:
    """Cores for this process: those it may use, shared with the other processes that `torchrun` started here."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
