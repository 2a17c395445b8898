"""Many windows out of a code store at once, in the memory of the windows alone: what streaming is made of.

Windows that share compressed chunks are read together, so no chunk is decompressed twice; chunks that no window touches
are not decompressed at all. Several threads share the work, since decompression does not hold Python's lock.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.data.codes import CodeStore

MAX_THREADS = 8
RUN_BYTES = 2**21  # of codes that are read in one piece


def read_windows(store: CodeStore, first_frames: NDArray[np.int64], frames: int) -> NDArray[Any]:
    """Frames [first, first + frames) of the code array for every window.

    Args:
        first_frames: int64 (N,), positions in the code array, in any order.

    Returns:
        (N, frames, h, w, n_c) in the dtype of the store.

    Raises:
        StoreError: a shard is missing or damaged; it is named.
    """
    windows = np.empty((len(first_frames), frames, *store.schema.frame_shape), store.dtype)
    order = np.argsort(first_frames, kind="stable")
    sorted_first = first_frames[order]

    def read(run: tuple[int, int]) -> None:
        begin, end = run
        start, stop = _chunk_range(store, int(sorted_first[begin]), int(sorted_first[end - 1]) + frames)
        codes = store.read_range(start, stop)
        for index in range(begin, end):
            first = sorted_first[index] - start
            windows[order[index]] = codes[first : first + frames]

    runs = _runs(store, sorted_first, frames)
    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS, len(runs))
    if threads <= 1:
        for run in runs:
            read(run)
        return windows
    with ThreadPoolExecutor(threads, "read-windows") as pool:
        for _ in pool.map(read, runs):
            pass
    return windows


def _runs(store: CodeStore, sorted_first: NDArray[np.int64], frames: int) -> list[tuple[int, int]]:
    """Ranges of the sorted windows to read in one piece: neighbours that share chunks, up to RUN_BYTES."""
    if not len(sorted_first):
        return []
    chunk = store.schema.frames_per_chunk
    longest = max(RUN_BYTES // (int(np.prod(store.schema.frame_shape)) * store.dtype.itemsize), chunk)
    first_chunks, last_chunks = sorted_first // chunk, (sorted_first + frames - 1) // chunk
    is_gap = first_chunks[1:] > last_chunks[:-1] + 1
    runs, begin = [], 0
    for index in range(1, len(sorted_first)):
        if is_gap[index - 1] or sorted_first[index] + frames - sorted_first[begin] > longest:
            runs.append((begin, index))
            begin = index
    return [*runs, (begin, len(sorted_first))]


def _chunk_range(store: CodeStore, start: int, stop: int) -> tuple[int, int]:
    """The range widened to whole chunks, which are decompressed without a copy."""
    chunk = store.schema.frames_per_chunk
    return start // chunk * chunk, min(-(-stop // chunk) * chunk, store.array_frames)
