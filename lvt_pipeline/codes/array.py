"""The frames of the codes and side arrays on disk: missing and damaged shards are named, and never read as values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.layout import (
    ARRAY,
    ARRAYS,
    SHARDS,
    StoreRoot,
    as_one_line,
    digest_bytes,
    group_metadata,
    numbers_as_text,
    read_file,
    read_root,
    storage_of,
)
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, FrameArray, SideArray, metadata_name, shard_name
from lvt_pipeline.codes.shard_file import ShardFile, array_metadata, read_chunks, read_frames
from lvt_pipeline.errors import ArtefactError, LVTError, MismatchError, StoreError
from lvt_pipeline.frames.records import ArrayFacts
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Place, open_storage, parse_json


class CodeArray:
    """The frames of the codes of a store, or of a side array. Reading is thread-safe.

    Args:
        path: the store.
        layout: which of its arrays: the schema for the codes.
        sizes: bytes of each shard by name, where known.
        generation: that is read, None while it is being written.

    Attributes:
        num_readers: reads that should wait for an answer at the same time, 0 where reading does not wait.
    """

    def __init__(
        self, path: Place, layout: FrameArray, sizes: Mapping[str, int], generation: int | None = None
    ) -> None:
        self.path = path
        self.layout = layout
        self._sizes = sizes
        self._generation = generation
        self._storage = open_storage(path)
        self.num_readers = self._storage.num_readers
        self._indexes: dict[str, NDArray[np.int64]] = {}

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Frames [start, stop), (stop - start, h, w, n_c) or (stop - start, d).

        Raises:
            StoreError: a shard is missing or damaged; it is named.
            LVTError: the operating system refused, or there is not enough memory.
        """
        if start == stop:
            return np.empty((0, *self.layout.frame_shape), self.layout.dtype)
        size = self.layout.shard_frames
        shards = range(start // size, (stop - 1) // size + 1)
        try:
            return self._read(start, stop)
        except MemoryError:
            raise LVTError(
                f"{stop - start} frames of {self.path} do not fit into memory; read fewer at a time"
            ) from None
        except (StoreError, FileNotFoundError):
            self._indexes.clear()  # a shard may have been repaired meanwhile
            for index in shards:  # find the shard, to name it
                try:
                    self._read(max(start, index * size), min(stop, (index + 1) * size))
                except (StoreError, FileNotFoundError) as error:
                    raise self._error(index, error) from error
            return self._read(start, stop)

    def read_each(self, ranges: Iterable[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        """Ranges of frames one after another, as from `read`; where reads wait for answers, the next are asked for."""
        with ThreadPoolExecutor(max(1, self.num_readers), "read-shards") as pool:
            reading: deque[Future[NDArray[Any]]] = deque()
            for frames in ranges:
                reading.append(pool.submit(self.read, *frames))
                if len(reading) > self.num_readers:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def read_chunks(self, index: int, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Some chunks of a shard, each in the memory of the one before. See `shard_file.read_chunks`.

        Raises:
            StoreError: the shard is missing or damaged; it is named.
            LVTError: the operating system refused.
        """
        try:
            yield from read_chunks(self._shard(index), self.layout, numbers)
        except (StoreError, FileNotFoundError) as error:
            raise self._error(index, error) from error

    def problems(self, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Shards whose files are missing or have another size, each with its problem in words.

        Raises:
            LVTError: the operating system refused.
        """
        folder = f"{self.layout.folder}/c/{indices[0]}" if len(indices) == 1 else f"{self.layout.folder}/c"
        found = {entry.name: entry.size for entry in self._storage.list(folder)}
        for index in indices:
            name = shard_name(index, self.layout)
            size, expected = found.get(name), self._sizes.get(name, found.get(name))
            if size is None:
                yield index, "is missing"
            elif size != expected:
                yield index, f"is damaged ({size} bytes where {expected} were written)"

    def _require_generation(self) -> None:
        """Report a generation that was removed while it was read."""
        root = read_root(self.path)
        if root is not None and self._generation is not None and self._generation not in root.numbers:
            raise StoreError(
                f"generation {self._generation} of {self.path} was removed by lvt gc while it was being read; run the "
                f"same command again, which reads {numbers_as_text(root.numbers)}"
            )

    def _error(self, index: int, error: Exception) -> LVTError:
        file = self.path / shard_name(index, self.layout)
        self._require_generation()
        # A missing shard is an error here, not fill values as for zarr: zeros are codes like any other.
        if isinstance(error, FileNotFoundError):
            return StoreError(f"{file} is missing; run the command that made the store again to restore it")
        return StoreError(
            f"{file} is damaged ({as_one_line(error)}); delete this file and run the command that made the store again"
        )

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        threads = 1 if self.num_readers else None
        return read_frames(self._shard, self.layout, start, stop, threads=threads)

    def _shard(self, index: int) -> ShardFile:
        name = shard_name(index, self.layout)
        return ShardFile(self._storage, name, self._sizes.get(name), self._indexes)


class ClipArray:
    """A side array of one generation by clip: `actions[clip_id]` is (T, d), a row for each frame of the clip.

    A clip that has none has rows of NaN; see `SideArray.fill_value` for integers.

    Attributes:
        layout: its name, dtype and dimension.
        array: its frames, by position.
    """

    def __init__(self, layout: SideArray, array: CodeArray, clip: Callable[[str], CodeClip]) -> None:
        """Clips are found by id with `clip`."""
        self.layout, self.array, self._clip = layout, array, clip

    def __repr__(self) -> str:
        return f"ClipArray({self.layout})"

    def __getitem__(self, clip_id: str) -> NDArray[Any]:
        """All rows of a clip, (T, d)."""
        return self.read(clip_id)

    def read(self, clip: CodeClip | str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of frames [start, stop) of a clip, (stop - start, d). Errors as in `CodeStore.read`."""
        row = self._clip(clip) if isinstance(clip, str) else clip
        return self.array.read(*row.place(start, stop))


def side_arrays_of(
    clips: Iterable[tuple[str, Mapping[str, ArrayFacts]]], known: Iterable[SideArray], where: object
) -> tuple[SideArray, ...]:
    """The side arrays of a store that holds the arrays of some clips.

    Args:
        clips: id and arrays of each.
        known: side arrays that the store has already, perhaps for other clips.
        where: what holds the clips, named in errors.

    Raises:
        MismatchError: arrays of one name have different dimensions.
    """
    found = {array.name: (array, "the store") for array in known}
    for clip_id, arrays in clips:
        for name, facts in arrays.items():
            new = SideArray(name=name, dtype=np.dtype(facts.dtype), dimension=facts.dimension)
            old, first = found.setdefault(name, (new, f"clip {clip_id}"))
            if old.dimension != new.dimension:
                raise MismatchError(
                    f"{where}: array {name} has {new.dimension} values per frame in clip {clip_id} but {old.dimension} "
                    f"in {first}; a store holds one dimension, so leave the array out or choose a new store"
                )
            dtype = np.result_type(old.dtype, new.dtype)
            found[name] = replace(old, dtype=np.dtype(np.float32) if dtype.kind == "f" else dtype), first
    return tuple(array for array, _ in found.values())


def require_metadata(path: Place, root: StoreRoot, array: FrameArray, array_frames: int) -> None:
    """Refuse an array that other readers would read in another way than this one.

    Raises:
        StoreError: its metadata are missing or damaged.
    """
    name = metadata_name(array)
    file = path / name
    data = read_file(file)
    if data is not None and digest_bytes(data) == root.files.get(name):
        return
    try:  # it has grown for a newer generation, or somebody added to it
        metadata = parse_json(data or b"", file)
        shape = metadata["shape"]
        shards = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunks = metadata["codecs"][0]["configuration"]["chunk_shape"]
        is_right = (
            metadata["node_type"] == "array"
            and metadata["data_type"] == str(array.dtype)
            and type(shape[0]) is int
            and shape[0] >= array_frames
            and shape[1:] == list(array.frame_shape)
            and shards == [array.shard_frames, *array.frame_shape]
            and chunks == [array.frames_per_chunk, *array.frame_shape]
        )
    except (ArtefactError, KeyError, TypeError, IndexError):
        is_right = False
    if not is_right:
        problem = "is missing" if data is None else "is damaged"
        raise StoreError(f"{file} {problem}; run lvt verify {path} --repair, or restore it from a copy")


def resize_arrays(path: Place, schema: CodeSchema, num_frames: int, root: StoreRoot) -> bool:
    """Make all arrays of a store that long, unless they are.

    Returns:
        whether an array that the root names now has other metadata than it names.
    """
    is_rewritten = False
    storage = storage_of(path)
    if schema.arrays:
        storage.create(f"{ARRAYS}/{ZARR_METADATA}", group_metadata({}))
    for array in schema.every_array:
        name, metadata = metadata_name(array), array_metadata(num_frames, array)
        known = root.files.get(name)
        found = read_file(path / name)
        if found == metadata:
            continue
        is_known = found is not None and digest_bytes(found) == known
        if is_known and parse_json(found or b"", path / name)["shape"][0] == num_frames:
            continue  # as another version of zarr writes it
        is_rewritten |= known not in (None, digest_bytes(metadata))
        storage.replace(name, metadata)
    return is_rewritten


def remove_unpublished(path: Place, schema: CodeSchema | None, first: int) -> None:
    """Remove what an abandoned plan left in the arrays of a store.

    Args:
        schema: of the current generation; None when there is none, so that no side array is kept.
        first: shards from this index on are removed.
    """
    kept = {array.folder for array in schema.every_array} if schema else {ARRAY}
    storage = storage_of(path)

    def is_kept(name: str) -> bool:
        folder, is_shard, number = name.partition("/c/")
        if not is_shard:
            return name.rpartition("/")[0] in kept | ({ARRAYS} if len(kept) > 1 else set())
        index = number.partition("/")[0]
        return folder in kept and index.isdecimal() and int(index) < first

    names = [entry.name for entry in [*storage.list(SHARDS), *storage.list(ARRAYS)]]
    storage.delete(name for name in names if not is_kept(name))
