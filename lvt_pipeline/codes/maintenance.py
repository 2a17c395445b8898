"""Freeing the space of a code store that no kept generation needs: `lvt gc`.

`collect_garbage` drops old generations and deletes shards without a live clip, and what killed runs left. A generation
that a live process reads stays (`readers`), and its readers are named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.array import remove_unpublished, resize_arrays
from lvt_pipeline.codes.card import commit_root
from lvt_pipeline.codes.checks import is_unpublished, read_pending
from lvt_pipeline.codes.compaction import ShardUse, shard_files, shard_uses, size_of
from lvt_pipeline.codes.layout import ARRAY, ARRAYS, GENERATIONS, PENDING, SHARDS, GenerationInfo, StoreRoot
from lvt_pipeline.codes.loading.cache import cache_files, remove_cache
from lvt_pipeline.codes.readers import without_readers
from lvt_pipeline.codes.schema import index_of
from lvt_pipeline.codes.store import ATTEMPTS, CodeStore, open_codes
from lvt_pipeline.errors import BusyError, StoreError
from lvt_pipeline.storage import TEMPORARY_SUFFIX, exclusive_lock


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The files of a store that the kept generations do not need.

    Attributes:
        kept, dropped: generations.
        in_use: generations that would be dropped but are being read, each with its readers in words; they are kept.
        shards: files of shards in which nothing is alive, those of abandoned plans included; paths in the store.
        leftovers: half-written files, and clip tables that nothing refers to; paths in the store.
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
    path: Path,
    *,
    keep_generations: int = 1,
    keep: Collection[int] = (),
    drop_pending: bool = False,
    ignore_readers: bool = False,
) -> Garbage:
    """The files that `collect_garbage` would delete. Changes nothing.

    Args:
        keep_generations: how many of the newest generations stay readable.
        keep: others that stay readable, by number.
        drop_pending: include the shards of an interrupted encode.
        ignore_readers: drop generations also on a file system without locks, where readers cannot be seen.

    Raises:
        StoreError: there is no store at `path`, it is damaged, or a generation to keep is not in it.
    """
    path = path.absolute()
    for _ in range(ATTEMPTS):
        root = open_codes(path, holds=False).root
        dropped = _dropped(path, root, keep_generations, keep)
        try:
            with without_readers(path, dropped, is_forced=ignore_readers) as in_use:
                return _garbage(path, root, {*root.numbers} - {*dropped}, in_use, drop_pending)
        except (FileNotFoundError, StoreError):
            if layout.read_root(path) == root:
                raise
    raise BusyError(f"{path} keeps changing; run this again when the commands that write it have finished")


def collect_garbage(
    path: Path,
    *,
    keep_generations: int = 1,
    keep: Collection[int] = (),
    drop_pending: bool = False,
    ignore_readers: bool = False,
) -> Garbage:
    """Delete the files that the kept generations do not need. Arguments and errors as in `find_garbage`.

    The root is replaced first: from then on nothing refers to the files that are deleted next, so this may be killed at
    any moment.

    Returns:
        the files that were deleted.

    Raises:
        BusyError: another process is writing the store, or a memory-mapped copy of it.
    """
    path = path.absolute()
    open_codes(path, holds=False)  # before the lock, which would create a folder
    with exclusive_lock(path):
        store = open_codes(path, holds=False)
        dropped = _dropped(path, store.root, keep_generations, keep)
        with without_readers(path, dropped, is_forced=ignore_readers) as in_use:
            garbage = _garbage(path, store.root, {*store.root.numbers} - {*dropped}, in_use, drop_pending)
            kept = [info for info in store.root.generations if info.generation in garbage.kept]
            # First, because a training that makes such a file just now is the one thing that may refuse.
            remove_cache(path, {info.fingerprint for info in kept})
            with layout.os_errors_as_one_line(f"deleting from {path}"):
                _delete(store, garbage, kept)
    return garbage


def _dropped(path: Path, root: StoreRoot, keep_generations: int, keep: Collection[int]) -> list[int]:
    unknown = sorted(set(keep) - set(root.numbers))
    if unknown:
        raise StoreError(
            f"{path} has no generation {unknown[0]} to keep; it has {layout.numbers_as_text(root.numbers)}"
        )
    return sorted({*root.numbers} - {*root.numbers[-keep_generations:], *keep})


def _garbage(
    path: Path, root: StoreRoot, kept: Collection[int], in_use: Mapping[int, str], drop_pending: bool
) -> Garbage:
    """The files that these generations, and those in use, do not need."""
    kept = sorted({*kept, *in_use})
    stores = [open_codes(path, number, holds=False) for number in kept]
    clips = [clip for store in stores for clip in store.clips]
    uses = shard_uses(stores[-1], clips)
    has_pending = is_unpublished(path, root.generation)
    published = -(-stores[-1].array_frames // stores[-1].schema.shard_frames)  # shards up to the current generation
    shards, pending = _unused_shards(path, uses, published if has_pending and not drop_pending else None)
    leftovers = _leftovers(path, root, has_pending)
    if (path / PENDING).exists() and (drop_pending or not has_pending):
        leftovers.append(PENDING)
    fingerprints = {info.fingerprint for info in root.generations if info.generation in kept}
    caches = cache_files(path, fingerprints)
    dropped = [number for number in root.numbers if number not in kept]
    deleted = [path / name for name in (*shards, *leftovers, *map(layout.generation_name, dropped))] + caches
    return Garbage(
        kept=tuple(kept),
        dropped=tuple(dropped),
        in_use=dict(in_use),
        shards=tuple(shards),
        leftovers=tuple(leftovers),
        caches=tuple(map(str, caches)),
        pending=tuple(pending),
        bytes=sum(map(size_of, deleted)),
        partly_dead=tuple(use for use in uses if 0 < use.dead_frames < use.frames),
    )


def _unused_shards(path: Path, uses: Sequence[ShardUse], first_pending: int | None) -> tuple[list[str], list[str]]:
    """Files without a live clip, and those that an interrupted command may still use.

    Args:
        first_pending: index of the first shard of the interrupted command, None when there is none to respect.
    """
    alive = {use.index for use in uses if not use.is_dead}
    shards: list[str] = []
    pending: list[str] = []
    for name in shard_files(path):
        if index_of(name) in alive or _is_temporary(Path(name)):
            continue
        is_pending = first_pending is not None and index_of(name) >= first_pending
        (pending if is_pending else shards).append(name)
    return shards, pending


def _leftovers(path: Path, root: StoreRoot, has_pending: bool) -> list[str]:
    """Half-written files, and clip tables that nothing refers to."""
    folders = [ARRAY, *(f"{ARRAYS}/{folder.name}" for folder in sorted((path / ARRAYS).glob("*/")))]
    hidden = [
        f"{name}/{item.name}" for name in folders for item in sorted((path / name).iterdir()) if _is_temporary(item)
    ]
    found = [*hidden, *(name for name in shard_files(path) if _is_temporary(Path(name)))]
    for group in sorted((path / GENERATIONS).glob("[0-9]*")):
        number = int(group.name) if group.name.isdecimal() else 0
        if number not in root.numbers and not (has_pending and number > root.generation):
            found.append(f"{GENERATIONS}/{group.name}")
    return found


def _delete(store: CodeStore, garbage: Garbage, kept: Sequence[GenerationInfo]) -> None:
    path = store.path
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
        commit_root(path, root, store.clips)
    if PENDING in garbage.leftovers:
        resize_arrays(path, store.schema, store.array_frames, root)
    for name in garbage.leftovers:
        if name.startswith(GENERATIONS) or name == PENDING:
            layout.remove_group(path, path / name)
    for number in garbage.dropped:
        layout.remove_group(path, path / layout.generation_name(number))
    for name in garbage.shards:
        _unlink(path / name, path / name.partition("/c/")[0] / "c")
    for name in garbage.leftovers:
        if name.startswith((f"{SHARDS}/", f"{ARRAYS}/")):
            (path / name).unlink(missing_ok=True)
    if PENDING in garbage.leftovers:
        remove_unpublished(path, store.schema, -(-store.array_frames // store.schema.shard_frames))
    layout.remove_temporary_files(path)


def _is_temporary(file: Path) -> bool:
    return file.name.startswith(".") and (file.name.endswith(TEMPORARY_SUFFIX) or file.name.startswith(".staged"))


def _unlink(file: Path, top: Path) -> None:
    """Delete a file and the folders that it leaves empty, up to `top`."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == top or any(folder.iterdir()):
            break
        folder.rmdir()
