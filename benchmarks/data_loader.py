"""torch's `DataLoader` over `CodeWindows`, against a bare gather of the same windows as int64.

In this process, and with worker processes of every start method. What torch can send at best is measured beside it: a
data set that has nothing to read and copies one int64 batch that is ready.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.loader import BATCH, CLIPS, COUNTED, FRAMES, REPETITIONS, WINDOW, gather, write_codes
from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.codes.loading.windows import CodeWindows

SIZES = {"16x16x2 uint8": (2, 256), "16x16x4 uint16": (4, 512)}  # n_c and K
SENT = {64: 80, 512: 20}  # with workers: windows of a batch, and batches of a repetition
METHODS = ("fork", "spawn", "forkserver")


def run() -> str:
    """With one thread in every process, for loops that keep one batch while they make the next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return "\n".join(_compare(name, *size) for name, size in SIZES.items())
    finally:
        torch.set_num_threads(threads)


def _compare(name: str, num_codebooks: int, codebook_size: int) -> str:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, codebook_size, (CLIPS, FRAMES, 16, 16, num_codebooks), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        write_codes(Path(folder) / "data.zarr", codes, codebook_size)
        windows = CodeWindows(Path(folder) / "data.zarr", frames=WINDOW, cache="mmap")
        memory = windows.store.read_range(0, CLIPS * FRAMES)
        tables = [
            _in_this_process(name, windows, memory, generator.integers(0, len(windows), (COUNTED // BATCH, BATCH)))
        ]
        for size, number in SENT.items():
            tables.append(_with_workers(name, windows, memory, generator.integers(0, len(windows), (number, size))))
    return "\n".join(tables)


def _in_this_process(name: str, windows: CodeWindows, memory: NDArray[Any], indices: NDArray[np.int64]) -> str:
    reference = "bare gather, int64"
    seconds = time_in_turn(
        {
            reference: _bare(memory, indices),
            "CodeWindows.batch": lambda: _exhaust(windows.batch(batch) for batch in indices),
            "CodeWindows.loader": lambda: _exhaust(windows.loader(BATCH, sampler=indices.flatten().tolist())),
            "DataLoader(windows)": lambda: _exhaust(DataLoader(windows, batch_sampler=indices.tolist())),
        },
        REPETITIONS,
        time.thread_time,
    )
    note = (
        f"{COUNTED} windows of {WINDOW} frames in batches of {BATCH}, {REPETITIONS} repetitions, processor time of one "
        f"thread; the gather gives {COUNTED / seconds[reference]:,.0f} windows/s."
    )
    return table(f"DataLoader in this process, {name}", seconds, reference, note)


def _with_workers(name: str, windows: CodeWindows, memory: NDArray[Any], indices: NDArray[np.int64]) -> str:
    reference = "bare gather, int64"
    candidates = {reference: _bare(memory, indices)}
    chosen, ready = indices.flatten().tolist(), windows.batch(indices[0])
    for number in (1, 2):
        for method in METHODS:
            options: dict[str, Any] = {
                "batch_size": indices.shape[1],
                "sampler": chosen,
                "num_workers": number,
                "multiprocessing_context": method,
                "persistent_workers": True,
            }
            candidates[f"CodeWindows.loader, {number} {method}"] = partial(_exhaust, windows.loader(**options))
            if method == "fork":  # the start method matters for the start alone
                loaders = {"DataLoader(windows)": DataLoader(windows, **options)}
                sent = DataLoader(range(len(windows)), collate_fn=partial(_copied, ready), **options)  # type: ignore[arg-type]
                loaders["ready int64 batches"] = sent
                candidates |= {f"{what}, {number} {method}": partial(_exhaust, it) for what, it in loaders.items()}
    seconds = time_in_turn(candidates, REPETITIONS)
    note = (
        f"{indices.size} windows of {WINDOW} frames in batches of {indices.shape[1]}, {REPETITIONS} repetitions, wall "
        f"time, workers run already; the gather gives {indices.size / seconds[reference]:,.0f} windows/s."
    )
    return table(f"DataLoader with worker processes, {name}", seconds, reference, note)


def _bare(memory: NDArray[Any], indices: NDArray[np.int64]) -> Callable[[], None]:
    per_clip = FRAMES - WINDOW + 1
    starts = indices // per_clip * FRAMES + indices % per_clip
    return lambda: _exhaust(gather(memory, start).astype(np.int64) for start in starts)


def _copied(batch: Tensor, _indices: object) -> Tensor:
    return batch.clone()


def _exhaust(batches: Iterable[object]) -> None:
    deque(batches, maxlen=1)
