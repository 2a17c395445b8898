"""Many windows out of a code store at once, in the memory of the windows alone: what streaming is made of.

The chunks that hold the windows are decompressed once each, one after another in a buffer small enough for the cache of
the processor, and what each window needs of them is copied to its place. Chunks that no window touches are left alone.
Several threads share the work, since neither decompression nor copying holds Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.machine import num_cores

MAX_THREADS = 8
CHUNKS_PER_READ = 16  # fetched with one read by one thread; some are skipped when no window touches them


def read_windows(store: CodeStore, first_frames: NDArray[np.int64], windows: NDArray[Any]) -> None:
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
        codes_of_chunks = store.array.read_chunks(int(shard), within.tolist())
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
    """The pairs cut into what is fetched at once: no piece holds chunks of two shards, or of two places in one."""
    if not len(chunks):
        return []
    shards, within = np.divmod(chunks, chunks_per_shard)
    cuts = np.flatnonzero(np.diff(shards * chunks_per_shard + within // CHUNKS_PER_READ)) + 1
    return list(zip(np.split(chunks, cuts), np.split(members, cuts), strict=True))


def _own_cores() -> int:
    """Cores for this process: those it may use, shared with the other processes that `torchrun` started here."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
