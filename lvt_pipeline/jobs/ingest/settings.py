"""What decides the bytes of frame shards, and the fingerprints of what was made with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lvt_pipeline import lineage
from lvt_pipeline.config import LATER, to_plain
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.frames.codecs import Codec, lossy_version
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.decode import GeometrySettings
from lvt_pipeline.video.read import reader_version, readers_of

STAGE = "ingest"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Everything that decides the bytes of the shards."""

    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    codec: Codec = "raw"  # png and webp are lossless too, smaller and slower to read; jpeg is not lossless
    clips_per_shard: int = 64  # lines of the manifest, which give one clip each unless videos are cut
    min_frames: int = 1  # a clip with fewer frames is a failure
    shard_mb: float | None = field(default=None, metadata=LATER)  # full at this size, not at a number of clips

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1 or self.min_frames < 1:
            raise ConfigError("clips_per_shard and min_frames are at least 1")
        if self.shard_mb is not None and not self.shard_mb > 0:
            raise ConfigError(f"shard_mb={self.shard_mb} is not a size in megabytes")


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
    """Hash of what was tried on a clip that failed."""
    return lineage.failed_clip_fingerprint(
        clip.fingerprint,
        to_plain(settings.geometry),
        [reader_version(reader) for reader in readers_of(clip, settings.geometry)],
        settings.min_frames,
        VERSION,
    )
