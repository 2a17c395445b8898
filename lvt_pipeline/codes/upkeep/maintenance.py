"""Freeing the space of a code store that no kept generation needs: `lvt gc`.

`collect_garbage` drops old generations and deletes shards without a live clip, and what killed runs left. A generation
that a live process reads stays (`readers`), and its readers are named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.array import remove_unpublished, resize_arrays
from lvt_pipeline.codes.checks import is_unpublished, read_pending
from lvt_pipeline.codes.commit import commit_root
from lvt_pipeline.codes.layout import GENERATIONS, PENDING, PENDING_FILE, GenerationInfo, StoreRoot
from lvt_pipeline.codes.loading.cache import cache_files, remove_cache
from lvt_pipeline.codes.readers import GRACE_HOURS, without_readers
from lvt_pipeline.codes.schema import index_of
from lvt_pipeline.codes.store import ATTEMPTS, CodeStore, open_codes
from lvt_pipeline.codes.upkeep.compaction import ShardUse, shard_uses
from lvt_pipeline.errors import BusyError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import TEMPORARY_SUFFIX, Place, as_place


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The files of a store that the kept generations do not need.

    Attributes:
        kept, dropped: generations.
        in_use: generations that would be dropped but are being read, each with its readers in words; they are kept.
        shards: files of shards in which nothing is alive, those of abandoned plans included; paths in the store.
        leftovers: half-written files, and clip tables and their pages that nothing refers to; paths in the store.
        caches: memory-mapped copies of generations that are dropped or gone, and half-written ones, next to the store.
        pending: shards of an interrupted encode; they are kept unless asked otherwise.
        bytes: freed by deleting everything but `pending`.
        partly_dead: shards with dead ranges; `compact_store` moves the clips in them.
    """

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    in_use: Mapping[int, str]
    shards: tuple[str, ...]
    leftovers: tuple[str, ...]
    caches: tuple[str, ...]
    pending: tuple[str, ...]
    bytes: int
    partly_dead: tuple[ShardUse, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to delete."""
        return not (self.dropped or self.shards or self.leftovers or self.caches)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def find_garbage(
    path: Place,
    *,
    keep_generations: int = 1,
    keep: Collection[int] = (),
    drop_pending: bool = False,
    ignore_readers: bool = False,
    grace_hours: float = GRACE_HOURS,
) -> Garbage:
    """The files that `collect_garbage` would delete. Changes nothing.

    Args:
        keep_generations: how many of the newest generations stay readable.
        keep: others that stay readable, by number.
        drop_pending: include the shards of an interrupted encode.
        ignore_readers: drop generations also where there are no locks, so that readers cannot be seen.
        grace_hours: in a bucket, what is younger stays: others may be about to use it.

    Raises:
        StoreError: there is no store at `path`, it is damaged, or a generation to keep is not in it.
    """
    path = as_place(path).absolute()
    for _ in range(ATTEMPTS):
        root = open_codes(path, holds=False).root
        dropped = _dropped(path, root, keep_generations, keep)
        try:
            with without_readers(path, dropped, is_forced=ignore_readers, grace_hours=grace_hours) as in_use:
                return _garbage(path, root, {*root.numbers} - {*dropped}, in_use, drop_pending, grace_hours)
        except (FileNotFoundError, StoreError):
            if layout.read_root(path) == root:
                raise
    raise BusyError(f"{path} keeps changing; run this again when the commands that write it have finished")


def collect_garbage(
    path: Place,
    *,
    keep_generations: int = 1,
    keep: Collection[int] = (),
    drop_pending: bool = False,
    ignore_readers: bool = False,
    grace_hours: float = GRACE_HOURS,
) -> Garbage:
    """Delete the files that the kept generations do not need. Arguments and errors as in `find_garbage`.

    The root is replaced first: from then on nothing refers to the files that are deleted next, so this may be killed at
    any moment.

    Returns:
        the files that were deleted.

    Raises:
        BusyError: another process is writing the store, or a memory-mapped copy of it.
    """
    path = as_place(path).absolute()
    open_codes(path, holds=False)  # before the lock, which would create a folder
    with layout.storage_of(path).exclusive():
        store = open_codes(path, holds=False)
        dropped = _dropped(path, store.root, keep_generations, keep)
        with without_readers(path, dropped, is_forced=ignore_readers, grace_hours=grace_hours) as in_use:
            kept_numbers = {*store.root.numbers} - {*dropped}
            garbage = _garbage(path, store.root, kept_numbers, in_use, drop_pending, grace_hours)
            kept = [info for info in store.root.generations if info.generation in garbage.kept]
            # First, because a training that makes such a file just now is the one thing that may refuse.
            remove_cache(path, {info.fingerprint for info in kept})
            _delete(store, garbage, kept)
    return garbage


def _dropped(path: Place, root: StoreRoot, keep_generations: int, keep: Collection[int]) -> list[int]:
    unknown = sorted(set(keep) - set(root.numbers))
    if unknown:
        raise StoreError(
            f"{path} has no generation {unknown[0]} to keep; it has {layout.numbers_as_text(root.numbers)}"
        )
    return sorted({*root.numbers} - {*root.numbers[-keep_generations:], *keep})


def _garbage(
    path: Place,
    root: StoreRoot,
    kept: Collection[int],
    in_use: Mapping[int, str],
    drop_pending: bool,
    grace_hours: float,
) -> Garbage:
    """The files that these generations, and those in use, do not need."""
    kept = sorted({*kept, *in_use})
    files = _old_files(path, grace_hours)
    stores = [open_codes(path, number, holds=False) for number in kept]
    clips = [clip for store in stores for clip in store.clips]
    uses = shard_uses(stores[-1], clips)
    has_pending = is_unpublished(path, root.generation)
    published = -(-stores[-1].array_frames // stores[-1].schema.shard_frames)  # shards up to the current generation
    shards, pending = _unused_shards(files, uses, published if has_pending and not drop_pending else None)
    pages = {layout.page_name(page.digest) for store in stores for page in store.table.pages}
    leftovers = _leftovers(files, root, pages, has_pending)
    if layout.has_file(path, PENDING_FILE) and (drop_pending or not has_pending):
        leftovers.append(PENDING)
    fingerprints = {info.fingerprint for info in root.generations if info.generation in kept}
    caches = cache_files(path, fingerprints)
    dropped = [number for number in root.numbers if number not in kept]
    deleted = {*shards, *leftovers, *map(layout.generation_name, dropped)}
    return Garbage(
        kept=tuple(kept),
        dropped=tuple(dropped),
        in_use=dict(in_use),
        shards=tuple(shards),
        leftovers=tuple(leftovers),
        caches=tuple(map(str, caches)),
        pending=tuple(pending),
        bytes=sum(size for name, size in files.items() if {name, name.removesuffix(f"/{ZARR_METADATA}")} & deleted)
        + sum(file.stat().st_size for file in caches),
        partly_dead=tuple(use for use in uses if 0 < use.dead_frames < use.frames),
    )


def _old_files(path: Place, grace_hours: float) -> dict[str, int]:
    """Sizes of all files of a store, by name; in a bucket, only of those that are older than the grace period."""
    storage = layout.storage_of(path)
    limit = math.inf if storage.local() is not None else time.time() - 3600 * grace_hours
    return {entry.name: entry.size for entry in storage.list() if entry.modified < limit}


def _unused_shards(
    files: Iterable[str], uses: Sequence[ShardUse], first_pending: int | None
) -> tuple[list[str], list[str]]:
    """Files without a live clip, and those that an interrupted command may still use.

    Args:
        first_pending: index of the first shard of the interrupted command, None when there is none to respect.
    """
    alive = {use.index for use in uses if not use.is_dead}
    shards: list[str] = []
    pending: list[str] = []
    for name in files:
        if "/c/" not in name or index_of(name) in alive or _is_temporary(name):
            continue
        is_pending = first_pending is not None and index_of(name) >= first_pending
        (pending if is_pending else shards).append(name)
    return shards, pending


def _leftovers(files: Iterable[str], root: StoreRoot, pages: Collection[str], has_pending: bool) -> list[str]:
    """Half-written files, and clip tables and pages of them that nothing refers to.

    Args:
        pages: those that the kept generations have.
    """
    found = [name for name in files if _is_temporary(name)]
    if not has_pending:  # otherwise its clip table may name any of them
        found += [name for name in files if name.startswith(layout.PAGES) and name not in pages]
    for name in files:
        group, _, number = name.removesuffix(f"/{ZARR_METADATA}").partition("/")
        if group != GENERATIONS or not number[:1].isdecimal() or _is_temporary(name):
            continue
        generation = int(number) if number.isdecimal() else 0
        if generation not in root.numbers and not (has_pending and generation > root.generation):
            found.append(f"{GENERATIONS}/{number}")
    return found


def _delete(store: CodeStore, garbage: Garbage, kept: Sequence[GenerationInfo]) -> None:
    path, storage = store.path, layout.storage_of(store.path)
    gone = {*garbage.shards, *map(layout.table_name, garbage.dropped)}
    root = replace(
        store.root,
        generations=tuple(kept),
        files={name: digest for name, digest in store.root.files.items() if name not in gone},
    )
    pending = read_pending(path)
    if PENDING in garbage.leftovers and pending is not None and pending.generation > root.generation:
        root = replace(root, used_shards=max(root.used_shards, pending.end_shard))
    if root != store.root:
        root = commit_root(path, root, store.table)
    if PENDING in garbage.leftovers:
        resize_arrays(path, store.schema, store.array_frames, root)
        storage.delete([PENDING_FILE])
    groups = {layout.generation_name(number): layout.table_name(number) for number in layout.generations_in(storage)}
    storage.delete([*(groups.get(name, name) for name in garbage.leftovers if name != PENDING), *sorted(gone)])
    if PENDING in garbage.leftovers:
        remove_unpublished(path, store.schema, -(-store.array_frames // store.schema.shard_frames))


def _is_temporary(name: str) -> bool:
    """Whether a file is half-written, or in a folder of such files."""
    return any(
        part.startswith(".") and (part.endswith(TEMPORARY_SUFFIX) or part.startswith(".staged"))
        for part in name.split("/")
    )
