"""What this process may use of the machine: cores, memory, disk. Container limits and `ulimit` count.

The one place that counts them. A control group (cgroup) limits a process together with every group above it, so the
smallest limit on the way up decides; both versions of the interface are read.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_chosen_threads: int | None = None
# Parameters of mallopt, from malloc.h, with the largest values that glibc sets by itself.
TRIM_THRESHOLD, MMAP_THRESHOLD = (-1, 1 << 26), (-3, 1 << 25)
NO_LIMIT_BYTES = 1 << 60  # version 1 writes "no limit" as a number close to 2**63


def num_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: its affinity, and the processor quota of its control groups, rounded up.

    Args:
        root: where `/proc` and `/sys` are, for tests.
    """
    return max(1, min([all_cores(), *_core_quotas(root)]))


def all_cores() -> int:
    """Cores that this process may run on, however much of their time it may take."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """Cores for this process: those it may use, shared with the other processes that `torchrun` started here."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def use_threads(count: int) -> None:
    """Let torch compute with this many CPU threads from now on, whatever the work; `--threads` of the commands."""
    global _chosen_threads
    _chosen_threads = count
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    else:
        os.environ["OMP_NUM_THREADS"] = str(count)  # read when torch loads


def chosen_threads() -> int | None:
    """The number that `use_threads` was called with; None if it was not."""
    return _chosen_threads


class OtherLoad:
    """Processor time that other processes take on the cores of this one, measured from one look to the next."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._last = self._look()

    def free_cores(self) -> float:
        """Cores that the others left since the last look, 1 to `own_cores`. All when nothing is known."""
        before, self._last = self._last, self._look()
        if before is None or self._last is None or self._last[0] <= before[0]:
            return own_cores()
        seconds, busy, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(1.0, min(own_cores(), all_cores() - max(0.0, busy - own) / seconds))

    def _look(self) -> tuple[float, float, float] | None:
        """(time, seconds that this process's cores were busy, seconds that this process kept them busy)."""
        text = _read(self._root / "proc/stat")
        if text is None or not hasattr(os, "sched_getaffinity"):
            return None
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        rows = [line.split() for line in text.split("\n")]
        # user, nice, system, (idle, waiting for disks,) interrupts, more of them, taken by other virtual machines
        busy = sum(int(row[column]) for row in rows if row[0] in names for column in (1, 2, 3, 6, 7, 8))
        return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def total_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process could have at most: the machine's, or its smallest limit. None when unknown."""
    sizes = [limit for _, limit in _memory_limits(root)]
    with suppress(ValueError, OSError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(sizes, default=None)


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process may still take: what the kernel calls available, within every limit on it."""
    available = (total_memory(root) or 2**32) // 2  # where the system does not report it
    for line in (_read(root / "proc/meminfo") or "").split("\n"):
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            available = int(size.split()[0]) * 1024
    for group, limit in _memory_limits(root):
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        available = min(available, limit - max(0, used - _reclaimable(group)))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        available = min(available, soft - address_space())
    return max(0, available)


def address_space() -> int:
    """Bytes of address space that this process has reserved: mostly libraries."""
    text = _read(ROOT / "proc/self/statm")
    return int(text.split()[0]) * resource.getpagesize() if text else 0


def limit_address_space(num_bytes: int) -> None:
    """Let this process reserve at most this many bytes; a smaller limit that is in force already stays."""
    in_force = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    limit = min([num_bytes, *in_force])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def free_disk_bytes(folder: Path) -> int:
    """Bytes that may be written to the disk of a folder, which need not exist yet; 0 if it is not ours to write to."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Memory that is freed in the block stays with this process, for the next allocation, and is returned at the end.

    Otherwise glibc returns most of what a training step frees, and the kernel clears new pages for every next step.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(*MMAP_THRESHOLD)
    library.mallopt(TRIM_THRESHOLD[0], (1 << 31) - 1)
    try:
        yield
    finally:
        library.mallopt(*TRIM_THRESHOLD)
        library.malloc_trim(0)


@contextmanager
def paused_collection() -> Iterator[None]:
    """No search for reference cycles while the block (or the decorated function) runs.

    A table of a million clips is some millions of objects that all stay. While they are made, every search would walk
    through all that are there and free nothing, which takes longer than making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Control groups ------------------------------------------------------------------------------------------------------


@cache  # asked for every chunk of codes that is read
def _core_quotas(root: Path) -> list[int]:
    """How many cores each control group allows, for those that limit them."""
    quotas = []
    for group in _groups(root, "cpu"):
        quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
        if quota == "max":
            quota, period = _read(group / "cpu.cfs_quota_us") or "-1", _read(group / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(math.ceil(int(quota) / int(period)))
    return quotas


def _memory_limits(root: Path) -> list[tuple[Path, int]]:
    """The control groups that limit memory, each with its limit in bytes."""
    found = []
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(group / name)
            if limit is not None and limit < NO_LIMIT_BYTES:
                found.append((group, limit))
    return found


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the one mounted."""
    for line in (_read(root / "proc/self/cgroup") or "").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        mount = next((path for path in mounts if path.is_dir()), None)
        if mount is None:
            continue
        # In a container the group may be named as the host sees it, or with `..`: then only the mount is visible.
        parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
        for count in range(len(parts), -1, -1):
            group = mount.joinpath(*parts[:count])
            if group.is_dir():
                yield group


def _reclaimable(group: Path) -> int:
    """Bytes of a group's memory that cache files and are given back when something else needs them."""
    for line in (_read(group / "memory.stat") or "").split("\n"):
        name, _, size = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and size.isdecimal():
            return int(size)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


def advice_for_siblings() -> str:
    """Advice for a process that `torchrun` or `mpirun` started together with others, "" for one started alone."""
    for size, rank in (("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        count = os.environ.get(size, "")
        if count.isdecimal() and int(count) > 1:
            return (
                f"this is process {os.environ.get(rank, '?')} of {count} that were started together, and only "
                "train-vqvae and train-prior under torchrun share their work: start one process"
            )
    return ""
