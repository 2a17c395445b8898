"""Records of clips as frames: to be written, in a shard, failed; and the receipt of a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.frames.codecs import Codec, encode_frames
from lvt_pipeline.storage import Place, StoreURL, open_storage
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.geometry import Frames, require_frames

FORMAT_VERSION = 1  # raised when the bytes of a shard change for the same frames
FAILURES_NAME = "failures.jsonl"
NEXT_NAME = "next"  # the folder of shards that wait to be published
SHARD_PATTERN = "*-[0-9][0-9][0-9][0-9][0-9][0-9]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of a manifest line a clip is, where one line gives several clips (`video.scenes`).

    Attributes:
        of: id of the line.
        fingerprint: hash of what all clips of the line are made of.
        number: 0, 1, ...
        parts: how many clips the line gave.
        begins: seconds from the first frame of the source.
    """

    of: str
    fingerprint: str
    number: int
    parts: int
    begins: float


@dataclass(frozen=True, slots=True)
class ArrayFacts:
    """An array next to the frames of a clip, in the form that code stores hold it in (`stored_rows`).

    Attributes:
        dtype: such as "float32".
        dimension: values per frame.
        digest: hash of its values, type and shape.
    """

    dtype: str
    dimension: int
    digest: str

    @classmethod
    def of(cls, array: NDArray[Any]) -> ArrayFacts:
        """The facts of an array with a row per frame."""
        rows = stored_rows(array)
        digest = hashlib.sha256(f"{rows.dtype} ".encode() + rows.astype(rows.dtype.newbyteorder("<")).tobytes())
        return cls(str(rows.dtype), rows.shape[1], lineage.array_fingerprint(digest.hexdigest(), rows.shape))


def stored_rows(array: NDArray[Any]) -> NDArray[Any]:
    """An array with a row per frame as code stores hold it: (T, d), integers as they are, all others float32.

    Raises:
        ShapeError: it does not hold numbers, or has no rows.
    """
    if array.dtype.kind not in "biuf" or not array.size or not array.ndim:
        raise ShapeError(f"an array of {array.dtype} with shape {array.shape} does not hold rows of numbers")
    dtypes: dict[str, np.dtype[Any]] = {"f": np.dtype(np.float32), "b": np.dtype(np.uint8)}
    dtype = dtypes.get(array.dtype.kind, array.dtype.newbyteorder("="))
    rows: NDArray[Any] = array.reshape(len(array), -1).astype(dtype)
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameClip:
    """One clip inside finished shards; before it is written (`FrameSample`) without its place there.

    Attributes:
        key: name inside the tar, without extension.
        fingerprint: hash of what the frames are made of (clip content, geometry, decoder).
        source: the video's path.
        digest: SHA-256 of the source's bytes.
        decoder: family and version that decoded it, such as "decord 0.6.0".
        offset: where the pixels (codec raw) or the picture (other codecs) begin in the shard, in bytes.
        nbytes: how many bytes they take there.
        shard: name of the tar.
        arrays: offset and bytes in the shard of each `.npy` file next to the frames, by name.
        array_facts: what they hold, by name; None without arrays, and in shards of older versions.
        pixels: fingerprint of the frames alone, where `fingerprint` covers arrays too; None where it does not. Codes
            follow from it, so that other arrays leave them valid.
        part: which part of a manifest line it is; None when it is all of it.
        truncated: description of a file that was cut short but is kept; None for a whole one.
        notes: unusual properties of the clip that were accepted; None when nothing is.
    """

    id: str
    key: str = ""
    split: str
    label: str | None
    fps: float
    source: str
    digest: str
    fingerprint: str
    num_frames: int
    height: int
    width: int
    decoder: str
    codec: Codec
    offset: int = 0
    nbytes: int = 0
    shard: str = ""
    arrays: Mapping[str, list[int]] | None = None
    part: Part | None = None
    truncated: str | None = None
    notes: tuple[Note, ...] | None = None
    array_facts: Mapping[str, ArrayFacts] | None = None
    pixels: str | None = None

    def __repr__(self) -> str:
        label = "" if self.label is None else f", label {self.label!r}"
        return f"FrameClip({self.id!r}, {self.num_frames:,} frames of {self.width}x{self.height}, {self.split}{label})"


@dataclass(frozen=True, kw_only=True)
class FrameSample:
    """One clip ready to be written.

    Attributes:
        clip: all but its place in a shard; the source goes to the receipt relative to the output, never into the tar.
        payload: result of `encode_frames`.
        geometry: how frames were cut and scaled, plain data for readers of the tar.
        arrays: arrays that belong to the frames, one row per frame, by name.
    """

    clip: FrameClip
    payload: bytes
    geometry: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def from_array(
        cls,
        id: str,
        frames: Frames,
        *,
        split: str = "train",
        label: str | None = None,
        fps: float = 10.0,
        codec: Codec = "raw",
        source: str = "",
        decoder: str = "array",
    ) -> FrameSample:
        """A clip whose frames, uint8 (T, H, W, 3), do not come from a video file."""
        require_frames(frames)
        num_frames, height, width = frames.shape[:3]
        clip = FrameClip(
            id=id,
            split=split,
            label=label,
            fps=fps,
            source=source,
            digest=hashlib.sha256(frames.tobytes()).hexdigest(),
            fingerprint=pixels_fingerprint(frames),
            num_frames=num_frames,
            height=height,
            width=width,
            decoder=decoder,
            codec=codec,
        )
        return cls(clip=clip, payload=encode_frames(frames, codec), geometry={})


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """A clip that gave no frames, and why. `reason` is one of `video.decode.FAILURE_REASONS`.

    `fingerprint` is a hash of clip content, geometry and decoders, so an unchanged clip is not tried again.
    """

    id: str
    source: str
    reason: str
    message: str
    decoder: str
    fingerprint: str


@dataclass(frozen=True)
class Receipt:
    """The content of a finished shard: its clips and its failures, both in manifest order.

    Attributes:
        digest: SHA-256 of the shard's bytes; None for one without clips, which has no tar.
        size: its bytes; None for one without clips.
    """

    clips: list[FrameClip]
    failures: list[ClipFailure]
    digest: str | None = None
    size: int | None = None


def pixels_fingerprint(frames: Frames) -> str:
    """Hash of frames by their pixels alone, whatever they come from."""
    return lineage.array_fingerprint(hashlib.sha256(frames.tobytes()).hexdigest(), frames.shape)


def shard_name(split: str, index: int) -> str:
    """File name of a shard: `train-000012.tar`."""
    return f"{split}-{index:06d}.tar"


def receipt_name(shard: str) -> str:
    """File name of the receipt of a shard: `train-000012.json`."""
    return f"{shard.removesuffix('.tar')}.json"


def receipts_in(root: Place) -> list[Place]:
    """Receipts of a folder of frames, also of shards that wait to be published."""
    if isinstance(root, StoreURL):
        names = [PurePosixPath(entry.name) for entry in open_storage(root).list()]
        return [root / name for name in names if name.match(f"{SHARD_PATTERN}.json")]
    return [*root.glob(f"{SHARD_PATTERN}.json"), *root.glob(f"{NEXT_NAME}/*/{SHARD_PATTERN}.json")]


def failures_of(receipts: Iterable[Receipt]) -> list[ClipFailure]:
    """The failures of several shards, in order."""
    return [failure for receipt in receipts for failure in receipt.failures]


def content_fingerprint(clips: Iterable[FrameClip]) -> str:
    """Hash of a folder of frames: which clips it has, in order, and what each is made of."""
    return lineage.frames_fingerprint(
        [clip.id, clip.split, clip.label, clip.fingerprint]
        + ([{name: facts.digest for name, facts in clip.array_facts.items()}] if clip.array_facts else [])
        for clip in clips
    )


def frame_counts(clips: Sequence[FrameClip], failures: Sequence[ClipFailure]) -> dict[str, Any]:
    """The facts worth showing about a folder of frames."""
    reasons: dict[str, int] = {}
    for failure in failures:
        reasons[failure.reason] = reasons.get(failure.reason, 0) + 1
    counts: dict[str, Any] = {
        "clips": len(clips),
        "frames": sum(clip.num_frames for clip in clips),
        "failures": len(failures),
        "failures_by_reason": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
    truncated = sum(clip.truncated is not None for clip in clips)
    notes = {kind: found.count for kind, found in noted(clips).items()}
    return counts | ({"kept_truncated": truncated} if truncated else {}) | ({"notes": notes} if notes else {})


@dataclass
class Noted:
    """Notes of one kind: how many clips have one, and the first of them as (clip id, text)."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


def noted(clips: Iterable[FrameClip], num_examples: int = 3) -> dict[str, Noted]:
    """Unusual but accepted properties of clips, by kind of note, the most common kind first."""
    found: dict[str, Noted] = {}
    for clip in clips:
        for kind, text in {note.kind: note.text for note in clip.notes or ()}.items():
            entry = found.setdefault(kind, Noted())
            entry.count += 1
            if len(entry.examples) < num_examples:
                entry.examples.append((clip.id, text))
    return dict(sorted(found.items(), key=lambda item: (-item[1].count, item[0])))
