"""Windows of codes from memory, the mapped file and the stream, against a bare NumPy gather and against zarr.

Every way of reading has a gather from memory beside it that gives the same dtype: int64, which `CodeWindows` promises,
and that of the store, in which batches for training come. What bounds a stream is decompression, also measured alone. A
stream and decompression use all cores, so nothing else should run meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from numpy.typing import NDArray

from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.codes.loading.batches import Batches, SequenceBatches, ShardSequence, make_batches
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, shard_name
from lvt_pipeline.codes.shard_file import CHECKSUM_BYTES, chunks_of
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance

CLIPS, CONTENTS, FRAMES, WINDOW, BATCH, REPETITIONS = 2048, 64, 40, 16, 64, 11
COUNTED = 1280  # windows that the times in the table are for
STREAMED = 4 * CLIPS  # windows of a stream in a repetition: whole pools


def run() -> str:
    """The paper's window, 16x16x16x4 uint16, batches of 64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        write_store(path)
        store = open_codes(path)
        ram, mapped = (CodeWindows(store, frames=WINDOW, cache=tier) for tier in ("ram", "mmap"))
        memory = store.read_range(0, CLIPS * FRAMES)
        generator = np.random.default_rng(0)
        indices = [generator.integers(0, len(ram), BATCH) for _ in range(COUNTED // BATCH)]
        per_clip = FRAMES - WINDOW + 1
        starts = [batch // per_clip * FRAMES + batch % per_clip for batch in indices]
        chunks, array = compressed_chunks(store), zarr.open_array(path / "codes", mode="r")
        # What is done, and how many windows it gives.
        candidates: dict[str, tuple[Callable[[], object], int]] = {
            "bare NumPy gather, int64": (lambda: [gather(memory, s).astype(np.int64) for s in starts], COUNTED),
            "CodeWindows ram, int64": (lambda: [ram.batch(batch) for batch in indices], COUNTED),
            "CodeWindows mmap, int64": (lambda: [mapped.batch(batch) for batch in indices], COUNTED),
            "bare NumPy gather, uint16": (lambda: [gather(memory, s) for s in starts], COUNTED),
            "training batches, ram": (lambda: take(make_batches([ram], BATCH, 0), COUNTED), COUNTED),
            "training batches, mmap": (lambda: take(make_batches([mapped], BATCH, 0), COUNTED), COUNTED),
            "training batches, stream, every clip once an epoch": (streaming(store, 1), STREAMED),
            "training batches, stream, 2 windows per clip": (streaming(store, 2), STREAMED),
            "training batches, stream, 4 windows per clip": (streaming(store, 4), STREAMED),
            "decompression of every clip, nothing else": (lambda: decompress(chunks), CLIPS),
            "windows one by one from the store": (lambda: [store.read_range(s, s + WINDOW) for s in starts[0]], BATCH),
            "direct zarr reads": (lambda: [array[s : s + WINDOW] for s in starts[0]], BATCH),
        }
        seconds = time_in_turn({name: work for name, (work, _) in candidates.items()}, REPETITIONS)
    seconds = {name: value * COUNTED / candidates[name][1] for name, value in seconds.items()}
    rates = ", ".join(f"{name} {COUNTED / value:,.0f}" for name, value in seconds.items())
    note = (
        f"{COUNTED} windows of {WINDOW}x16x16x4 uint16 in batches of {BATCH}, {REPETITIONS} repetitions, "
        f"{os.cpu_count()} cores. Windows per second: {rates}."
    )
    return table("Loading windows of codes", seconds, "bare NumPy gather, uint16", note)


def gather(memory: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[Any]:
    """Windows by their first frames, (B, WINDOW, 16, 16, 4)."""
    windows: NDArray[Any] = memory[starts[:, None] + np.arange(WINDOW)]
    return windows


def take(batches: Batches, num_windows: int) -> None:
    """The first batches of a training."""
    for step in range(num_windows // BATCH):
        batches.read(step, range(BATCH))


def streaming(store: CodeStore, windows_per_clip: int) -> Callable[[], None]:
    """Go on with a stream by the batches of some whole pools, reading as many ahead as were read ahead before."""
    windows = CodeWindows(store, frames=WINDOW, cache="stream")
    sequence = ShardSequence(windows, 0, lambda first, stop: np.arange(first, stop) % BATCH, windows_per_clip)
    batches = SequenceBatches([sequence], BATCH, 0, [1.0])
    steps = count()

    def go_on() -> None:
        for _ in range(STREAMED // BATCH):
            batches.read(next(steps), range(BATCH))
        # What is read ahead belongs to this candidate's time, not to the next one's.
        assert sequence._thread is not None
        sequence._thread.submit(int).result()

    return go_on


def compressed_chunks(store: CodeStore) -> list[bytes]:
    """Every chunk of a store as zstd made it."""
    chunks = []
    for shard in store.shards():
        data = (store.path / shard_name(shard)).read_bytes()
        for chunk in chunks_of(data, store.schema):
            chunks.append(data[chunk.offset : chunk.offset + chunk.size - CHECKSUM_BYTES])
    return chunks


def decompress(chunks: list[bytes]) -> None:
    """Decompress chunks on all cores into memory that is used again and again."""

    def work(part: list[bytes]) -> None:
        codes = np.empty(len(Zstd().decode(part[0])), np.uint8)
        for chunk in part:
            Zstd().decode(chunk, codes)

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, [chunks[core::cores] for core in range(cores)]))


def write_store(path: Path) -> None:
    """Codes of which 85 % stay from frame to frame, as real ones do."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 512, (CONTENTS * FRAMES, 16, 16, 4), dtype=np.uint16)
    for frame in range(1, len(codes)):
        stays = generator.random((16, 16, 4)) < 0.85
        codes[frame][stays] = codes[frame - 1][stays]
    write_codes(path, np.tile(codes, (CLIPS // CONTENTS, 1, 1, 1)).reshape(CLIPS, FRAMES, 16, 16, 4), 512)


def write_codes(path: Path, codes: NDArray[np.uint16], codebook_size: int) -> None:
    """A code store of training clips, (clips, T, h, w, n_c)."""
    count, frames, h, w, num_codebooks = codes.shape
    schema = CodeSchema(codebook_size=codebook_size, num_codebooks=num_codebooks, grid=(h, w), tokenizer="0" * 64)
    clips = [
        PlannedClip(id=str(i), split="train", label=None, length=frames, fingerprint=str(i), fps=10.0, source="")
        for i in range(count)
    ]
    flat = codes.reshape(count * frames, h, w, num_codebooks)
    with CodeStoreWriter.open(path, schema, clips, settings={}) as writer:
        for shard in writer.pending_shards():
            begin = shard.index * schema.shard_frames
            writer.write_shard(shard.index, flat[begin : begin + shard.num_frames])
        writer.publish(Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint=""))
