"""`lvt ingest` against the bare loop that people write: decode in order, crop, resize, with as many processes.

Both are timed as a whole, start of the processes included. The bare loop checks nothing and writes nothing. Processor
time is shown too: beside other programs it varies less than wall time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import decord
import numpy as np
from PIL import Image

from benchmarks.real_videos import videos_to_measure
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.video.settings import GeometrySettings

SIZE, REPETITIONS = 64, 3
PROCESSES = len(os.sched_getaffinity(0))


def decode_and_resize(path: str) -> int:
    """The bare loop's work on one video; returns the number of frames."""
    reader = decord.VideoReader(path, num_threads=1)
    frames = np.empty((len(reader), SIZE, SIZE, 3), np.uint8)
    for frame in frames:
        picture = reader.next().asnumpy()
        height, width, _ = picture.shape
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        square = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
        frame[:] = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return len(frames)


def run() -> str:
    """All videos to 64x64 frames."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        what, paths = videos_to_measure(folder / "videos")
        for index, path in enumerate(paths):
            link = folder / "linked" / f"{index:03d}{path.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
        build_manifest(folder / "linked", folder / "m.jsonl")
        in_order = sorted(str(path) for path in (folder / "linked").iterdir())
        num_frames = 0

        def bare() -> None:
            nonlocal num_frames
            with get_context("spawn").Pool(PROCESSES) as pool:
                num_frames = sum(pool.imap(decode_and_resize, in_order, chunksize=1))
                pool.close()
                pool.join()

        def ours(geometry: GeometrySettings) -> None:
            settings = IngestSettings(geometry=geometry)
            ingest(folder / "m.jsonl", folder / "frames", settings, num_workers=PROCESSES, overwrite=True)

        candidates: dict[str, Callable[[], None]] = {
            "bare loop": bare,
            "lvt ingest": lambda: ours(GeometrySettings(size=SIZE)),
            "lvt ingest --decoder decord": lambda: ours(GeometrySettings(size=SIZE, decoder="decord")),
            "lvt ingest --decoder decord --trust-bitstream": lambda: ours(
                GeometrySettings(size=SIZE, decoder="decord", trust_bitstream=True)
            ),
            "lvt ingest --resize decoder": lambda: ours(GeometrySettings(size=SIZE, resize="decoder")),
        }
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        for number in range(REPETITIONS + 1):
            for name, candidate in candidates.items():
                measured = _wall_and_processor(candidate)
                if number:  # the first round fills caches
                    rounds[name].append(measured)
    lines = [
        "### Ingest",
        "",
        f"{what}, {num_frames} frames, {PROCESSES} processes, {REPETITIONS} repetitions.",
        "",
        "| candidate | wall time | ratio to the bare loop | processor time | ratio to the bare loop |",
        "|---|---|---|---|---|",
    ]
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in rounds.items()
    }
    for name, (wall, processor) in medians.items():
        bare_wall, bare_processor = medians["bare loop"]
        lines.append(
            f"| {name} | {wall:.1f} s | {wall / bare_wall:.2f} | {processor:.1f} s | {processor / bare_processor:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _wall_and_processor(run_one: Callable[[], None]) -> tuple[float, float]:
    """Seconds of both kinds, those of finished child processes included."""
    wall, before = time.perf_counter(), os.times()
    run_one()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])
