"""Requests to an object store, counted by a proxy in front of a moto server: writing, loading, streaming, checking."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvt_pipeline.codes.loading.batches import make_batches
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.storage import Place, as_place
from tests.object_stores import BUCKET, Proxy, connect, moto_server, proxy_to
from tests.toy_codes import SCHEMA, planned, write

SHARDS = 40
CLIPS_PER_SHARD = 8
CLIP_FRAMES = 128
FRAMES, BATCH = 16, 32


def run() -> str:
    """Shards of 16 chunks; every clip gives one window in an epoch."""
    with pytest.MonkeyPatch.context() as patch, moto_server() as address, proxy_to(address) as proxy:
        connect(proxy.address, patch)
        rows = _measure(proxy, as_place(f"s3://{BUCKET}/data.zarr"))
    lines = ["| work | GET | PUT | LIST | per shard | per window |", "|---|---|---|---|---|---|"]
    windows = SHARDS * CLIPS_PER_SHARD
    for name, counts in rows.items():
        total = sum(counts.values())
        numbers = [counts.get("GET", 0), counts.get("PUT", 0), counts.get("LIST", 0)]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {total / SHARDS:.2f} | {total / windows:.3f} |")
    title = f"### Requests to an object store: {SHARDS} shards of {CLIPS_PER_SHARD} clips of {CLIP_FRAMES} frames"
    return "\n".join([title, "", *lines, ""])


def _measure(proxy: Proxy, url: Place) -> dict[str, dict[str, int]]:
    """Requests by method, for each kind of work."""
    rows = {}

    def count(name: str) -> None:
        rows[name] = dict(proxy.counts)
        proxy.counts.clear()

    clips = [planned(f"clip{number}", CLIP_FRAMES) for number in range(SHARDS * CLIPS_PER_SHARD)]
    write(url, clips, replace(SCHEMA, shard_frames=CLIPS_PER_SHARD * CLIP_FRAMES, chunk_frames=64))
    count("write and publish the store")
    CodeWindows(url, frames=FRAMES, cache="ram")
    count("load it (`--cache ram` or `mmap`)")
    verify_store(url)
    count("`lvt verify`")
    windows = CodeWindows(url, frames=FRAMES, cache="stream")
    batches = make_batches([windows], BATCH, 0, shuffle="shards", pool_bytes=4 * CLIPS_PER_SHARD * windows.window_bytes)
    steps = len(clips) // BATCH
    for epoch in range(3):
        for step in range(epoch * steps, (epoch + 1) * steps):
            batches.read(step, range(BATCH))
        count("open and stream, first epoch" if epoch == 0 else f"stream, epoch {epoch + 1}")
    return rows
