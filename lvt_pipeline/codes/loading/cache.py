"""Where the codes of a split are kept while a prior trains: the choice of a tier, and the memory-mapped file.

The file holds the codes of all clips of a split one after another, as a `.npy` followed by the CRC-32C of all its
bytes. It is made once for each content, whole or not at all, by one process of a host while the others wait. All of it
is compared with its checksum before it is used, which also loads it from the disk; `lvt verify` compares it with the
store. Deleting it is always safe: processes that have it open keep it, and the next training makes it again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

from lvt_pipeline.codes.layout import ARRAY
from lvt_pipeline.codes.schema import FrameArray
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import BusyError, ConfigError, LVTError
from lvt_pipeline.machine import available_memory, free_disk_bytes
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.storage import Place, atomic_writer, cache_of, describe_os_error, exclusive_lock, remove_leftovers

Cache = Literal["auto", "ram", "mmap", "stream"]
Tier = Literal["ram", "mmap", "stream"]

WAIT_SECONDS = 0.2  # between looks at a cache file that another process is making
CHECKSUM_BYTES = 4
PIECE_BYTES = 2**20  # of a cache file, in memory at a time while its checksum is computed
SPARE_DISK_BYTES = 2**30  # left free on the disk when `auto` makes a file


def choose_tier(cache: Cache, num_bytes: int, file: Path) -> Tier:
    """The tier for codes of that many bytes whose mapped file would be `file`.

    Raises:
        ConfigError: there is no such tier.
    """
    if cache in ("ram", "mmap", "stream"):
        return cache
    if cache != "auto":
        raise ConfigError(f"cache={cache!r} is not one of auto, ram, mmap, stream")
    # Every rank of a host would hold its own copy in memory; torchrun sets their number.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_bytes * ranks <= available_memory() / 4:
        return "ram"
    return "mmap" if file.exists() or free_disk_bytes(file.parent) >= num_bytes + SPARE_DISK_BYTES else "stream"


def split_bytes(store: CodeStore, split: str, arrays: Iterable[str] = ()) -> int:
    """Bytes of the codes of a split and of these side arrays."""
    layouts: list[FrameArray] = [store.schema, *(store.array(name).layout for name in arrays)]
    frame_bytes = sum(math.prod(layout.frame_shape) * layout.dtype.itemsize for layout in layouts)
    return frame_bytes * sum(clip.length for clip in store.split(split))


def cache_folder(store: Place) -> Path:
    """The folder of the mapped files of a store: next to it, or, if it is in a bucket, in the cache of this user."""
    return store.with_name(f"{store.name}.cache") if isinstance(store, Path) else cache_of(store)


def cache_file(store: CodeStore, split: str, array: str = ARRAY) -> Path:
    """The memory-mapped file of an array of a split. Its name holds the fingerprint of its content."""
    name = split if array == ARRAY else f"{split}.{array}"
    return cache_folder(store.path) / f"{name}-{store.fingerprint}.npy"


def cache_files(store: Place, kept: Collection[str] = ()) -> list[Path]:
    """The mapped files of a store, half-written ones too.

    Args:
        store: it may be gone.
        kept: fingerprints of generations whose files are left out.
    """
    folder = cache_folder(store)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.stem.rpartition("-")[2] not in kept]


def remove_cache(store: Place, kept: Collection[str] = ()) -> list[Path]:
    """Delete what `cache_files` lists, and return it. A process that has a file open keeps it.

    Raises:
        BusyError: a process is making one; nothing was deleted.
    """
    folder = cache_folder(store)
    if not cache_files(store, kept):
        return []
    with exclusive_lock(folder):
        files = cache_files(store, kept)
        for file in files:
            file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    return files


def open_cache_file(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    read: Callable[[], Iterator[NDArray[Any]]],
    progress: Progress,
) -> NDArray[Any]:
    """An array of a split out of its mapped file, which is made unless a good one is there.

    One process of a host makes it, the others wait.

    Args:
        read: gives the values of the clips one after another, in pieces.

    Returns:
        the array, mapped.

    Raises:
        LVTError: the bytes that are read back are not those that were written.
        StoreError: a shard is damaged.
    """

    def look() -> NDArray[Any] | None:
        # In this order: nobody replaces a file once it is sound.
        return map_file(file, shape, dtype) if is_sound(file, progress) else None

    is_ours = False
    while (codes := look()) is None:
        if is_ours and file.exists():
            raise LVTError(f"{file} is not what was just written into it; use --cache ram, or stream, on this disk")
        try:
            with exclusive_lock(file.parent):
                if look() is None:
                    if file.exists():
                        progress.say(f"{file} is damaged and is made again")
                    _write(file, shape, dtype, read)
                    is_ours = True
        except BusyError:
            time.sleep(WAIT_SECONDS)
    return codes


def map_file(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The mapped codes in a file, None if it is absent, cut short, or holds something else.

    Raises:
        LVTError: the file system cannot read it.
    """
    header = _header(shape, dtype)
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(len(header)) != header:
                return None
            # A plain view: slices of the subclass take several times as long to make.
            codes = np.memmap(stream, dtype, "r", len(header), shape).view(np.ndarray)
    except (FileNotFoundError, ValueError):  # removed meanwhile, or too short to be mapped
        return None
    except OSError as error:
        raise describe_os_error(error, f"reading {file}") from error
    return codes if size == len(header) + codes.nbytes + CHECKSUM_BYTES else None


def is_sound(file: Path, progress: Progress = SILENT) -> bool:
    """Whether a mapped file ends in the checksum of all that is before; all of it is read.

    Raises:
        LVTError: the file system cannot read it.
    """
    checksum = 0
    try:
        with open(file, "rb") as stream:
            left = os.fstat(stream.fileno()).st_size - CHECKSUM_BYTES
            with progress.bar("checking mapped codes", -(-left // PIECE_BYTES), "MiB") as bar:
                while left > 0 and (piece := stream.read(min(left, PIECE_BYTES))):
                    checksum = extend(checksum, piece)
                    left -= len(piece)
                    bar.advance()
            return left == 0 and stream.read() == checksum.to_bytes(CHECKSUM_BYTES, "little")
    except FileNotFoundError:
        return False  # removed meanwhile
    except OSError as error:
        raise describe_os_error(error, f"reading {file}") from error


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a `.npy` of such an array begins with."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _write(
    file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[], Iterator[NDArray[Any]]]
) -> None:
    remove_leftovers(file.parent)
    with atomic_writer(file) as stream:
        checksum = 0
        for piece in chain([_header(shape, dtype)], (part.tobytes() for part in read())):
            checksum = extend(checksum, piece)
            stream.write(piece)
        stream.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
