"""The task of a decoding worker of ingest: read one line of the manifest, cut it, and pack its clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.frames.codecs import Codec, encode_frames
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.video.clips import Clip, Note
from lvt_pipeline.video.decode import DecodedClip
from lvt_pipeline.video.read import read_clip
from lvt_pipeline.video.scenes import Piece, cut


@dataclass(frozen=True)
class DecodeTask:
    """One line and the settings to decode it with."""

    clip: Clip
    settings: IngestSettings
    downloads: Path


@dataclass(frozen=True)
class DecodedPayload:
    """The result of a worker for a clip, as it will be stored in the shard.

    Attributes:
        begins: when it begins, in seconds of the source, if it is a piece of its line.
    """

    payload: bytes
    shape: tuple[int, int, int]
    fps: float
    decoder: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    begins: float | None = None
    truncated: str = ""
    notes: tuple[Note, ...] = ()


def decode_task(task: DecodeTask) -> list[DecodedPayload]:
    """Decode one line and pack its clips. Runs in a worker process.

    Raises:
        DecodeError: with a reason.
    """
    settings, geometry = task.settings, task.settings.geometry
    read = read_clip(task.clip, geometry, task.downloads)
    num_frames = len(read.frames)
    refuse_short(num_frames, settings.min_frames)
    if not geometry.cuts:
        return [_packed(read, Piece(read.begins, 0, num_frames), settings.codec, begins=None)]
    pieces = cut(read, geometry, settings.min_frames)
    if not pieces:
        raise DecodeError("too-short", f"no piece of the clip has {settings.min_frames} frames")
    return [_packed(read, piece, settings.codec, begins=piece.begins) for piece in pieces]


def _packed(read: DecodedClip, piece: Piece, codec: Codec, *, begins: float | None) -> DecodedPayload:
    frames = read.frames[piece.first : piece.stop]
    return DecodedPayload(
        encode_frames(frames, codec),
        frames.shape[:3],
        read.fps,
        read.decoder,
        {name: rows[piece.first : piece.stop] for name, rows in read.arrays.items()},
        begins,
        read.truncated,
        read.notes,
    )


def refuse_short(num_frames: int, min_frames: int) -> None:
    if num_frames < min_frames:
        raise DecodeError("too-short", f"the clip has {num_frames} frames, at least {min_frames} are asked for")
