"""Check for enough disk space before hours are spent on decoding frames that cannot be written.

A few clips, spread over the manifest, are looked into without decoding; the mean of their frames stands for all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvt_pipeline.errors import LVTError
from lvt_pipeline.frames.codecs import SIZE_SHARES
from lvt_pipeline.interrupts import StopRequest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.ingest.workers import run_isolated
from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place, StoreURL
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.container.facts import inspect_video
from lvt_pipeline.video.decode import choose_frames
from lvt_pipeline.video.locations import is_url
from lvt_pipeline.video.picture_folders import pictures_in
from lvt_pipeline.video.read import read_clip
from lvt_pipeline.video.settings import GeometrySettings

NUM_PROBES = 64
PROBE_SECONDS = 20.0  # for looking into one clip
# A run over less than this ends within seconds and needs little room; looking into its clips would not pay.
MANY_LINES, MANY_BYTES = 1000, 100_000_000
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Probe:
    """A clip to look into."""

    clip: Clip
    geometry: GeometrySettings


def count_frames(probe: Probe) -> int:
    """How many frames a clip will give, without decoding it. Runs in a worker process."""
    clip, geometry = probe.clip, probe.geometry
    if clip.kind in ("bair", "rlds", "lerobot"):
        return len(read_clip(clip, geometry, Path()).frames)
    if clip.kind == "frames":
        return len(pictures_in(clip.source)) // geometry.stride
    return len(choose_frames(inspect_video(clip.source).timing, clip.start, clip.end, geometry))


def require_space(
    out: Place, clips: Sequence[Clip], settings: IngestSettings, num_workers: int, stop: StopRequest
) -> None:
    """Check that the disk of `out` has room for the frames of these clips. Small runs and buckets are not checked.

    Raises:
        LVTError: the disk has too little room.
    """
    local = [clip for clip in clips if not is_url(clip.source)]
    if isinstance(out, StoreURL) or not local or (len(local) < MANY_LINES and _source_bytes(local) < MANY_BYTES):
        return
    frames = len(clips) * _mean_frames(local, settings.geometry, num_workers, stop)
    needed = int(frames * settings.geometry.size**2 * 3 * SIZE_SHARES[settings.codec])
    free = shutil.disk_usage(out).free
    if needed > free:
        raise LVTError(
            f"the frames of {count_of(len(clips), 'clip')} need about {needed / _GIGABYTE:,.1f} GB, {out} has "
            f"{free / _GIGABYTE:,.1f} GB free; make room, ask for less (--size, --fps, --max-frames, --codec webp), "
            "or try anyway with --no-space-check"
        )


def _mean_frames(clips: Sequence[Clip], geometry: GeometrySettings, num_workers: int, stop: StopRequest) -> float:
    """The mean number of frames of some of the clips; a clip that cannot be read has none."""
    probes = [Probe(clip, geometry) for clip in clips[:: max(1, len(clips) // NUM_PROBES)]]
    results = run_isolated(
        count_frames,
        probes,
        num_workers=num_workers,
        deadline_seconds=lambda probe: PROBE_SECONDS,
        should_stop=lambda: stop,
    )
    counts = [count if isinstance(count, int) else 0 for _, count in results]
    return sum(counts) / max(1, len(counts))


def _source_bytes(clips: Sequence[Clip]) -> int:
    """Bytes of the clips' files. Many clips of one file count it often, as do the frames they give."""
    total = 0
    for clip in clips:
        try:
            total += os.stat(clip.source).st_size
        except OSError:
            continue
    return total
