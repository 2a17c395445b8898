"""Reading a whole store back: lvt's own reader, with one thread and with all, against zarr."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import zarr

from benchmarks.measuring import time_in_turn
from benchmarks.real_codes import codes_to_measure
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, shard_name
from lvt_pipeline.codes.shard_file import ShardFile, read_frames
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.storage import open_storage

MEGABYTES, REPETITIONS = 64, 7


def run() -> str:
    """Codes repeated until there are some tens of megabytes; files are in the page cache."""
    cores = len(os.sched_getaffinity(0))
    parts = []
    for name, (clips, codebook_size) in codes_to_measure().items():
        codes = np.concatenate(clips)
        codes = np.tile(codes, (max(1, MEGABYTES * 10**6 // codes.nbytes), 1, 1, 1))
        schema = CodeSchema(
            codebook_size=codebook_size, num_codebooks=codes.shape[3], grid=codes.shape[1:3], tokenizer="0" * 64
        )
        clip = PlannedClip(
            id="all", split="train", label=None, length=len(codes), fingerprint="all", fps=10.0, source=""
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.zarr"
            with CodeStoreWriter.open(path, schema, [clip]) as writer:
                for shard in writer.pending_shards():
                    begin = shard.index * schema.shard_frames
                    writer.write_shard(shard.index, codes[begin : begin + shard.num_frames])
                writer.publish(
                    Provenance(kind="codes", stage="benchmark", version=1, settings={}, inputs={}, fingerprint="")
                )
            store, array = open_codes(path), zarr.open_array(path / "codes", mode="r")
            assert np.array_equal(store["all"], codes)
            candidates = {
                "zarr": lambda array=array: array[:],
                "lvt, 1 thread": lambda store=store: read_frames(
                    lambda index: ShardFile(open_storage(store.path), shard_name(index)),
                    store.schema,
                    0,
                    store.array_frames,
                    threads=1,
                ),
                f"lvt, {cores} threads": lambda store=store: store.read_range(0, store.array_frames),
            }
            seconds = time_in_turn(candidates, REPETITIONS)
        lines = [
            f"### Reading a store back: {name}",
            "",
            f"{codes.nbytes / 1e6:.0f} MB of codes, {codes.dtype}, {cores} cores, {REPETITIONS} repetitions.",
            "",
            "| what | median | MB/s of codes |",
            "|---|---|---|",
            *(f"| {what} | {value:.3f} s | {codes.nbytes / 1e6 / value:.0f} |" for what, value in seconds.items()),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
