"""One shard file of the codes or of a side array, byte by byte: inner chunks, compressed and checksummed, and an index.

zarr writes shards; they are read here without its layers in between. That is the fast way to read many frames or a few,
and it gives damage a place: which frames are lost, and so which clips. The index at the end of a shard gives the
position of each chunk. Chunks are fetched with one read and decompressed straight into the array that is returned, by
several threads when there is much to do, since decompression does not hold Python's lock. Every size in a file is
compared with what the array allows before memory is allocated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import zarr
from google_crc32c import value as crc32c
from numcodecs.zstd import decompress
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from lvt_pipeline.codes.schema import CodeSchema, FrameArray
from lvt_pipeline.errors import ShapeError, StoreError
from lvt_pipeline.machine import own_cores
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Place, Storage

CHECKSUM_BYTES = 4
# `python -m benchmarks store_size` shows what other lengths and levels would give.
ZSTD_LEVEL = 5
MAX_THREADS = 8
BYTES_PER_THREAD = 2**21  # of codes; for less a thread is not worth its start

_EMPTY = 2**64 - 1  # offset and size of a chunk that holds nothing
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A compressed run of frames in a shard.

    Attributes:
        first_frame: within the shard.
        offset, size: bytes in the file, the checksum included.
    """

    first_frame: int
    offset: int
    size: int


@dataclass(frozen=True)
class ShardFile:
    """A shard in its storage.

    Attributes:
        size: bytes that were written, None when that is not known; then all of it is read.
        indexes: `_positions` of shards that have been read, by name; several shards may share it.
    """

    storage: Storage
    name: str
    size: int | None = None
    indexes: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of it.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: it has another size.
        """
        found = self.storage.read(self.name) if stop is None else self.storage.read_range(self.name, start, stop)
        if found is None:
            raise FileNotFoundError(self.name)
        if self.size not in (None, found.size):
            raise StoreError(f"{found.size} bytes where {self.size} were written")
        return found.data


# Reading --------------------------------------------------------------------------------------------------------------


def read_frames(
    shard_file: Callable[[int], ShardFile], array: FrameArray, start: int, stop: int, *, threads: int | None = None
) -> NDArray[Any]:
    """Frames [start, stop) of the codes or of a side array.

    Args:
        shard_file: the shard with an index.
        threads: how many decompress; None: as many cores as this process may use, 1 for small reads.

    Returns:
        (stop - start, h, w, n_c) in the array's dtype, (stop - start, d) of a side array. Frames that nobody wrote have
        its fill value.

    Raises:
        StoreError: a checksum does not match, or the bytes are not values of this array.
        FileNotFoundError: a shard is missing.
    """
    codes = np.empty((stop - start, *array.frame_shape), array.dtype)
    size = array.shard_frames
    parts = [
        (shard_file(index), max(start - index * size, 0), min(stop - index * size, size), max(index * size - start, 0))
        for index in range(start // size, -(-stop // size))
    ]
    if threads is None:
        threads = min(own_cores(), MAX_THREADS, codes.nbytes // BYTES_PER_THREAD)

    def read(part: tuple[ShardFile, int, int, int]) -> None:
        file, first, last, position = part
        _read_from_shard(file, array, first, last, codes[position : position + last - first])

    if threads <= 1:
        for part in parts:
            read(part)
        return codes
    # The threads end with the read: none is left behind for a process that forks later to inherit.
    with ThreadPoolExecutor(threads, "read-codes") as pool:
        for _ in pool.map(read, _split(parts, array.frames_per_chunk, threads)):
            pass
    return codes


def _split(
    parts: list[tuple[ShardFile, int, int, int]], chunk: int, threads: int
) -> list[tuple[ShardFile, int, int, int]]:
    """The same parts, large ones cut at borders of chunks, so that every thread has something to do."""
    total = sum(last - first for _, first, last, _ in parts)
    length = max(chunk, -(-total // (4 * threads) // chunk) * chunk)
    pieces = []
    for file, first, last, position in parts:
        cut = first
        while cut < last:
            end = min(last, (cut // chunk) * chunk + length)
            pieces.append((file, cut, end, position + cut - first))
            cut = end
    return pieces


def _read_from_shard(file: ShardFile, array: FrameArray, first: int, stop: int, out: NDArray[Any]) -> None:
    """Put frames [first, stop) of one shard into `out`."""
    per_chunk = array.frames_per_chunk
    chunks = _fetch(file, array, first, stop)
    if len(chunks) < -(-stop // per_chunk) - first // per_chunk:
        out[:] = array.fill_value  # some chunks hold nothing
    for chunk, data in chunks:
        start = chunk.first_frame
        if first <= start and start + per_chunk <= stop:
            decode_chunk(data, chunk, array, out[start - first : start - first + per_chunk])
        else:
            begin, end = max(first, start), min(stop, start + per_chunk)
            out[begin - first : end - first] = decode_chunk(data, chunk, array)[begin - start : end - start]


def read_chunks(file: ShardFile, array: FrameArray, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The codes of some chunks of a shard, one after another in the same memory: each is gone when the next comes.

    Args:
        numbers: which chunks of the shard, ascending. They are fetched with one read, so they should be neighbours.

    Yields:
        (frames_per_chunk, h, w, n_c) in the array's dtype. Frames that nobody wrote have its fill value.

    Raises:
        StoreError: a checksum does not match, or the bytes are not values of this array.
        FileNotFoundError: the shard is missing.
    """
    per_chunk = array.frames_per_chunk
    codes = np.empty((per_chunk, *array.frame_shape), array.dtype)
    first, stop = numbers[0] * per_chunk, (numbers[-1] + 1) * per_chunk
    found = {chunk.first_frame // per_chunk: (chunk, data) for chunk, data in _fetch(file, array, first, stop)}
    for number in numbers:
        if number in found:
            chunk, data = found[number]
            decode_chunk(data, chunk, array, codes)
        else:
            codes[:] = array.fill_value
        yield codes


def _fetch(file: ShardFile, array: FrameArray, first: int, stop: int) -> list[tuple[Chunk, memoryview]]:
    """The chunks of a shard that hold some of the frames [first, stop), as they are compressed: one or two reads."""
    is_whole = file.size is None or (first == 0 and stop == array.shard_frames)
    whole = file.read() if is_whole else b""
    size = len(whole) if is_whole or file.size is None else file.size
    positions = None if is_whole else file.indexes.get(file.name)
    if positions is None:
        begin = max(0, size - index_bytes(array))
        index = whole[begin:] if is_whole else file.read(begin, size)
        positions = file.indexes[file.name] = _positions(index, array, size)
    chunks = _chunks(positions, array, first // array.frames_per_chunk, -(-stop // array.frames_per_chunk))
    if not chunks:
        return []
    begin = min(chunk.offset for chunk in chunks)
    end = max(chunk.offset + chunk.size for chunk in chunks)
    data = memoryview(whole)[begin:end] if is_whole else memoryview(file.read(begin, end))
    return [(chunk, data[chunk.offset - begin : chunk.offset - begin + chunk.size]) for chunk in chunks]


# Chunks ---------------------------------------------------------------------------------------------------------------


def index_bytes(array: FrameArray) -> int:
    """Bytes at the end of a shard that hold the positions of its chunks."""
    return 16 * (array.shard_frames // array.frames_per_chunk) + CHECKSUM_BYTES


def chunks_of(data: bytes, array: FrameArray) -> list[Chunk]:
    """The inner chunks of a whole shard that hold something, in order of their frames.

    Raises:
        StoreError: the index is damaged.
    """
    return _chunks(_positions(data[-index_bytes(array) :], array, len(data)), array)


def _positions(index: bytes, array: FrameArray, num_bytes: int) -> NDArray[np.int64]:
    """Where each chunk of a shard of `num_bytes` is: offset and size, int64 (chunks, 2). An empty one has size 0.

    Raises:
        StoreError: the index is damaged.
    """
    if len(index) < index_bytes(array) or not _is_checked(index):
        raise StoreError("the index of its chunks does not match its checksum")
    entries = np.frombuffer(index[:-CHECKSUM_BYTES], "<u8").reshape(-1, 2)
    positions = np.where((entries == _EMPTY).all(1, keepdims=True), 0, entries)
    offsets, sizes = positions.T
    end = num_bytes - len(index)
    if np.any((offsets > end) | (sizes > end - offsets) | ((sizes <= CHECKSUM_BYTES) & (entries[:, 1] != _EMPTY))):
        raise StoreError("its index points outside of the file")
    return positions.astype(np.int64)


def _chunks(positions: NDArray[np.int64], array: FrameArray, first: int = 0, stop: int | None = None) -> list[Chunk]:
    """The chunks with numbers [first, stop) of a shard that hold something."""
    numbered = enumerate(positions[first:stop].tolist(), first)
    return [Chunk(number * array.frames_per_chunk, offset, size) for number, (offset, size) in numbered if size]


def decode_chunk(
    data: memoryview, chunk: Chunk, array: FrameArray, out: NDArray[Any] | None = None, *, is_trusted: bool = False
) -> NDArray[Any]:
    """The codes of a chunk, (frames_per_chunk, h, w, n_c); frames that do not exist are 0.

    Args:
        data: its bytes, with the checksum.
        out: where the codes are put; by default a new array.
        is_trusted: the bytes are known to be right, so the checksum need not be compared.

    Raises:
        StoreError: its bytes do not match their checksum, or are not values of this array.
    """
    codes = np.empty((array.frames_per_chunk, *array.frame_shape), array.dtype) if out is None else out
    name = f"the chunk of its frames {chunk.first_frame} to {chunk.first_frame + array.frames_per_chunk - 1}"
    if not is_trusted and not _is_checked(data):
        raise StoreError(f"{name} does not match its checksum")
    body = data[:-CHECKSUM_BYTES]
    if _content_size(bytes(body[:18])) != codes.nbytes:
        raise StoreError(f"{name} does not hold the {codes.nbytes} bytes of its codes")
    try:
        decompress(body, codes.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{name} cannot be decompressed") from error
    return codes.byteswap(inplace=True) if sys.byteorder == "big" else codes


def _content_size(head: bytes) -> int | None:
    """Decompressed size that a Zstandard frame states (RFC 8878, section 3.1.1.1), None without one."""
    if not head.startswith(_ZSTD_MAGIC) or len(head) < 6:
        return None
    descriptor = head[4]
    is_single, kind = bool(descriptor & 0x20), descriptor >> 6
    size = (1 if is_single else 0, 2, 4, 8)[kind]
    start = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    if not size:
        return None
    return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)


def damaged_frames(data: bytes, array: FrameArray) -> Iterator[tuple[int, int, str]]:
    """Runs of frames [first, stop) within a shard that cannot be trusted by its own checksums, and why."""
    try:
        chunks = chunks_of(data, array)
    except StoreError as error:
        yield 0, array.shard_frames, str(error)
        return
    view = memoryview(data)
    for chunk in chunks:
        try:
            decode_chunk(view[chunk.offset : chunk.offset + chunk.size], chunk, array)
        except StoreError as error:
            yield chunk.first_frame, chunk.first_frame + array.frames_per_chunk, str(error)


def require_sound(file: Place, data: bytes, array: FrameArray) -> None:
    """Refuse a shard of an unfinished plan that is damaged.

    Args:
        data: the content of the file.

    Raises:
        StoreError: it is; the message gives the remedy.
    """
    if any(damaged_frames(data, array)):
        raise StoreError(f"{file}, which an interrupted run left, is damaged; delete it and run this again")


def _is_checked(data: bytes | memoryview) -> bool:
    """Whether data ends in its own CRC-32C, little-endian."""
    body = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES]  # of which no copy is made
    return bool(crc32c(body) == int.from_bytes(data[-CHECKSUM_BYTES:], "little"))


# Writing --------------------------------------------------------------------------------------------------------------


def checked_values(values: NDArray[Any] | None, array: FrameArray, num_frames: int, where: str) -> NDArray[Any]:
    """Values for a shard in the dtype of its array.

    Args:
        where: the shard and the array, named in errors.

    Raises:
        ShapeError: they are not what the array holds.
    """
    expected = (num_frames, *array.frame_shape)
    if values is None or values.shape != expected:
        noun, found = ("codes" if isinstance(array, CodeSchema) else "rows"), None if values is None else values.shape
        raise ShapeError(f"{where} has shape {expected}, the {noun} have {found}")
    if not isinstance(array, CodeSchema):
        if values.dtype != array.dtype:
            raise ShapeError(f"{where} holds {array.dtype}, found {values.dtype}")
        return values
    if not np.issubdtype(values.dtype, np.integer):
        raise ShapeError(f"codes are integers, found {values.dtype}")
    if values.min() < 0 or values.max() >= array.codebook_size:
        raise ShapeError(f"codes are in [0, {array.codebook_size}), found {int(values.min())} to {int(values.max())}")
    return values.astype(array.dtype)


def create_array(num_frames: int, layout: FrameArray, chunk_frames: int) -> tuple[dict[str, Any], zarr.Array[Any]]:
    """An empty array of a store in memory: the dictionary that holds its files by name, and the array.

    A shard made in memory reaches the disk as one whole file, and never through two writers.
    """
    files: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(store_dict=files),
        shape=(num_frames, *layout.frame_shape),
        dtype=layout.dtype,
        chunks=(chunk_frames, *layout.frame_shape),
        shards=(layout.shard_frames, *layout.frame_shape),
        serializer=BytesCodec(endian="little") if layout.dtype.itemsize > 1 else BytesCodec(endian=None),
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        fill_value=layout.fill_value,
        dimension_names=layout.dimensions,
        # A chunk of zeros is a chunk of codes; leaving it out would make a shard of zeros no file at all.
        config={"write_empty_chunks": True},
    )
    return files, array


def array_metadata(num_frames: int, layout: FrameArray) -> bytes:
    """The `zarr.json` of an array of that many frames."""
    files, _ = create_array(num_frames, layout, layout.frames_per_chunk)
    return cast("bytes", files[ZARR_METADATA].to_bytes())


def shard_bytes(codes: NDArray[Any], layout: FrameArray) -> bytes:
    """One shard's file. Same codes, same bytes.

    Args:
        codes: (frames, h, w, n_c), at most `layout.shard_frames` frames; the rest of the shard stays empty.
    """
    files, array = create_array(layout.shard_frames, layout, layout.frames_per_chunk)
    array[: len(codes)] = codes
    data = [value for name, value in files.items() if name != ZARR_METADATA]
    assert len(data) == 1, "a shard is one file"
    return cast("bytes", data[0].to_bytes())
