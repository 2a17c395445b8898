"""The definition of a clip: where its frames come from, its time range, and which split and class it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lvt_pipeline import lineage
from lvt_pipeline.errors import ManifestError
from lvt_pipeline.storage import has_line_break

# What holds the frames: a video file, a record of a tfrecord file, an episode in a video file of a LeRobot folder, or a
# folder with a picture per frame.
ClipKind = Literal["video", "bair", "rlds", "lerobot", "frames"]
SPLITS = ("train", "val", "test")
CLIP_KINDS: tuple[ClipKind, ...] = get_args(ClipKind)


# What may be unusual about a video that is read all the same. Receipts hold these and summaries count them.
NOTE_KINDS = (
    "non-square-pixels",  # the sample aspect ratio is not 1:1; pixels are taken as square
    "hdr",  # PQ, HLG or BT.2020; stored without tone mapping
    "odd-angle",  # the display matrix asks for an angle other than a multiple of 90 degrees
    "size-change",  # frames change size; all are scaled to the first size
    "repaired-times",  # some time stamps were wrong or missing
    "rate",  # the header's frame rate disagrees with the time stamps
    "gaps",  # a regular video shows no new frame for some time
    "holes",  # frames are missing in the middle; the others are kept
    "decoder-errors",  # the decoder reported damage without marking pictures
    "undecodable-start",  # pictures before the first one that can be decoded were left out
    "several-streams",  # one of several video streams was chosen
    "short-range",  # the clip's range ends after the video
    "truncated",  # the file was cut short; the frames that are there are kept
)


@dataclass(frozen=True)
class Note:
    """Something unusual about a clip that was accepted. `kind` is one of `NOTE_KINDS`, `text` is for people."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One line of a manifest.

    Attributes:
        source: where the frames are, an absolute path or a URL: a video, a tfrecord file, a folder of pictures.
        digest: SHA-256 of the video's bytes, of the record's bytes, of the rows of an episode in a LeRobot folder, or
            of the digests of the pictures; empty when the source is missing, and until it is read.
        more_digest: SHA-256 of what else the clip holds: of an episode in a LeRobot folder the packets of the camera;
            of a clip with `arrays` these files. None for others.
        start, end: time range in seconds from the first frame, the end excluded; None is the source's own.
        split: "train", "val" or "test"; empty until the content decides it.
        metadata: anything else known about the clip; it never changes a result.
        kind: what the source is.
        record: which record of a tfrecord file, counted from 0, or the number of an episode.
        camera: which of a record's cameras.
        fps: frames per second of a source that holds no times (all kinds but "video").
        arrays: files with a row of numbers per frame, paths or URLs by name.
        split_by: "content" when nothing but the content decided the split, so that another clip may take its place in
            a split that would stay empty; None when the source or its user decided.
    """

    id: str
    source: str
    digest: str = ""
    more_digest: str | None = None
    start: float | None = None
    end: float | None = None
    split: str = "train"
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kind: ClipKind = "video"
    record: int | None = None
    camera: str | None = None
    fps: float | None = None
    arrays: Mapping[str, str] = field(default_factory=dict)
    split_by: str | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of what the clip shows."""
        kind = {} if self.kind == "video" else {"kind": self.kind, "camera": self.camera, "fps": self.fps}
        more = {} if self.more_digest is None else {"more": self.more_digest}
        return lineage.clip_fingerprint(self.digest, self.start, self.end, kind | more)


def require_clip(clip: Clip, where: str) -> None:
    """Refuse a clip that no later stage could use.

    Args:
        where: file and line, named in the error.

    Raises:
        ManifestError: its id, time range, kind or what belongs to the kind.
    """
    # Ids become file names of samples and pictures, so they must stay inside their folder.
    if has_line_break(clip.id):
        raise ManifestError(f"{where}: the id {clip.id!r} has a line break or control character in it; rename the clip")
    if any(part in ("", ".", "..") for part in clip.id.split("/")):
        raise ManifestError(f"{where}: the id {clip.id!r} is not a relative path such as folder/name")
    for name, moment in (("start", clip.start), ("end", clip.end)):
        if moment is not None and not (_is_number(moment) and 0 <= moment < math.inf):
            raise ManifestError(f"{where}: {name}={moment!r} is not a time in seconds")
    if clip.end is not None and clip.end <= (clip.start or 0):
        raise ManifestError(f"{where}: the range ends at {clip.end} s, before it starts at {clip.start or 0} s")
    if clip.kind not in CLIP_KINDS:
        raise ManifestError(f"{where}: kind {clip.kind!r} is not one of {', '.join(CLIP_KINDS)}")
    _check_kind(clip, where)


def _check_kind(clip: Clip, where: str) -> None:
    if clip.arrays and clip.kind not in ("video", "frames"):
        raise ManifestError(f"{where}: a clip of kind {clip.kind} holds its own arrays and takes no others")

    if clip.kind == "video":
        given = [name for name in ("record", "camera", "fps") if getattr(clip, name) is not None]
        if given:
            raise ManifestError(f"{where}: {given[0]} does not belong to a video; name the kind of the clip")
        return
    if clip.fps is None or not (_is_number(clip.fps) and 0 < clip.fps < math.inf):
        raise ManifestError(f"{where}: a clip of kind {clip.kind} needs fps, its frames per second, found {clip.fps!r}")
    is_record = isinstance(clip.record, int) and not isinstance(clip.record, bool) and clip.record >= 0
    if clip.kind != "frames" and not (is_record and isinstance(clip.camera, str)):
        raise ManifestError(f"{where}: a clip of kind {clip.kind} needs a record (a number from 0 on) and a camera")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
