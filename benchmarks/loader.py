"""Windows of codes from memory, the mapped file and the stream, against a bare NumPy gather and against zarr."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.measuring import table, time_in_turn
from lvt_pipeline.data.batches import make_batches
from lvt_pipeline.data.code_plan import PlannedClip
from lvt_pipeline.data.code_writer import CodeStoreWriter
from lvt_pipeline.data.codes import CodeSchema, CodeStore, open_array, open_codes
from lvt_pipeline.data.windows import CodeWindows
from lvt_pipeline.provenance import Provenance

CLIPS, FRAMES, WINDOW, BATCH, BATCHES, REPETITIONS = 400, 40, 16, 64, 20, 5


def run() -> str:
    """The paper's window, 16x16x16x4 uint16, batches of 64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr"
        write_store(path)
        store = open_codes(path)
        ram, mapped = (CodeWindows(store, frames=WINDOW, cache=tier) for tier in ("ram", "mmap"))
        memory = store.read_range(0, CLIPS * FRAMES)
        generator = np.random.default_rng(0)
        batches = [generator.integers(0, len(ram), BATCH) for _ in range(BATCHES)]
        starts = [np.array([ram.clip(i).offset for i in batch]) for batch in batches]
        steps = np.arange(WINDOW)
        seconds = time_in_turn(
            {
                "bare NumPy gather": lambda: [memory[s[:, None] + steps].astype(np.int64) for s in starts],
                "CodeWindows ram": lambda: [ram.batch(batch) for batch in batches],
                "CodeWindows mmap": lambda: [mapped.batch(batch) for batch in batches],
                "stream, every clip once an epoch": streaming(store, 1),
                "stream, 4 windows per clip": streaming(store, 4),
            },
            REPETITIONS,
        )
        array = open_array(path)
        direct = time_in_turn(
            {
                "windows one by one from the store": lambda: [store.read_range(s, s + WINDOW) for s in starts[0]],
                "direct zarr reads": lambda: [array[s : s + WINDOW] for s in starts[0]],
            },
            2,
        )
        seconds |= {name: value * BATCHES for name, value in direct.items()}
    windows = BATCH * BATCHES
    rates = ", ".join(f"{name} {windows / value:,.0f}/s" for name, value in seconds.items())
    note = f"{windows} windows of {WINDOW}x16x16x4 uint16 as int64, {REPETITIONS} repetitions. Windows: {rates}."
    return table("Loading windows of codes", seconds, "bare NumPy gather", note)


def streaming(store: CodeStore, windows_per_clip: int) -> Callable[[], object]:
    """Take the next batches of an endless stream, so that what it reads ahead is paid for too."""
    windows = CodeWindows(store, frames=WINDOW, cache="stream")
    batches = make_batches([windows], BATCH, 0, shuffle="shards", windows_per_clip=windows_per_clip)
    steps = count()
    return lambda: [batches.read(next(steps), range(BATCH)) for _ in range(BATCHES)]


def write_store(path: Path) -> None:
    """Codes of which 85 % stay from frame to frame, as real ones do."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 512, (CLIPS * FRAMES, 16, 16, 4), dtype=np.uint16)
    for frame in range(1, len(codes)):
        stays = generator.random((16, 16, 4)) < 0.85
        codes[frame][stays] = codes[frame - 1][stays]
    schema = CodeSchema(codebook_size=512, num_codebooks=4, grid=(16, 16), tokenizer="0" * 64)
    clips = [
        PlannedClip(id=str(i), split="train", label=None, length=FRAMES, fingerprint=str(i), fps=10.0, source="")
        for i in range(CLIPS)
    ]
    with CodeStoreWriter.open(path, schema, clips, settings={}) as writer:
        for shard in writer.pending_shards():
            begin = shard.index * schema.shard_frames
            writer.write_shard(shard.index, codes[begin : begin + shard.num_frames])
        writer.publish(Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint=""))
