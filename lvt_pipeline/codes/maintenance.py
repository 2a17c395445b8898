"""Taking back the space of a code store that no kept generation needs.

An incremental encode never moves or overwrites codes, so removed and changed clips leave dead ranges behind.

- `collect_garbage` drops old generations and deletes shards in which nothing is alive any more, and what killed runs
  left. The root is replaced first: from then on nothing refers to what is deleted next, so it may be killed anywhere.
- `compact_store` copies what is alive in partly dead shards into new shards and publishes a generation that reads them
  there. No other shard is touched, and the older generations stay readable until they are collected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lvt_pipeline.codes.files import (
    commit_root,
    is_unpublished,
    remove_group,
    remove_temporary_files,
    replace_file,
    with_digests,
)
from lvt_pipeline.codes.layout import (
    ARRAY,
    ARRAY_METADATA,
    GENERATIONS,
    PENDING,
    SHARDS,
    GenerationInfo,
    StoreRoot,
    digest_bytes,
    generation_name,
    numbers_as_text,
    table_name,
    with_history,
)
from lvt_pipeline.codes.loading.cache import cache_files, remove_cache
from lvt_pipeline.codes.plan import CodeChange, CodePlan, cut_into_shards
from lvt_pipeline.codes.store import CodeClip, CodeStore, array_metadata, open_codes, read_table, shard_name
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import StoreError
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.storage import TEMPORARY_SUFFIX, exclusive_lock

COMPACT = "compact"
COMPACT_VERSION = 1
# A clip that reached from a moved shard into its neighbour leaves a dead edge there. Moving the neighbour for that
# would move the next edge, and so on through the store; edges below this share of a shard are left.
TOLERATED_EDGE = 0.5


# What is dead ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardUse:
    """How much of a shard clips use.

    Attributes:
        frames: written into it.
        dead_frames: of those, what no clip that was asked about uses.
        edge_frames: of the dead ones, those in a short run at a border to a shard in which everything is dead.
        bytes: size of the file, 0 when it is gone.
    """

    index: int
    frames: int
    dead_frames: int
    edge_frames: int
    bytes: int

    @property
    def is_dead(self) -> bool:
        """Whether nothing in it is used."""
        return self.dead_frames == self.frames


def shard_uses(
    store: Path, root: StoreRoot, shard_frames: int, array_frames: int, clips: Sequence[CodeClip]
) -> list[ShardUse]:
    """The use that `clips` make of every shard of a store that was ever written, in order.

    Args:
        root: with its history.
        array_frames: length of the array.
    """
    count = -(-array_frames // shard_frames)
    lengths = np.full(count, shard_frames, np.int64)
    for index, frames in root.short_shards.items():
        lengths[index] = frames
    borders = np.zeros(count * shard_frames + 1, np.int32)
    np.add.at(borders, [clip.offset for clip in clips], 1)
    np.add.at(borders, [clip.offset + clip.length for clip in clips], -1)
    alive = (np.cumsum(borders[:-1], dtype=np.int32) > 0).reshape(count, shard_frames)
    uses = []
    for index in range(count):
        written = alive[index, : lengths[index]]
        file = store / shard_name(index)
        edges = 0
        if 0 < written.sum() < len(written):
            runs = [int(written.argmax()) if index > 0 and not alive[index - 1].any() else 0]
            runs.append(int(written[::-1].argmax()) if index + 1 < count and not alive[index + 1].any() else 0)
            edges = sum(run for run in runs if run < TOLERATED_EDGE * shard_frames)
        uses.append(
            ShardUse(
                index=index,
                frames=int(lengths[index]),
                dead_frames=int(len(written) - written.sum()),
                edge_frames=edges,
                bytes=file.stat().st_size if file.exists() else 0,
            )
        )
    return uses


# Compacting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What a compaction did, or would do.

    Attributes:
        generation: the current one now.
        shards: indices of the shards that clips were moved out of.
        clips, frames: moved.
        dead_frames: given back, once the older generations are collected.
        bytes: size of the shards that clips were moved out of, which go when the older generations are collected.
    """

    generation: int
    shards: tuple[int, ...]
    clips: int
    frames: int
    dead_frames: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compact_store(
    path: Path, *, min_dead: float = 0.0, dry_run: bool = False, progress: Progress = SILENT
) -> CompactReport:
    """Move what the current generation uses out of partly dead shards, into new ones, and publish a generation.

    Its content and fingerprint are those of the current one. Dead edges below `TOLERATED_EDGE` do not count.

    Args:
        min_dead: leave shards alone of which no more than this share is dead.
        dry_run: change nothing.

    Raises:
        StoreError: there is no store at `path`, or a shard to be moved is damaged.
        BusyError: another process is writing it.
        Stopped: a signal came; finished shards are kept.
    """
    if dry_run:
        current = open_codes(path)
        return _report(current, _moved_shards(current, min_dead), current.generation)
    moved: list[ShardUse] = []

    def plan_of(current: CodeStore) -> CodePlan:
        moved.extend(_moved_shards(current, min_dead))
        return _plan_moves(current, moved)

    settings = {"stage": COMPACT, "version": COMPACT_VERSION, "min_dead": min_dead}
    with stop_requested() as stop, CodeStoreWriter.open_plan(path, plan_of, settings) as writer:
        source, plan = open_codes(path), writer.plan
        report = _report(source, moved, plan.generation)
        if not moved:
            return report
        shards = writer.pending_shards()
        done = sum(shard.num_frames for shard in plan.shards) - sum(shard.num_frames for shard in shards)
        with progress.bar("compact", report.frames, "frames", done=done) as bar:
            for number, shard in enumerate(shards):
                parts = [source.read(part.clip_id, part.start, part.stop) for part in shard.parts]
                writer.write_shard(shard.index, np.concatenate(parts))
                bar.advance(shard.num_frames)
                if number + 1 < len(shards):
                    finished = len(plan.shards) - len(shards) + number + 1
                    stop.raise_if_set(f"{finished} of {len(plan.shards)} shards are finished")
        finished_at = datetime.now(UTC).isoformat(timespec="seconds")
        info = GenerationInfo(generation=plan.generation, finished=finished_at, stage=COMPACT)
        writer.publish(source.provenance, info)  # what made the codes is what it was
    return report


def _moved_shards(current: CodeStore, min_dead: float) -> list[ShardUse]:
    root = with_history(current.path, current.root)
    uses = shard_uses(current.path, root, current.schema.shard_frames, current.array_frames, current.clips)
    return [
        use
        for use in uses
        if not use.is_dead and use.dead_frames > use.edge_frames and use.dead_frames > min_dead * use.frames
    ]


def _plan_moves(current: CodeStore, moved: Sequence[ShardUse]) -> CodePlan:
    """The same clips; those that touch a shard in `moved` lie in new shards, in the order they lay in."""
    size = current.schema.shard_frames
    indices = {use.index for use in moved}
    offset = first_frame = -(-current.array_frames // size) * size
    places: dict[tuple[int, int], int] = {}
    fresh = []
    for clip in sorted(current.clips, key=lambda clip: clip.offset):
        place = (clip.offset, clip.length)
        touched = range(clip.offset // size, (clip.offset + clip.length - 1) // size + 1)
        if place not in places and not indices.isdisjoint(touched):  # clips of equal content may share a place
            places[place] = offset
            fresh.append(replace(clip, offset=offset))
            offset += clip.length
    rows = [replace(clip, offset=places.get((clip.offset, clip.length), clip.offset)) for clip in current.clips]
    return CodePlan(
        schema=current.schema,
        generation=current.generation + bool(fresh),
        clips=tuple(rows),
        change=CodeChange(
            kept=tuple(clip.id for clip in rows),
            added=(),
            changed=(),
            removed=(),
            frames=offset - first_frame,
            publishes=bool(fresh),
        ),
        shards=tuple(cut_into_shards(fresh, size)),
        repairs=(),
        first_frame=first_frame if fresh else current.array_frames,
        array_frames=offset if fresh else current.array_frames,
        made_of=read_table(current.path, current.root, current.generation).get("made_of", {}),
    )


def _report(current: CodeStore, moved: Sequence[ShardUse], generation: int) -> CompactReport:
    plan = _plan_moves(current, moved)
    return CompactReport(
        generation=generation,
        shards=tuple(use.index for use in moved),
        clips=sum(old.offset != new.offset for old, new in zip(current.clips, plan.clips, strict=True)),
        frames=plan.change.frames,
        dead_frames=sum(use.dead_frames for use in moved),
        bytes=sum(use.bytes for use in moved),
    )


# Collecting garbage ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a store holds that the kept generations do not need.

    Attributes:
        kept, dropped: generations.
        shards: files of shards in which nothing is alive, those of abandoned plans included; paths in the store.
        leftovers: half-written files, and clip tables that nothing refers to; paths in the store.
        caches: memory-mapped copies of generations that are dropped or gone, and half-written ones, beside the store.
        pending: shards of an interrupted encode; they are kept unless asked otherwise.
        bytes: what deleting everything but `pending` gives back.
        partly_dead: shards with dead ranges; `compact_store` moves what is alive in them.
    """

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
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
    path: Path, *, keep_generations: int = 1, keep: Collection[int] = (), drop_pending: bool = False
) -> Garbage:
    """What `collect_garbage` would delete. Changes nothing.

    Args:
        keep_generations: the newest so many generations stay readable.
        keep: others that stay readable, by number.
        drop_pending: count the shards of an interrupted encode too.

    Raises:
        StoreError: there is no store at `path`, it is damaged, or a generation to keep is not in it.
    """
    store = open_codes(path)
    root = with_history(path, store.root)
    unknown = sorted(set(keep) - set(root.numbers))
    if unknown:
        raise StoreError(f"{path} has no generation {unknown[0]} to keep; it has {numbers_as_text(root.numbers)}")
    kept = sorted({*root.numbers[-keep_generations:], *keep})
    clips = [clip for number in kept for clip in open_codes(path, number).clips]
    uses = shard_uses(path, root, store.schema.shard_frames, store.array_frames, clips)
    alive = {shard_name(use.index) for use in uses if not use.is_dead}

    has_pending = is_unpublished(path, root)
    shards: list[str] = []
    pending: list[str] = []
    for file in sorted((path / SHARDS).rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_file() or name in alive or _is_temporary(file):
            continue
        is_planned = has_pending and _index_of(name) >= len(uses)
        (pending if is_planned and not drop_pending else shards).append(name)

    leftovers = [
        file.relative_to(path).as_posix() for file in sorted((path / ARRAY).rglob(".*")) if _is_temporary(file)
    ]
    for group in sorted((path / GENERATIONS).glob("[0-9]*")):
        number = int(group.name) if group.name.isdecimal() else 0
        if number not in root.numbers and not (has_pending and number > root.generation):
            leftovers.append(f"{GENERATIONS}/{group.name}")
    if (path / PENDING).exists() and (drop_pending or not has_pending):
        leftovers.append(PENDING)
    fingerprints = {info.fingerprint for info in root.generations if info.generation in kept}
    caches = cache_files(path, fingerprints)
    dropped = [number for number in root.numbers if number not in kept]
    gone = [path / name for name in (*shards, *leftovers, *map(generation_name, dropped))] + caches
    return Garbage(
        kept=tuple(kept),
        dropped=tuple(dropped),
        shards=tuple(shards),
        leftovers=tuple(leftovers),
        caches=tuple(map(str, caches)),
        pending=tuple(pending),
        bytes=sum(map(_size, gone)),
        partly_dead=tuple(use for use in uses if 0 < use.dead_frames < use.frames),
    )


def collect_garbage(
    path: Path, *, keep_generations: int = 1, keep: Collection[int] = (), drop_pending: bool = False
) -> Garbage:
    """Delete what the kept generations do not need. Arguments and errors as in `find_garbage`.

    Returns:
        what was deleted.

    Raises:
        BusyError: another process is writing the store, or a memory-mapped copy of it.
    """
    open_codes(path)  # before the lock, which would create a folder
    with exclusive_lock(path):
        garbage = find_garbage(path, keep_generations=keep_generations, keep=keep, drop_pending=drop_pending)
        # First, because a training that makes such a file just now is the one thing that may refuse.
        remove_cache(path, {open_codes(path, number).fingerprint for number in garbage.kept})
        if garbage.dropped:
            store = open_codes(path)
            root = with_digests(path, store.root)
            gone = {*garbage.shards, *map(table_name, garbage.dropped)}
            kept = replace(
                root,
                generations=tuple(info for info in root.generations if info.generation in garbage.kept),
                files={name: digest for name, digest in root.files.items() if name not in gone},
            )
            commit_root(path, kept, store.clips)
        if PENDING in garbage.leftovers:
            _restore_length(open_codes(path))
        for name in garbage.leftovers:
            if name.startswith(GENERATIONS) or name == PENDING:
                remove_group(path, path / name)
        for number in garbage.dropped:
            remove_group(path, path / generation_name(number))
        for name in garbage.shards:
            _unlink(path / name, path / SHARDS)
        for file in (path / ARRAY).rglob(f".*{TEMPORARY_SUFFIX}"):
            file.unlink(missing_ok=True)
        remove_temporary_files(path)
    return garbage


def _restore_length(store: CodeStore) -> None:
    """Make the array as long as the current generation needs it, which an abandoned plan had made it longer than."""
    file, schema = store.path / ARRAY_METADATA, store.schema
    metadata = array_metadata(store.array_frames, schema, schema.frames_per_chunk)
    if digest_file(file) not in (store.root.files.get(ARRAY_METADATA), digest_bytes(metadata)):
        replace_file(store.path, ARRAY_METADATA, metadata)


def _is_temporary(file: Path) -> bool:
    return file.name.startswith(".") and (file.name.endswith(TEMPORARY_SUFFIX) or file.name.startswith(".staged"))


def _index_of(name: str) -> int:
    number = name.removeprefix(f"{SHARDS}/").partition("/")[0]
    return int(number) if number.isdecimal() else -1


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _unlink(file: Path, top: Path) -> None:
    """Delete a file and the folders that it leaves empty, up to `top`."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == top or any(folder.iterdir()):
            break
        folder.rmdir()
