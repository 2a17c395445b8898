"""Where the codes of a split are kept while a prior trains: which tier, and the memory-mapped file of one of them.

The file holds the codes of all clips of a split one after another, as a plain `.npy`. It is made once for each content,
whole or not at all, by one process of a host while the others wait; it is looked at before it is used, and deleting it
is always safe: what has it open keeps it, and the next training makes it again. `lvt verify` compares every byte of it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.data.codes import CodeClip, CodeStore
from lvt_pipeline.errors import BusyError, ConfigError
from lvt_pipeline.progress import Progress
from lvt_pipeline.storage import atomic_writer, exclusive_lock, remove_leftovers

Cache = Literal["auto", "ram", "mmap", "stream"]
Tier = Literal["ram", "mmap", "stream"]

WAIT_SECONDS = 0.2  # between looks at a cache file that another process is making
COMPARED_CLIPS = 16  # clips of a cache file whose ends are compared with the store before it is used
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
    # Every rank of a host would hold its own copy in memory; torchrun says how many there are.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_bytes * ranks <= available_memory() / 4:
        return "ram"
    return "mmap" if file.exists() or free_disk_bytes(file.parent) >= num_bytes + SPARE_DISK_BYTES else "stream"


def available_memory() -> int:
    """Bytes that this process may still take: what the kernel calls available, within the limit of its cgroup."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdecimal():
            available = min(available, max(0, int(limit) - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        pass  # not Linux, or no limit: the estimate stands
    return available


def free_disk_bytes(folder: Path) -> int:
    """Bytes that may be written to the disk of a folder, which need not exist yet; 0 if it is not ours to write to."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0


def cache_folder(store: Path) -> Path:
    """Where the mapped files of a store lie: beside it."""
    return store.with_name(f"{store.name}.cache")


def cache_file(store: CodeStore, split: str) -> Path:
    """The memory-mapped file of a split. Its name is the fingerprint of what is in it."""
    return cache_folder(store.path) / f"{split}-{store.fingerprint}.npy"


def remove_cache(store: Path) -> int:
    """Delete the mapped files of a store, all generations; returns the bytes that were freed.

    Raises:
        BusyError: a process is making one.
    """
    folder = cache_folder(store)
    if not folder.is_dir():
        return 0
    with exclusive_lock(folder):
        freed = sum(file.stat().st_size for file in folder.iterdir())
        shutil.rmtree(folder)
    return freed


def make_cache_file(
    file: Path,
    store: CodeStore,
    clips: Sequence[CodeClip],
    read: Callable[[], Iterator[NDArray[Any]]],
    progress: Progress,
) -> None:
    """Write the mapped file of some clips unless a good one is there; one process of a host does it, the others wait.

    Args:
        read: gives the codes of the clips one after another, in pieces.
    """
    shape = (sum(clip.length for clip in clips), *store.schema.frame_shape)
    while not _is_whole(file, shape, store.dtype):
        try:
            with exclusive_lock(file.parent):
                if _is_whole(file, shape, store.dtype):
                    break
                _write(file, shape, store.dtype, read)
                return
        except BusyError:
            time.sleep(WAIT_SECONDS)
    if _agrees(file, store, clips):
        return
    progress.say(f"{file} is not a copy of {store.path} any more and is made again")
    while not _agrees(file, store, clips):
        try:
            with exclusive_lock(file.parent):
                if not _agrees(file, store, clips):
                    _write(file, shape, store.dtype, read)
        except BusyError:
            time.sleep(WAIT_SECONDS)


def _write(
    file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[], Iterator[NDArray[Any]]]
) -> None:
    remove_leftovers(file.parent)
    with atomic_writer(file) as stream:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in read():
            stream.write(np.ascontiguousarray(part).data)


def _is_whole(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    try:
        codes = np.load(file, mmap_mode="r")
    except (OSError, ValueError):  # absent, cut short, or not an array
        return False
    return bool(codes.shape == shape and codes.dtype == dtype)


def _agrees(file: Path, store: CodeStore, clips: Sequence[CodeClip]) -> bool:
    """Whether the first and last frames of clips spread over the file are those of the store.

    A whole comparison would read the file and the store, which for large ones takes minutes; this finds a file of other
    codes, and pages that a power cut left as zeros. `lvt verify` compares all of it.
    """
    codes = np.load(file, mmap_mode="r")
    positions = np.cumsum([0, *(clip.length for clip in clips)])
    for index in np.unique(np.linspace(0, len(clips) - 1, COMPARED_CLIPS).astype(int)):
        clip = clips[index]
        for frame in {0, clip.length - 1}:
            if not np.array_equal(codes[positions[index] + frame], store.read(clip, frame, frame + 1)[0]):
                return False
    return True
