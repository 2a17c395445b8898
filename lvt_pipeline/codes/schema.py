"""What the codes of a store have in common, and the clip table: which slice of the code array each clip is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline import lineage
from lvt_pipeline.codes.layout import SCHEMA_VERSION, SHARDS
from lvt_pipeline.errors import StoreError
from lvt_pipeline.storage import has_line_break
from lvt_pipeline.video.locations import kept_sources, opened_sources

CHUNK_FRAMES = 64  # frames that are compressed together: the least that a read decompresses
SHARD_FRAMES = 4096  # frames in one file: the unit of writing and of resume
MAX_CODEBOOK_SIZE = 2**16  # codes are uint16 at most
MAX_CHUNK_BYTES = 2**31  # more than any real chunk; larger sizes in metadata are refused before memory is allocated


@dataclass(frozen=True, kw_only=True)
class CodeSchema:
    """What every code of a generation has in common.

    Attributes:
        codebook_size: K; codes are in [0, K).
        num_codebooks: n_c.
        grid: (h, w), codes per frame and codebook.
        tokenizer: fingerprint of the encoder and codebooks that made the codes.
        shard_frames: frames in one shard of a new store; an existing store keeps its own.
        chunk_frames: frames that are compressed together, likewise; None: a length that suits the shard (`chunk_size`).
        geometry: how the frames were cropped and scaled, as plain data.
    """

    codebook_size: int
    num_codebooks: int
    grid: tuple[int, int]
    tokenizer: str
    shard_frames: int = SHARD_FRAMES
    chunk_frames: int | None = None
    geometry: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise StoreError(f"codebook_size={self.codebook_size} is not within 1 to {MAX_CODEBOOK_SIZE}")
        if min(self.frame_shape) < 1 or self.shard_frames < 1 or self.frames_per_chunk < 1:
            raise StoreError(f"a store cannot have frames of {self.frame_shape} codes in shards of {self.shard_frames}")
        if self.shard_frames % self.frames_per_chunk:
            raise StoreError(f"shards of {self.shard_frames} frames cannot have chunks of {self.frames_per_chunk}")
        chunk_bytes = self.frames_per_chunk * self.dtype.itemsize * int(np.prod(self.frame_shape, dtype=object))
        if chunk_bytes > MAX_CHUNK_BYTES:
            raise StoreError(f"a chunk of {chunk_bytes} bytes is larger than {MAX_CHUNK_BYTES}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds K codes: uint8 up to 256, uint16 above."""
        return np.dtype(np.uint8 if self.codebook_size <= 256 else np.uint16)

    @property
    def frames_per_chunk(self) -> int:
        """Frames that are compressed together."""
        return self.chunk_frames or chunk_size(self.shard_frames)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(h, w, n_c)."""
        return (*self.grid, self.num_codebooks)

    def to_json(self) -> dict[str, Any]:
        """The `lvt` attribute of a store, without its generation."""
        return {
            "schema": SCHEMA_VERSION,
            "codebook_size": self.codebook_size,
            "num_codebooks": self.num_codebooks,
            "grid": list(self.grid),
            "tokenizer": self.tokenizer,
            "frames_geometry": dict(self.geometry),
            "shard_frames": self.shard_frames,
            "chunk_frames": self.frames_per_chunk,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CodeSchema:
        """The schema that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
            StoreError: its numbers are impossible.
        """
        height, width = data["grid"]
        names = ("codebook_size", "num_codebooks", "shard_frames", "chunk_frames")
        if not all(type(value) is int for value in (height, width, *(data[name] for name in names))):
            raise TypeError("a size is not an integer")
        if not isinstance(data["tokenizer"], str) or not isinstance(data["frames_geometry"], dict):
            raise TypeError("the tokenizer or the geometry has a wrong type")
        return cls(
            grid=(height, width),
            tokenizer=data["tokenizer"],
            geometry=data["frames_geometry"],
            **{name: data[name] for name in names},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeClip:
    """One row of a clip table: the codes of clip `id` are frames [offset, offset + length) of the array."""

    id: str
    split: str
    label: str | None
    offset: int
    length: int
    fingerprint: str
    fps: float
    source: str

    def __repr__(self) -> str:
        label = "" if self.label is None else f", label {self.label!r}"
        return f"CodeClip({self.id!r}, {self.length:,} frames, {self.split}{label})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A clip that the next generation will hold. `fingerprint` is that of its codes (`codes_fingerprint`).

    `source_digest` and `decoder` describe the origin of its frames; they decide nothing, `lvt why` names them.
    """

    id: str
    split: str
    label: str | None
    length: int
    fingerprint: str
    fps: float
    source: str
    source_digest: str = ""
    decoder: str = ""


CLIP_COLUMNS = ("id", "split", "label", "offset", "length", "fingerprint", "fps", "source")
_TYPES: dict[str, set[type]] = {"label": {str, type(None)}, "offset": {int}, "length": {int}, "fps": {int, float}}


def clips_from_columns(columns: Mapping[str, Sequence[Any]], path: Path) -> list[CodeClip]:
    """Rows of the clip table of the store at `path`; sources come back as paths that can be opened.

    Raises:
        KeyError, TypeError, ValueError: a column is missing, or holds something else.
    """
    for name in CLIP_COLUMNS:
        if not isinstance(columns[name], list) or not set(map(type, columns[name])) <= _TYPES.get(name, {str}):
            raise TypeError(f"column {name} of the clip table has a wrong type")
    if has_line_break("".join(columns["id"])) or not all(columns["id"]):
        raise ValueError("a clip id is empty or has a line break or control character in it")
    if not all(isfinite(fps) and fps > 0 for fps in columns["fps"]):
        raise ValueError("a frame rate is not a number above 0")
    opened = opened_sources(path)
    # Of a million clips most share these texts, so each text is kept once.
    shared = {name: [text and sys.intern(text) for text in columns[name]] for name in ("split", "label")}
    columns = {**columns, **shared, "source": [opened(source) for source in columns["source"]]}
    rows = zip(*(columns[name] for name in CLIP_COLUMNS), strict=True)
    return [CodeClip(**dict(zip(CLIP_COLUMNS, row, strict=True))) for row in rows]


def clips_to_columns(clips: Sequence[CodeClip], path: Path) -> dict[str, list[Any]]:
    """Columns of the clip table of the store at `path`. Sources are kept relative to it, so both can move together."""
    kept = kept_sources(path)
    columns = {name: [getattr(clip, name) for clip in clips] for name in CLIP_COLUMNS}
    columns["source"] = [kept(clip.source) for clip in clips]
    return columns


def require_places(clips: Sequence[CodeClip], array_frames: Any, num_shards: int, shard_frames: int) -> None:
    """Refuse a table whose clips are not where the shards of its generation can hold them.

    Args:
        array_frames: length of the array up to the generation.
        num_shards: files that the generation consists of.

    Raises:
        ValueError: a clip is outside of the array, or longer than all shards together.
    """
    if type(array_frames) is not int:
        raise ValueError("the length of the array is not an integer")
    longest = num_shards * shard_frames
    for clip in clips:
        if clip.offset < 0 or not 1 <= clip.length <= longest or clip.offset + clip.length > array_frames:
            raise ValueError(
                f"clip {clip.id} has frames {clip.offset} to {clip.offset + clip.length - 1}, which are not in the "
                f"array of {array_frames} frames"
            )


def table_fingerprint(schema: CodeSchema, clips: Sequence[CodeClip]) -> str:
    """Hash of the content of a generation; the places of its codes in the array do not enter."""
    return lineage.store_fingerprint(
        codebook_size=schema.codebook_size,
        num_codebooks=schema.num_codebooks,
        grid=schema.grid,
        tokenizer=schema.tokenizer,
        rows=([clip.id, clip.split, clip.label, clip.fingerprint, clip.length] for clip in clips),
    )


def codes_fingerprint(frames: str, tokenizer: str) -> str:
    """Fingerprint of a clip's codes, from those of its frames and of the tokenizer."""
    return lineage.clip_codes_fingerprint(frames, tokenizer)


def shard_name(index: int) -> str:
    """The file of a shard, relative to the store."""
    return f"{SHARDS}/{index}/0/0/0"


def index_of(name: str) -> int:
    """The index of a shard from the name of a file, -1 for any other file."""
    number = name.removeprefix(f"{SHARDS}/").partition("/")[0]
    return int(number) if number.isdecimal() and name == shard_name(int(number)) else -1


def shards_of(clips: Sequence[CodeClip], shard_frames: int) -> list[int]:
    """Indices of the shards that hold these clips, ascending."""
    return sorted(
        {
            index
            for clip in clips
            for index in range(clip.offset // shard_frames, (clip.offset + clip.length - 1) // shard_frames + 1)
        }
    )


def chunk_size(size: int) -> int:
    """Frames compressed together in shards of `size` frames: about CHUNK_FRAMES, dividing the shard evenly."""
    if size <= 2 * CHUNK_FRAMES:
        return size
    return max(chunk for chunk in range(1, CHUNK_FRAMES + 1) if size % chunk == 0)
