"""Settings that decide the bytes of frame shards, and the fingerprints that depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lvt_pipeline import lineage
from lvt_pipeline.config import to_plain
from lvt_pipeline.frames.codecs import Codec, lossy_version
from lvt_pipeline.job import Job
from lvt_pipeline.settings import Settings, setting
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.read import reader_version, readers_of
from lvt_pipeline.video.settings import GeometrySettings

STAGE = "ingest"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="frames")


@dataclass(frozen=True, kw_only=True)
class IngestSettings(Settings):
    """Everything that decides the bytes of the shards."""

    other_names: ClassVar[Mapping[str, str]] = {
        "format": "codec",
        "compression": "codec",
        "shard_size": "clips_per_shard",
        "maxcount": "clips_per_shard",
        "maxsize": "shard_mb",
    }

    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    min_frames: int = setting(1, "Smallest number of frames; a shorter clip is recorded as a failure.", at_least=1)
    codec: Codec = setting("raw", "Format of stored frames. raw is the largest and fastest; only jpeg changes pixels.")
    clips_per_shard: int = setting(64, "Number of manifest lines per shard, which is one tar file.", at_least=1)
    shard_mb: float | None = setting(
        None, "Size in megabytes at which a shard is full, instead of --clips-per-shard.", above=0
    )


def line_fingerprint(line: Clip, settings: IngestSettings, reader: str) -> str:
    """Hash of what the clips of a line are made of: its frames, and what else changes which or how many there are."""
    others: dict[str, Any] = {}
    if settings.geometry.cuts:
        others["min_frames"] = settings.min_frames
    lossy = lossy_version(settings.codec)
    if lossy is not None:
        others["codec"] = lossy
    geometry, decoder = to_plain(settings.geometry), reader_version(reader)
    return lineage.clip_frames_fingerprint(line.fingerprint, geometry, decoder, VERSION, others)


def failure_fingerprint(clip: Clip, settings: IngestSettings) -> str:
    """Hash of the content, the settings and the readers of a clip that failed."""
    return lineage.failed_clip_fingerprint(
        clip.fingerprint,
        to_plain(settings.geometry),
        [reader_version(reader) for reader in readers_of(clip, settings.geometry)],
        settings.min_frames,
        VERSION,
    )
