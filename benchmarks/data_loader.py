"""torch's `DataLoader` over `CodeWindows`, in this process, against a bare gather of the same windows as int64."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader import BATCH, CLIPS, COUNTED, FRAMES, REPETITIONS, WINDOW, data_loader, gather, write_codes
from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.codes.loading.windows import CodeWindows

SIZES = {"16x16x2 uint8": (2, 256), "16x16x4 uint16": (4, 512)}  # n_c and K


def run() -> str:
    """Processor time of one thread, for loops that keep one batch while they make the next."""
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
        windows = CodeWindows(Path(folder) / "data.zarr", frames=WINDOW, cache="ram")
        memory = windows.store.read_range(0, CLIPS * FRAMES)
    indices = [generator.integers(0, len(windows), BATCH) for _ in range(COUNTED // BATCH)]
    per_clip = FRAMES - WINDOW + 1
    starts = [batch // per_clip * FRAMES + batch % per_clip for batch in indices]
    reference = "bare gather, int64"
    seconds = time_in_turn(
        {
            reference: lambda: _exhaust(gather(memory, start).astype(np.int64) for start in starts),
            "CodeWindows.batch": lambda: _exhaust(windows.batch(batch) for batch in indices),
            "DataLoader, collate_fn=CodeWindows.collate": lambda: _exhaust(data_loader(windows, indices, True)),
            "DataLoader, torch's collate": lambda: _exhaust(data_loader(windows, indices, False)),
        },
        REPETITIONS,
        time.thread_time,
    )
    note = (
        f"{COUNTED} windows of {WINDOW} frames in batches of {BATCH}, {REPETITIONS} repetitions, processor time of one "
        f"thread; the gather gives {COUNTED / seconds[reference]:,.0f} windows/s."
    )
    return table(f"DataLoader, {name}", seconds, reference, note)


def _exhaust(batches: Iterable[object]) -> None:
    deque(batches, maxlen=1)
