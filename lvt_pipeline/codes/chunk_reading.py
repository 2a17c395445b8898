"""Codes out of shard files without zarr's layers in between: the fast way to read many frames, and to read a few.

A shard says at its end where each inner chunk lies (`code_shards.py`). The chunks that are asked for are fetched with
one read and decompressed straight into the array that is returned. Several threads share the work when there is much of
it, since decompression does not hold Python's lock. Checksums are compared as zarr does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import Zstd
from numpy.typing import NDArray

from lvt_pipeline.codes.shard_file import CHECKSUM_BYTES, Chunk, chunks_of, index_bytes
from lvt_pipeline.errors import StoreError
from lvt_pipeline.machine import num_cores

if TYPE_CHECKING:
    from lvt_pipeline.codes.store import CodeSchema

MAX_THREADS = 8
BYTES_PER_THREAD = 2**21  # of codes; for less a thread is not worth its start


def read_frames(
    shard_file: Callable[[int], Path], schema: CodeSchema, start: int, stop: int, *, threads: int | None = None
) -> NDArray[Any]:
    """Frames [start, stop) of a code array.

    Args:
        shard_file: where the shard with an index lies.
        threads: how many decompress; None: as many cores as this process may use, 1 for small reads.

    Returns:
        (stop - start, h, w, n_c) in the schema's dtype. Frames that nobody wrote are 0.

    Raises:
        StoreError: a checksum does not match, or the bytes are no codes of this schema.
        OSError: a shard cannot be read.
    """
    codes = np.empty((stop - start, *schema.frame_shape), schema.dtype)
    size = schema.shard_frames
    parts = [
        (shard_file(index), max(start - index * size, 0), min(stop - index * size, size), max(index * size - start, 0))
        for index in range(start // size, -(-stop // size))
    ]
    if threads is None:
        threads = min(num_cores(), MAX_THREADS, codes.nbytes // BYTES_PER_THREAD)

    def read(part: tuple[Path, int, int, int]) -> None:
        file, first, last, position = part
        _read_from_shard(file, schema, first, last, codes[position : position + last - first])

    if threads <= 1:
        for part in parts:
            read(part)
        return codes
    # The threads end with the read: none is left behind for a process that forks later to inherit.
    with ThreadPoolExecutor(threads, "read-codes") as pool:
        for _ in pool.map(read, _split(parts, schema.frames_per_chunk, threads)):
            pass
    return codes


def _split(parts: list[tuple[Path, int, int, int]], chunk: int, threads: int) -> list[tuple[Path, int, int, int]]:
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


def read_chunks(file: Path, schema: CodeSchema, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The codes of some chunks of a shard, one after another in the same memory: each is gone when the next comes.

    Args:
        numbers: which chunks of the shard, ascending. They are fetched with one read, so they should lie together.

    Yields:
        (frames_per_chunk, h, w, n_c) in the schema's dtype. Frames that nobody wrote are 0.

    Raises:
        StoreError: a checksum does not match, or the bytes are no codes of this schema.
        OSError: the shard cannot be read.
    """
    per_chunk = schema.frames_per_chunk
    codes = np.empty((per_chunk, *schema.frame_shape), schema.dtype)
    first, stop = numbers[0] * per_chunk, (numbers[-1] + 1) * per_chunk
    found = {chunk.first_frame // per_chunk: (chunk, data) for chunk, data in _fetch(file, schema, first, stop)}
    for number in numbers:
        if number in found:
            chunk, data = found[number]
            _decode(data, chunk, schema, chunk.first_frame, chunk.first_frame + per_chunk, codes)
        else:
            codes[:] = 0
        yield codes


def _read_from_shard(file: Path, schema: CodeSchema, first: int, stop: int, out: NDArray[Any]) -> None:
    """Put frames [first, stop) of one shard into `out`."""
    per_chunk = schema.frames_per_chunk
    chunks = _fetch(file, schema, first, stop)
    if len(chunks) < -(-stop // per_chunk) - first // per_chunk:
        out[:] = 0  # some chunks hold nothing
    for chunk, data in chunks:
        _decode(data, chunk, schema, first, stop, out)


def _fetch(file: Path, schema: CodeSchema, first: int, stop: int) -> list[tuple[Chunk, memoryview]]:
    """The chunks of a shard that hold some of the frames [first, stop), as they are compressed."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        num_bytes = os.fstat(descriptor).st_size
        tail = index_bytes(schema)
        index = os.pread(descriptor, tail, max(num_bytes - tail, 0))
        chunks = [
            chunk
            for chunk in chunks_of(index, schema, num_bytes)
            if chunk.first_frame < stop and chunk.first_frame + schema.frames_per_chunk > first
        ]
        if not chunks:
            return []
        begin = min(chunk.offset for chunk in chunks)
        end = max(chunk.offset + chunk.size for chunk in chunks)
        data = memoryview(os.pread(descriptor, end - begin, begin))
    finally:
        os.close(descriptor)
    return [(chunk, data[chunk.offset - begin : chunk.offset - begin + chunk.size]) for chunk in chunks]


def _decode(data: memoryview, chunk: Chunk, schema: CodeSchema, first: int, stop: int, out: NDArray[Any]) -> None:
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    per_chunk = schema.frames_per_chunk
    start = chunk.first_frame
    name = f"the chunk of its frames {start} to {start + per_chunk - 1}"
    if crc32c(bytes(body)) != int.from_bytes(checksum, "little"):
        raise StoreError(f"{name} does not match its checksum")
    is_whole = first <= start and start + per_chunk <= stop and schema.dtype.isnative
    try:
        if is_whole:
            target = out[start - first : start - first + per_chunk]
            Zstd().decode(body, target.reshape(-1).view(np.uint8))
            return
        raw = Zstd().decode(body)
        frames = np.frombuffer(raw, schema.dtype.newbyteorder("<")).reshape(per_chunk, *schema.frame_shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{name} cannot be decompressed ({error})") from error
    begin, end = max(first, start), min(stop, start + per_chunk)
    out[begin - first : end - first] = frames[begin - start : end - start]
