"""The codes of a split, or one of its side arrays, where windows are read from: in memory, mapped, or streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.array import CodeArray
from lvt_pipeline.codes.loading.cache import Tier, map_file, open_cache_file
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import LVTError
from lvt_pipeline.machine import own_cores
from lvt_pipeline.progress import Progress

READ_FRAMES = 4096  # frames that are in memory at a time while a split is read
MAX_THREADS = 8
CHUNKS_PER_READ = 16  # fetched with one read by one thread; some are skipped when no window touches them


class SplitArray:
    """One array of a split."""

    def __init__(self, array: CodeArray, clips: Sequence[CodeClip], tier: Tier, file: Path, progress: Progress) -> None:
        """Load it, unless it is streamed.

        Args:
            clips: all clips of the split.
            file: the mapped file, if the tier is "mmap".
        """
        self.array = array
        self._file = file if tier == "mmap" else None
        self._shape = (sum(clip.length for clip in clips), *array.layout.frame_shape)
        self._values: NDArray[Any] | None = None
        if tier == "ram":
            self._values = np.empty(self._shape, self.dtype)
            end = 0
            for part in _read_clips(array, clips, progress):
                self._values[end : end + len(part)] = part
                end += len(part)
        if self._file is not None:
            parts = lambda: _read_clips(array, clips, progress)  # noqa: E731
            self._values = open_cache_file(self._file, self._shape, self.dtype, parts, progress)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return self.array.layout.dtype

    @property
    def values(self) -> NDArray[Any]:
        """Those of all clips of the split, short ones too, one after another: (frames, ...).

        Raises:
            LVTError: they are streamed, so that there is no such array; or another process has removed the mapped file
                before this one opened it.
        """
        if self._values is None:
            if self._file is None:
                raise LVTError(f"the codes of {self.array.path} are streamed; open the windows with cache='mmap'")
            self._values = map_file(self._file, self._shape, self.dtype)
            if self._values is None:
                raise LVTError(f"{self._file} is gone; run the same command again, which makes it again")
        return self._values

    def __getstate__(self) -> dict[str, Any]:
        # A memory-mapped file is opened again by the process that receives it, never copied to it.
        return {**self.__dict__, "_values": self._values if self._file is None else None}

    def empty(self, num_windows: int, frames: int) -> NDArray[Any]:
        """Memory for windows, (num_windows, frames, ...)."""
        return np.empty((num_windows, frames, *self.array.layout.frame_shape), self.dtype)

    def read(
        self, rows: NDArray[np.int64], places: NDArray[np.int64], frames: int, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Windows, (N, frames, ...).

        Args:
            rows: int64 (N,), the first frame of each window in `values`.
            places: int64 (N,), the same in the array of the store.
            out: where they are put, in any dtype that holds the values; by default a new array in that of the store.
        """
        if self._values is None and self._file is None:
            out = self.empty(len(rows), frames) if out is None else out
            _read_streamed(self.array, places, out)
        elif out is None:
            # NumPy gathers the rows of a view whose rows are overlapping windows, whole ones at a time.
            values, size = self.values, math.prod(self._shape[1:])
            shape, strides = (len(values) - frames + 1, frames * size), (size * values.itemsize, values.itemsize)
            windows: NDArray[Any] = np.ndarray(shape, values.dtype, values, strides=strides)
            out = windows[rows].reshape(-1, frames, *self._shape[1:])
        else:
            values = self.values
            for window, row in zip(out, rows.tolist(), strict=True):
                window[:] = values[row : row + frames]
        return out


def _read_clips(array: CodeArray, clips: Sequence[CodeClip], progress: Progress) -> Iterator[NDArray[Any]]:
    """Values of clips one after another, in pieces of at most READ_FRAMES frames."""
    with progress.bar(f"reading {array.layout.name}", sum(clip.length for clip in clips), "frames") as bar:
        for values in array.read_each(_read_ranges(clips)):
            yield values
            bar.advance(len(values))


def _read_ranges(clips: Sequence[CodeClip]) -> Iterator[tuple[int, int]]:
    """Ranges of at most READ_FRAMES frames. They end where shards do, so no chunk is decompressed twice."""
    for start, stop in _runs(clips):
        while start < stop:
            end = min(stop, (start // READ_FRAMES + 1) * READ_FRAMES)
            yield start, end
            start = end


def _runs(clips: Sequence[CodeClip]) -> Iterator[tuple[int, int]]:
    """Ranges of the array that hold the clips in order; neighbours become one range."""
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


def _read_streamed(array: CodeArray, first_frames: NDArray[np.int64], windows: NDArray[Any]) -> None:
    """Put frames [first, first + frames) of an array into every window.

    Args:
        first_frames: int64 (N,), positions in the array, in any order.
        windows: (N, frames, ...), of any dtype that holds the values; written.
    """
    frames = windows.shape[1]
    per_chunk = array.layout.frames_per_chunk
    chunks, members = _touched_chunks(first_frames, frames, per_chunk)
    numbers, firsts = np.unique(chunks, return_index=True)
    bounds = [*firsts.tolist(), len(chunks)]
    starts = first_frames[members] - chunks * per_chunk  # of the windows, counted within the chunk
    # The frames of the chunk that each window takes, and where the first of them is in the window.
    parts = [members, np.maximum(starts, 0), np.minimum(starts + frames, per_chunk), np.maximum(-starts, 0)]
    copies = np.stack(parts, 1).tolist()
    # Chunks that are fetched at once: no piece holds those of two shards, or of two places in one.
    shards, within = np.divmod(numbers, array.layout.shard_frames // per_chunk)
    cuts = np.flatnonzero((np.diff(shards) > 0) | (np.diff(within // CHUNKS_PER_READ) > 0)) + 1
    waiting = iter(np.split(np.arange(len(numbers)), cuts) if len(numbers) else [])  # threads take them one by one

    def read(thread: int) -> None:
        for piece in waiting:
            for at, values in enumerate(array.read_chunks(int(shards[piece[0]]), within[piece].tolist()), piece[0]):
                for window, start, stop, first in copies[bounds[at] : bounds[at + 1]]:
                    windows[window, first : first + stop - start] = values[start:stop]

    threads = min(array.num_readers or min(own_cores(), MAX_THREADS), len(cuts) + 1)
    if threads <= 1:
        read(0)
        return
    # The threads end with the read: none is left behind for a process that forks later to inherit.
    with ThreadPoolExecutor(threads, "read-windows") as pool:
        for _ in pool.map(read, range(threads)):
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
