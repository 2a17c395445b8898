"""One shard file of a code store, byte by byte: inner chunks, each compressed and with its checksum, and an index.

zarr reads shards through many layers that tell little about damage. Here a shard is taken apart by hand, so that damage
has a place: which frames are lost, and with them which clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import Zstd
from numpy.typing import NDArray

from lvt_pipeline.errors import StoreError

if TYPE_CHECKING:
    from lvt_pipeline.codes.store import CodeSchema

CHECKSUM_BYTES = 4
_EMPTY = 2**64 - 1  # offset and size of a chunk that holds nothing


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


def index_bytes(schema: CodeSchema) -> int:
    """Bytes at the end of a shard that say where its chunks lie."""
    return 16 * (schema.shard_frames // schema.frames_per_chunk) + CHECKSUM_BYTES


def chunks_of(data: bytes, schema: CodeSchema, num_bytes: int | None = None) -> list[Chunk]:
    """The inner chunks of a shard that hold something, in order of their frames.

    Args:
        data: the whole shard, or its last `index_bytes`.
        num_bytes: of the whole shard, when `data` is only the end of it.

    Raises:
        StoreError: the index is damaged.
    """
    per_chunk = schema.frames_per_chunk
    count = schema.shard_frames // per_chunk
    size = index_bytes(schema)
    index = data[-size:]
    if len(index) < size or not _is_checked(index):
        raise StoreError("the index of its chunks does not match its checksum")
    entries = np.frombuffer(index[:-CHECKSUM_BYTES], "<u8").reshape(count, 2).tolist()
    chunks = [
        Chunk(number * per_chunk, offset, size)
        for number, (offset, size) in enumerate(entries)
        if (offset, size) != (_EMPTY, _EMPTY)
    ]
    for chunk in chunks:
        if chunk.offset + chunk.size > (num_bytes or len(data)) - size or chunk.size <= CHECKSUM_BYTES:
            raise StoreError("its index points outside of the file")
    return chunks


def decode_chunk(data: bytes, chunk: Chunk, schema: CodeSchema, *, is_trusted: bool = False) -> NDArray[Any]:
    """The codes of a chunk, (frames_per_chunk, h, w, n_c); frames that do not exist are 0.

    Args:
        data: the whole shard.
        is_trusted: the bytes are known to be right, so the checksum need not be looked at.

    Raises:
        StoreError: its bytes do not match their checksum, or are no codes of this schema.
    """
    part = memoryview(data)[chunk.offset : chunk.offset + chunk.size]
    if not is_trusted and not _is_checked(bytes(part)):
        raise StoreError("does not match its checksum")
    try:
        raw = Zstd().decode(part[:-CHECKSUM_BYTES])
        shape = (schema.frames_per_chunk, *schema.frame_shape)
        return np.frombuffer(raw, schema.dtype.newbyteorder("<")).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"cannot be decompressed ({error})") from error


def damaged_frames(data: bytes, schema: CodeSchema) -> Iterator[tuple[int, int, str]]:
    """Runs of frames [first, stop) within a shard that cannot be trusted by its own checksums, and why."""
    try:
        chunks = chunks_of(data, schema)
    except StoreError as error:
        yield 0, schema.shard_frames, str(error)
        return
    for chunk in chunks:
        stop = chunk.first_frame + schema.frames_per_chunk
        try:
            decode_chunk(data, chunk, schema)
        except StoreError as error:
            yield chunk.first_frame, stop, f"the chunk of its frames {chunk.first_frame} to {stop - 1} {error}"


def is_sound(file: Path, schema: CodeSchema) -> bool:
    """Whether every chunk of a shard matches its checksum."""
    return not any(damaged_frames(file.read_bytes(), schema))


def _is_checked(data: bytes) -> bool:
    """Whether data ends in its own CRC-32C, little-endian."""
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    return bool(crc32c(body) == int.from_bytes(checksum, "little"))
