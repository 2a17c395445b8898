"""The dead space of a code store, and compacting it.

An incremental encode never moves or overwrites codes, so removed and changed clips leave dead ranges behind.
`compact_store` copies the clips of partly dead shards into new shards and publishes a generation that reads them there.
No other shard is touched, and the older generations stay readable until `maintenance.collect_garbage` removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.clip_table import ClipTable
from lvt_pipeline.codes.layout import GenerationInfo, shard_files
from lvt_pipeline.codes.plan import CodeChange, CodePlan, ShardPlan, cut_into_shards
from lvt_pipeline.codes.schema import CodeClip, index_of, shard_names
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.storage import Place

COMPACT = "compact"
COMPACT_VERSION = 1
# A clip that reached from a moved shard into its neighbour leaves a dead edge there. Moving the neighbour for that
# would move the next edge, and so on through the store; edges below this share of a shard are left.
TOLERATED_EDGE = 0.5


@dataclass(frozen=True, kw_only=True)
class ShardUse:
    """How much of a shard clips use.

    Attributes:
        frames: written into it.
        dead_frames: those of them that no clip uses.
        edge_frames: those of the dead frames that are in a short run at a border to a shard in which all are dead.
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


def shard_uses(store: CodeStore, clips: Sequence[CodeClip]) -> list[ShardUse]:
    """The use that clips of any generation make of the shards that are on disk or that they need, in order.

    Args:
        store: the current generation.
    """
    shard_frames = store.schema.shard_frames
    num_shards = -(-store.array_frames // shard_frames)
    used = _used_runs(clips, shard_frames)
    sizes = {entry.name: entry.size for entry in shard_files(store.path)}
    on_disk = {index for index in map(index_of, sizes) if 0 <= index < num_shards}
    uses = []
    for index in sorted({*used, *on_disk}):
        frames = store.root.short_shards.get(index, shard_frames)
        runs = used.get(index, [])
        alive = sum(stop - first for first, stop in runs)
        edges = 0
        if 0 < alive < frames:
            borders = [runs[0][0] if index > 0 and index - 1 not in used else 0]
            borders.append(frames - runs[-1][1] if index + 1 not in used and index + 1 < num_shards else 0)
            edges = sum(border for border in borders if border < TOLERATED_EDGE * shard_frames)
        uses.append(
            ShardUse(
                index=index,
                frames=frames,
                dead_frames=frames - alive,
                edge_frames=edges,
                bytes=sum(sizes.get(name, 0) for name in shard_names(index, store.schema)),
            )
        )
    return uses


def _used_runs(clips: Sequence[CodeClip], shard_frames: int) -> dict[int, list[tuple[int, int]]]:
    """By shard, the runs of frames [first, stop) within it that clips use, ascending and apart."""
    used: dict[int, list[tuple[int, int]]] = {}
    for offset, length in sorted({(clip.offset, clip.length) for clip in clips}):
        for index in range(offset // shard_frames, (offset + length - 1) // shard_frames + 1):
            first = max(offset - index * shard_frames, 0)
            stop = min(offset + length - index * shard_frames, shard_frames)
            runs = used.setdefault(index, [])
            if runs and first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
            else:
                runs.append((first, stop))
    return used


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What a compaction did, or would do.

    Attributes:
        generation: the current one now.
        shards: indices of the shards that clips were moved out of.
        clips, frames: moved.
        dead_frames: freed once the older generations are collected.
        bytes: size of the shards that clips were moved out of, which are deleted with the older generations.
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
    path: Place, *, min_dead: float = 0.0, dry_run: bool = False, progress: Progress = SILENT
) -> CompactReport:
    """Move what the current generation uses out of partly dead shards, into new ones, and publish a generation.

    Its content and fingerprint are those of the current one. Dead edges below `TOLERATED_EDGE` do not count.

    Args:
        min_dead: skip shards whose dead fraction is at most this.
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
        source, plan = open_codes(path, holds=False), writer.plan
        report = _report(source, moved, plan.generation)
        if not moved:
            return report
        shards = writer.pending_shards()
        done = sum(shard.num_frames for shard in plan.shards) - sum(shard.num_frames for shard in shards)
        with progress.bar("compact", report.frames, "frames", done=done) as bar:
            for number, shard in enumerate(shards):
                writer.write_shard(shard.index, *_content(source, shard))
                bar.advance(shard.num_frames)
                if number + 1 < len(shards):
                    finished = len(plan.shards) - len(shards) + number + 1
                    stop.raise_if_set(f"{finished} of {len(plan.shards)} shards are finished")
        finished_at = datetime.now(UTC).isoformat(timespec="seconds")
        info = GenerationInfo(generation=plan.generation, finished=finished_at, stage=COMPACT)
        writer.publish(source.provenance, info)  # the record of what made the codes stays the same
    return report


def _content(source: CodeStore, shard: ShardPlan) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Codes and rows of side arrays for a shard."""

    def joined(read: Callable[[str, int, int], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([read(part.clip_id, part.start, part.stop) for part in shard.parts])

    return joined(source.read), {name: joined(source.array(name).read) for name in source.arrays}


def _moved_shards(current: CodeStore, min_dead: float) -> list[ShardUse]:
    uses = shard_uses(current, current.clips)
    return [
        use
        for use in uses
        if not use.is_dead and use.dead_frames > use.edge_frames and use.dead_frames > min_dead * use.frames
    ]


def _plan_moves(current: CodeStore, moved: Sequence[ShardUse]) -> CodePlan:
    """The same clips; those that touch a shard in `moved` are in new shards, in the order of their old places."""
    size = current.schema.shard_frames
    indices = {use.index for use in moved}
    offset = first_frame = current.next_shard * size
    places: dict[tuple[int, int], int] = {}
    fresh = []
    for clip in sorted(current.clips, key=lambda clip: clip.offset):
        place = (clip.offset, clip.length)
        touched = range(clip.offset // size, (clip.offset + clip.length - 1) // size + 1)
        if place not in places and not indices.isdisjoint(touched):  # clips of equal content may share a place
            places[place] = offset
            fresh.append(replace(clip, offset=offset))
            offset += clip.length
    columns = current.table.columns
    offsets = [places.get(place, place[0]) for place in zip(columns["offset"], columns["length"], strict=True)]
    return CodePlan(
        schema=current.schema,
        generation=current.generation + bool(fresh),
        table=ClipTable({**columns, "offset": offsets}),
        change=CodeChange(
            kept=tuple(columns["id"]),
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
    )


def _report(current: CodeStore, moved: Sequence[ShardUse], generation: int) -> CompactReport:
    plan = _plan_moves(current, moved)
    return CompactReport(
        generation=generation,
        shards=tuple(use.index for use in moved),
        clips=int((current.table.offsets != plan.table.offsets).sum()),
        frames=plan.change.frames,
        dead_frames=sum(use.dead_frames for use in moved),
        bytes=sum(use.bytes for use in moved),
    )
