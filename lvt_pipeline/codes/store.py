"""The code store: every clip as a slice of one zarr array of integer codes, and the table that says which slice.

Stage 1 of the paper (section 3.1) turns frames into codes once; everything after it reads them from here.

    data.zarr/zarr.json                     which generation is current, and its provenance: the commit point
    data.zarr/codes/                        array (frames, h, w, n_c), sharded; all clips one after another
    data.zarr/generations/000001/zarr.json  a clip table, never changed once it is there
    data.zarr/pending/zarr.json             what an unfinished encode is going to publish
    data.zarr/codes/README.md               what the store is, for people

Everything is plain zarr v3 with core codecs, so any reader opens it. This file reads; `code_writer.py` writes;
`code_root.py` is the root's format. A reader looks at one generation for as long as it lives, so a store can grow under
it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from lvt_pipeline import lineage
from lvt_pipeline.codes.chunk_reading import read_chunks, read_frames
from lvt_pipeline.codes.layout import (
    ARRAY,
    GENERATIONS,
    PENDING,
    SCHEMA_VERSION,
    StoreRoot,
    generation_name,
    numbers_as_text,
    read_attributes,
    read_root,
    table_name,
)
from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.provenance import (
    ZARR_METADATA,
    Provenance,
    digest_file,
)
from lvt_pipeline.video.relative_paths import kept_sources, opened_sources

CHUNK_FRAMES = 64  # frames that are compressed together: the least that a read decompresses
SHARD_FRAMES = 4096  # frames in one file: the unit of writing and of resume
MAX_CODEBOOK_SIZE = 2**16  # codes are uint16 at most
# `python -m benchmarks store_size` shows what other lengths and levels would give.
ZSTD_LEVEL = 5
OUR_GROUPS = {ARRAY, GENERATIONS, PENDING}
DIMENSIONS = ("frame", "row", "column", "codebook")


@dataclass(frozen=True, kw_only=True)
class CodeSchema:
    """What every code of a generation has in common.

    Attributes:
        codebook_size: K; codes are in [0, K).
        num_codebooks: n_c.
        grid: (h, w), codes per frame and codebook.
        tokenizer: fingerprint of the encoder and codebooks that made the codes.
        shard_frames: frames in one shard of a new store; an existing store keeps its own.
        chunk_frames: frames that are compressed together, likewise; None: what suits the shard (`chunk_size`).
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
    def from_json(cls, data: Mapping[str, Any], shard_frames: int = 0, chunk_frames: int = 0) -> CodeSchema:
        """Rebuild what `to_json` wrote.

        Args:
            shard_frames, chunk_frames: of the array; a store of format 1 says them nowhere else.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        height, width = data["grid"]
        return cls(
            codebook_size=int(data["codebook_size"]),
            num_codebooks=int(data["num_codebooks"]),
            grid=(int(height), int(width)),
            tokenizer=str(data["tokenizer"]),
            shard_frames=int(data.get("shard_frames", shard_frames)),
            chunk_frames=int(data.get("chunk_frames", chunk_frames)),
            geometry=data.get("frames_geometry", {}),
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


CLIP_COLUMNS = ("id", "split", "label", "offset", "length", "fingerprint", "fps", "source")


class CodeArray:
    """The frames of a store's code array, with damage told from codes. Reading is thread-safe.

    Args:
        path: the store.
        schema: what its codes look like.
        sizes: bytes of each shard by name, where known.
    """

    def __init__(self, path: Path, schema: CodeSchema, sizes: Mapping[str, int]) -> None:
        self.path = path
        self._schema = schema
        self._sizes = sizes
        self._sound: set[int] = set()

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Frames [start, stop), (stop - start, h, w, n_c).

        Raises:
            StoreError: a shard is missing or damaged; it is named.
        """
        if start == stop:
            return np.empty((0, *self._schema.frame_shape), self._schema.dtype)
        size = self._schema.shard_frames
        shards = range(start // size, (stop - 1) // size + 1)
        for index in shards:
            self._check(index)
        try:
            return self._read(start, stop)
        except Exception:
            # Whatever the codecs raise, the reader is helped by the name of the file, so look for it shard by shard.
            for index in shards:
                try:
                    self._read(max(start, index * size), min(stop, (index + 1) * size))
                except Exception as error:
                    raise self._damage(index, error) from error
            raise

    def read_chunks(self, index: int, numbers: Sequence[int]) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
        """Some chunks of a shard, each in the memory of the one before. See `code_reading.read_chunks`.

        Raises:
            StoreError: the shard is missing or damaged; it is named.
        """
        self._check(index)
        try:
            yield from read_chunks(self.path / shard_name(index), self._schema, numbers)
        except (StoreError, OSError) as error:
            raise self._damage(index, error) from error

    def problem(self, index: int) -> str:
        """What is wrong with a shard's file as far as its size tells, empty when nothing is."""
        name = shard_name(index)
        try:
            size = (self.path / name).stat().st_size
        except OSError:
            return "is missing"
        expected = self._sizes.get(name, size)
        return "" if size == expected else f"is damaged ({size} bytes where {expected} were written)"

    def _check(self, index: int) -> None:
        # zarr reads a missing shard as zeros, which are codes like any other.
        if index in self._sound:
            return
        problem = self.problem(index)
        if problem:
            raise StoreError(
                f"{self.path / shard_name(index)} {problem}; run the command that made the store again to restore it"
            )
        self._sound.add(index)

    def _damage(self, index: int, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path / shard_name(index)} is damaged ({one_line(error)}); "
            "delete this file and run the command that made the store again"
        )

    def _read(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        return read_frames(lambda index: self.path / shard_name(index), self._schema, start, stop)


class CodeStore:
    """One generation of a code store, read-only. Make it with `open_codes`.

    `store["a/clip"]` is the clip's codes, (T, h, w, n_c) uint8 or uint16. Reading is thread-safe. Reading many short
    windows through zarr is slow; `codes.loading.windows.CodeWindows` is for that.

    Attributes:
        path: the zarr group.
        schema: K, n_c, grid, tokenizer, ...
        root: what the store says about all its generations and files.
        generation: the generation that is read; `generations` lists those that can be.
        clips: the clip table, in manifest order.
        fingerprint: hash of what is in this generation.
        provenance: what made it.
        array: the frames of all generations, by position.
        array_frames: length of the array up to this generation, gaps and dead ranges included.
    """

    def __init__(
        self,
        path: Path,
        schema: CodeSchema,
        root: StoreRoot,
        generation: int,
        table: Mapping[str, Any],
        provenance: Provenance,
    ) -> None:
        self.path = path
        self.schema = schema
        self.root = root
        self.generation = generation
        self.generations: list[int] = root.numbers
        self.clips = clips_from_columns(table["clips"], path)
        self.fingerprint = str(table["fingerprint"])
        self.array_frames = int(table["array_frames"])
        self.provenance = provenance
        # The root knows the sizes of shards that were repaired after this generation was published.
        self.array = CodeArray(path, schema, {**provenance.outputs, **root.provenance["outputs"]})

    @cached_property
    def _by_id(self) -> dict[str, CodeClip]:
        return {clip.id: clip for clip in self.clips}

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.schema.codebook_size

    @property
    def num_codebooks(self) -> int:
        """n_c."""
        return self.schema.num_codebooks

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.schema.grid

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer that made the codes."""
        return self.schema.tokenizer

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.schema.dtype

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(clip.length for clip in self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._by_id

    def __getitem__(self, clip_id: str) -> NDArray[np.unsignedinteger[Any]]:
        """All codes of a clip, (T, h, w, n_c)."""
        return self.read(clip_id)

    def clip(self, clip_id: str) -> CodeClip:
        """The table's row for a clip.

        Raises:
            StoreError: no clip has that id; a similar one is suggested.
        """
        try:
            return self._by_id[clip_id]
        except KeyError:
            close = difflib.get_close_matches(str(clip_id), self._by_id, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {len(self.clips)} clips"
            raise StoreError(f"{self.path} has no clip {clip_id!r}; {hint}") from None

    def split(self, name: str) -> list[CodeClip]:
        """The clips of one split ("train", "val" or "test"), in order; empty when there are none."""
        return [clip for clip in self.clips if clip.split == name]

    def read(self, clip: CodeClip | str, start: int = 0, stop: int | None = None) -> NDArray[np.unsignedinteger[Any]]:
        """Codes of frames [start, stop) of a clip, (stop - start, h, w, n_c).

        Raises:
            StoreError: no such clip, or a shard is missing or damaged.
            IndexError: the range is not within the clip.
        """
        row = self.clip(clip) if isinstance(clip, str) else clip
        end = row.length if stop is None else stop
        if not 0 <= start <= end <= row.length:
            raise IndexError(f"frames [{start}, {end}) are not within clip {row.id} of {row.length} frames")
        return self.read_range(row.offset + start, row.offset + end)

    def read_range(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Frames [start, stop) of the code array, whatever clips they belong to.

        Raises:
            StoreError: a shard is missing or damaged; it is named.
        """
        return self.array.read(start, stop)

    def shards(self) -> list[int]:
        """Indices of the shards that hold this generation's clips, ascending."""
        return shards_of(self.clips, self.schema.shard_frames)


@paused_collection()
def open_codes(path: Path | str, generation: int | None = None) -> CodeStore:
    """Open a code store for reading.

    Args:
        generation: which generation to read; the current one by default.

    Raises:
        StoreError: there is no finished store at `path`, it is damaged, or it has no such generation.
    """
    path = Path(path)
    root = read_root(path)
    if root is None:
        raise StoreError(_why_unreadable(path))
    chosen = root.generation if generation is None else generation
    if chosen not in root.numbers:
        gone = "; lvt gc has removed it" if 1 <= chosen < root.generation else ""
        raise StoreError(f"{path} has no generation {chosen}{gone}; it has {numbers_as_text(root.numbers)}")
    source = path / table_name(chosen)
    try:
        table = _read_table(path, root, chosen)
        shards, chunks = array_layout(open_array(path))
        schema = CodeSchema.from_json(table["lvt"], shards, chunks)
        record = root.provenance if chosen == root.generation else table["provenance"]
        store = CodeStore(path, schema, root, chosen, table, Provenance.from_json(record, source))
    except (ArtefactError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{source} is damaged or not ours ({one_line(error)})") from error
    if (schema.shard_frames, schema.frames_per_chunk) != (shards, chunks):
        raise StoreError(
            f"{path / ARRAY / ZARR_METADATA} is damaged: it has shards of {shards} frames in chunks of {chunks}, the "
            f"store has {schema.shard_frames} and {schema.frames_per_chunk}; lvt encode-dataset --repair restores it"
        )
    # With digests the bytes have been compared already, which is many times faster for a long table.
    if not root.has_digests and store.fingerprint != table_fingerprint(schema, store.clips):
        raise StoreError(_wrong_table(source))
    return store


def read_table(path: Path, root: StoreRoot, generation: int) -> dict[str, Any]:
    """Attributes of a generation: its clip table and what else is said about it.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return _read_table(path, root, generation)
    except ArtefactError as error:
        raise StoreError(f"{path / table_name(generation)} is missing or damaged ({one_line(error)})") from error


def _read_table(path: Path, root: StoreRoot, generation: int) -> dict[str, Any]:
    name = table_name(generation)
    table = read_attributes(path / generation_name(generation))
    expected = root.files.get(name)
    if expected is not None and digest_file(path / name) != expected:
        raise StoreError(_wrong_table(path / name))
    return table


def _wrong_table(source: Path) -> str:
    return (
        f"{source} is damaged: the clip table does not match its fingerprint; run lvt encode-dataset --repair, or "
        "restore it from a copy"
    )


def is_published(path: Path) -> bool:
    """Whether a folder is a store with something to read, sound or not."""
    return (path / ZARR_METADATA).is_file()


def is_unfinished(path: Path) -> bool:
    """Whether a folder holds what a first encode leaves when it is interrupted, and nothing else."""
    return is_ours(path) and not is_published(path)


def is_ours(path: Path) -> bool:
    """Whether a folder holds only what belongs into a code store, and some of it beside the root."""
    names = {item.name for item in path.iterdir()} if path.is_dir() else set()
    return bool(names & OUR_GROUPS) and names <= {*OUR_GROUPS, ZARR_METADATA}


def _why_unreadable(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist; make a code store with lvt encode-dataset"
    if is_unfinished(path):
        return f"{path} is unfinished: its first encode was interrupted; run the command that makes it again"
    return f"{path} is not a code store (it has no {ZARR_METADATA}); give the output of lvt encode-dataset or sample"


# What reader and writer share ---------------------------------------------------------------------------------------


def shard_name(index: int) -> str:
    """Where a shard lies, relative to the store."""
    return f"{ARRAY}/c/{index}/0/0/0"


def shards_of(clips: Sequence[CodeClip], shard_frames: int) -> list[int]:
    """Indices of the shards in which clips lie, ascending."""
    return sorted(
        {
            index
            for clip in clips
            for index in range(clip.offset // shard_frames, (clip.offset + clip.length - 1) // shard_frames + 1)
        }
    )


def clips_from_columns(columns: Mapping[str, Sequence[Any]], path: Path) -> list[CodeClip]:
    """Rows of the clip table of the store at `path`; sources come back as paths that can be opened."""
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


def table_fingerprint(schema: CodeSchema, clips: Sequence[CodeClip]) -> str:
    """Hash of what a generation contains; where its codes lie in the array does not enter."""
    return lineage.store_fingerprint(
        codebook_size=schema.codebook_size,
        num_codebooks=schema.num_codebooks,
        grid=schema.grid,
        tokenizer=schema.tokenizer,
        rows=([clip.id, clip.split, clip.label, clip.fingerprint, clip.length] for clip in clips),
    )


def open_array(path: Path) -> zarr.Array[Any]:
    """The code array of the store at `path`, read-only.

    Raises:
        StoreError: its metadata is missing or damaged.
    """
    try:
        return zarr.open_array(path / ARRAY, mode="r")
    except Exception as error:  # zarr has no common base class for what a damaged zarr.json may raise
        raise StoreError(f"{path / ARRAY / ZARR_METADATA} is missing or damaged ({one_line(error)})") from error


def array_layout(array: zarr.Array[Any]) -> tuple[int, int]:
    """Frames in one shard and in one inner chunk of an array."""
    return int((array.shards or array.chunks)[0]), int(array.chunks[0])


def create_array(num_frames: int, schema: CodeSchema, chunk_frames: int) -> tuple[dict[str, Any], zarr.Array[Any]]:
    """An empty code array in memory: the dictionary that holds its files by name, and the array.

    A shard made in memory reaches the disk as one whole file, and never through two writers.
    """
    files: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(store_dict=files),
        shape=(num_frames, *schema.frame_shape),
        dtype=schema.dtype,
        chunks=(chunk_frames, *schema.frame_shape),
        shards=(schema.shard_frames, *schema.frame_shape),
        serializer=BytesCodec(endian="little") if schema.dtype.itemsize > 1 else BytesCodec(endian=None),
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        fill_value=0,
        dimension_names=DIMENSIONS,
        # A chunk of zeros is a chunk of codes; leaving it out would make a shard of zeros no file at all.
        config={"write_empty_chunks": True},
    )
    return files, array


def array_metadata(num_frames: int, schema: CodeSchema, chunk_frames: int) -> bytes:
    """The `zarr.json` of a code array of that many frames."""
    files, _ = create_array(num_frames, schema, chunk_frames)
    return cast("bytes", files[ZARR_METADATA].to_bytes())


def shard_bytes(codes: NDArray[Any], schema: CodeSchema, chunk_frames: int) -> bytes:
    """One shard's file. Same codes, same bytes.

    Args:
        codes: (frames, h, w, n_c), at most `schema.shard_frames` frames; the rest of the shard stays empty.
    """
    files, array = create_array(schema.shard_frames, schema, chunk_frames)
    array[: len(codes)] = codes
    data = [value for name, value in files.items() if name != ZARR_METADATA]
    assert len(data) == 1, "a shard is one file"
    return cast("bytes", data[0].to_bytes())


def chunk_size(size: int) -> int:
    """Frames compressed together in shards of `size` frames: about CHUNK_FRAMES, dividing the shard evenly."""
    if size <= 2 * CHUNK_FRAMES:
        return size
    return max(chunk for chunk in range(1, CHUNK_FRAMES + 1) if size % chunk == 0)


def one_line(error: BaseException) -> str:
    """An exception as part of a one-line message."""
    return " ".join(str(error).split()) or type(error).__name__
