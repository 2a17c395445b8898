"""What the codes of a store have in common, and the clip table: which slice of the code array each clip is."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.codes.layout import ARRAY, ARRAYS, SCHEMA_VERSION
from lvt_pipeline.errors import StoreError
from lvt_pipeline.frames.records import ArrayFacts, FrameClip
from lvt_pipeline.provenance import ZARR_METADATA

CHUNK_FRAMES = 64  # frames that are compressed together: the least that a read decompresses
SHARD_FRAMES = 4096  # frames in one file: the unit of writing and of resume
MAX_CODEBOOK_SIZE = 2**16  # codes are uint16 at most
MAX_CHUNK_BYTES = 2**31  # more than any real chunk; larger sizes in metadata are refused before memory is allocated


class FrameArray(Protocol):
    """What decides the bytes of an array of a store: `codes`, or one of `arrays/`. Its first axis counts frames."""

    @property
    def name(self) -> str:
        """`codes`, or that of the side array."""

    @property
    def folder(self) -> str:
        """Where it is, relative to the store."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of the values of one frame."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of its axes."""

    @property
    def fill_value(self) -> float:
        """The value of frames that have none."""

    @property
    def shard_frames(self) -> int:
        """Frames in one file."""

    @property
    def frames_per_chunk(self) -> int:
        """Frames that are compressed together."""


@dataclass(frozen=True, kw_only=True)
class SideArray:
    """An array with a row of numbers for every frame, such as actions: `arrays/<name>`, aligned with the codes.

    Attributes:
        name: letters, digits, `_`, `-` and `.`.
        dtype: float32, or any integers.
        dimension: numbers per frame.
        shard_frames, frames_per_chunk: those of the codes.
    """

    name: str
    dtype: np.dtype[Any]
    dimension: int
    shard_frames: int = SHARD_FRAMES
    frames_per_chunk: int = CHUNK_FRAMES
    dimensions: ClassVar[tuple[str, ...]] = ("frame", "value")

    def __post_init__(self) -> None:
        if not _ARRAY_NAME.fullmatch(self.name) or self.name == ARRAY:
            raise StoreError(f"array name {self.name!r} is not one of letters, digits, _, - and ., or is taken")
        if self.dtype != np.float32 and self.dtype.kind not in "iu":
            raise StoreError(f"array {self.name} holds {self.dtype}; a store holds float32 or integers")
        if not 1 <= self.dimension * self.dtype.itemsize * self.frames_per_chunk <= MAX_CHUNK_BYTES:
            raise StoreError(f"array {self.name} with {self.dimension} values per frame does not fit into chunks")

    def __str__(self) -> str:
        return f"{self.name} ({self.dimension} x {self.dtype})"

    @property
    def folder(self) -> str:
        """Where it is, relative to the store."""
        return f"{ARRAYS}/{self.name}"

    @property
    def frame_shape(self) -> tuple[int]:
        """(d,)."""
        return (self.dimension,)

    @property
    def fill_value(self) -> float:
        """The value where a clip has none: NaN, the smallest signed or the largest unsigned integer."""
        if self.dtype.kind == "f":
            return float("nan")
        limits = np.iinfo(self.dtype)
        return int(limits.min if self.dtype.kind == "i" else limits.max)

    def to_json(self) -> dict[str, Any]:
        """Its facts in the attributes of a store."""
        return {"dtype": str(self.dtype), "dimension": self.dimension}

    def empty_rows(self, num_frames: int) -> NDArray[Any]:
        """The rows of a clip that has none, (num_frames, d)."""
        return np.full((num_frames, self.dimension), self.fill_value, self.dtype)


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
        arrays: side arrays next to the codes.
    """

    codebook_size: int
    num_codebooks: int
    grid: tuple[int, int]
    tokenizer: str
    shard_frames: int = SHARD_FRAMES
    chunk_frames: int | None = None
    geometry: Mapping[str, Any] = field(default_factory=dict)
    arrays: tuple[SideArray, ...] = ()
    name: ClassVar[str] = ARRAY
    folder: ClassVar[str] = ARRAY
    dimensions: ClassVar[tuple[str, ...]] = ("frame", "row", "column", "codebook")
    fill_value: ClassVar[float] = 0

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
        shard, chunk = self.shard_frames, self.frames_per_chunk
        arrays = sorted(self.arrays, key=lambda array: array.name)
        arrays = [replace(array, shard_frames=shard, frames_per_chunk=chunk) for array in arrays]
        object.__setattr__(self, "arrays", tuple(arrays))

    @property
    def every_array(self) -> tuple[FrameArray, ...]:
        """The codes, then the side arrays."""
        return (self, *self.arrays)

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
            **({"arrays": {array.name: array.to_json() for array in self.arrays}} if self.arrays else {}),
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
        arrays = [
            SideArray(name=name, dtype=np.dtype(facts["dtype"]), dimension=operator.index(facts["dimension"]))
            for name, facts in data.get("arrays", {}).items()
        ]
        return cls(
            arrays=tuple(arrays),
            grid=(height, width),
            tokenizer=data["tokenizer"],
            geometry=data["frames_geometry"],
            **{name: data[name] for name in names},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeClip:
    """One row of a clip table: the codes of clip `id` are frames [offset, offset + length) of the array.

    `fingerprint` covers its codes and its side arrays, `codes` the codes alone; it is empty where both are the same.
    """

    id: str
    split: str
    label: str | None
    offset: int
    length: int
    fingerprint: str
    fps: float
    source: str
    codes: str = ""

    def __repr__(self) -> str:
        label = "" if self.label is None else f", label {self.label!r}"
        return f"CodeClip({self.id!r}, {self.length:,} frames, {self.split}{label})"

    @property
    def codes_fingerprint(self) -> str:
        """That of its codes alone."""
        return self.codes or self.fingerprint

    def place(self, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """Where frames [start, stop) of the clip are in the arrays of its store.

        Raises:
            IndexError: the range is not within the clip.
        """
        start, end = operator.index(start), self.length if stop is None else operator.index(stop)
        if not 0 <= start <= end <= self.length:
            raise IndexError(f"frames [{start}, {end}) are not within clip {self.id} of {self.length} frames")
        return self.offset + start, self.offset + end


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A clip that the next generation will hold. `fingerprint` and `codes` are as in `CodeClip`.

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
    codes: str = ""


_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHARD_NAME = re.compile(rf"{ARRAY}/c/(?P<codes>0|[1-9]\d*)/0/0/0|{ARRAYS}/[^/]+/c/(?P<side>0|[1-9]\d*)/0")


def codes_fingerprint(frames: str, tokenizer: str) -> str:
    """Fingerprint of a clip's codes, from those of its frames and of the tokenizer."""
    return lineage.clip_codes_fingerprint(frames, tokenizer)


def codes_of_frames(frames: FrameClip, tokenizer: str) -> str:
    """Fingerprint of the codes that a tokenizer makes of the frames of a clip, whatever its arrays are."""
    return codes_fingerprint(frames.pixels or frames.fingerprint, tokenizer)


def clip_fingerprints(codes: str, facts: Mapping[str, ArrayFacts], schema: CodeSchema) -> dict[str, str]:
    """`fingerprint` and `codes` of the clip of a store that has these codes and these side arrays."""
    if not schema.arrays:
        return {"fingerprint": codes}
    digests = {array.name: facts[array.name].digest if array.name in facts else None for array in schema.arrays}
    return {"fingerprint": lineage.clip_with_arrays_fingerprint(codes, digests), "codes": codes}


def shard_name(index: int, array: FrameArray | None = None) -> str:
    """The file of a shard of an array, by default of the codes, relative to the store."""
    folder, axes = (ARRAY, 3) if array is None else (array.folder, len(array.frame_shape))
    return f"{folder}/c/{index}{'/0' * axes}"


def metadata_name(array: FrameArray) -> str:
    """The `zarr.json` of an array, relative to the store."""
    return f"{array.folder}/{ZARR_METADATA}"


def metadata_names(schema: CodeSchema) -> list[str]:
    """The `zarr.json` of every array, and of the group of the side arrays if there are any."""
    names = [metadata_name(array) for array in schema.every_array]
    return [*names, f"{ARRAYS}/{ZARR_METADATA}"] if schema.arrays else names


def shard_names(index: int, schema: CodeSchema) -> list[str]:
    """The files of a shard: that of the codes, then those of the side arrays."""
    return [shard_name(index, array) for array in schema.every_array]


def index_of(name: str) -> int:
    """The index of a shard from the name of one of its files, -1 for any other file."""
    found = _SHARD_NAME.fullmatch(name)
    return int(found["codes"] or found["side"]) if found else -1


def chunk_size(size: int) -> int:
    """Frames compressed together in shards of `size` frames: about CHUNK_FRAMES, dividing the shard evenly."""
    if size <= 2 * CHUNK_FRAMES:
        return size
    return max(chunk for chunk in range(1, CHUNK_FRAMES + 1) if size % chunk == 0)
