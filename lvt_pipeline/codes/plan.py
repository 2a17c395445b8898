"""What the next generation of a code store takes: which clips are kept, which are new, and where they are going to lie.

Planning writes nothing. Codes that are in the store already keep their place, whatever the clip is called by now; the
others get places in new shards, which begin at a shard boundary behind everything that was ever published.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lvt_pipeline import lineage
from lvt_pipeline.codes.layout import DamagedRootError, read_root, with_history
from lvt_pipeline.codes.store import (
    CodeClip,
    CodeSchema,
    CodeStore,
    clips_to_columns,
    is_ours,
    is_unfinished,
    open_codes,
    table_fingerprint,
)
from lvt_pipeline.errors import StoreError
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.provenance import ZARR_METADATA, Provenance, fingerprint, short

KEPT_DIGITS = 16  # of the digest of a clip's source: enough to tell that it changed


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A clip that the next generation shall hold. `fingerprint` is that of its codes (`codes_fingerprint`).

    `source_digest` and `decoder` say what its frames were made of; they decide nothing, `lvt why` names them.
    """

    id: str
    split: str
    label: str | None
    length: int
    fingerprint: str
    fps: float
    source: str
    source_digest: str = ""
    decoder: str = ""


@dataclass(frozen=True, kw_only=True)
class CodeChange:
    """How the next generation differs from the current one, by clip id.

    Attributes:
        kept: codes are there already, perhaps under another id, split or label.
        added: not in the store.
        changed: in the store under this id with other codes, or its codes are lost.
        removed: in the store and no longer wanted. Their codes stay readable in older generations.
        frames: frames to encode.
        publishes: whether the tables differ at all, so that a generation will be published.
        num_frames: frames of the clips of each of the four kinds.
    """

    kept: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    frames: int
    publishes: bool
    num_frames: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Such as "120 clips kept, 3 added, 1 changed, 0 removed"."""
        return (
            f"{len(self.kept)} clips kept, {len(self.added)} added, {len(self.changed)} changed, "
            f"{len(self.removed)} removed"
        )


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Frames [start, stop) of a clip, as one run of frames in a shard."""

    clip_id: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What goes into one shard, in order from its first frame."""

    index: int
    parts: tuple[ShardPart, ...]

    @property
    def num_frames(self) -> int:
        """Frames in the shard."""
        return sum(part.stop - part.start for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class CodePlan:
    """The next generation and the work it takes.

    Attributes:
        schema: with the shard size that the store really has.
        clips: the next clip table.
        shards: new shards, empty when every clip is kept.
        repairs: published shards that are gone and can be written again in place.
        first_frame, array_frames: the part of the array that this generation adds, and the array's length with it.
        made_of: columns beside the clip table that say what clips were made of; empty when nothing is known.
    """

    schema: CodeSchema
    generation: int
    clips: tuple[CodeClip, ...]
    change: CodeChange
    shards: tuple[ShardPlan, ...]
    repairs: tuple[ShardPlan, ...]
    first_frame: int
    array_frames: int
    made_of: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What the generation will be known by."""
        return table_fingerprint(self.schema, self.clips)

    def identity(self, settings: Mapping[str, Any]) -> str:
        """Hash of everything that decides the bytes of the planned shards: an equal plan may go on with them."""
        return fingerprint(
            {
                "table": self.fingerprint,
                "offsets": [clip.offset for clip in self.clips],
                "first_frame": self.first_frame,
                "shard_frames": self.schema.shard_frames,
                "settings": settings,
            }
        )


def codes_fingerprint(frames: str, tokenizer: str) -> str:
    """Fingerprint of a clip's codes, from those of its frames and of the tokenizer."""
    return lineage.clip_codes_fingerprint(frames, tokenizer)


def plan_codes(
    path: Path,
    schema: CodeSchema,
    clips: Sequence[PlannedClip],
    *,
    reencode: bool = False,
    overwrite: bool = False,
    damaged: Collection[int] = (),
) -> CodePlan:
    """What it takes to make the store at `path` hold exactly `clips`. Writes nothing.

    Args:
        reencode: accept codes of another tokenizer: they go into a new generation, the older ones stay readable.
        overwrite: plan as if the store were not there.
        damaged: indices of shards whose content cannot be trusted.

    Raises:
        StoreError: `path` holds something else, the codes of another tokenizer, or an array that these codes do not
            fit; or `clips` is empty or names a clip twice.
    """
    check_clips(clips)
    check_path(path)
    return make_plan(open_current(path, overwrite), schema, clips, reencode, damaged)


def plan_first(schema: CodeSchema, clips: Sequence[PlannedClip]) -> CodePlan:
    """The first generation of a store, wherever that store is."""
    return make_plan(None, schema, clips, reencode=False)


def table_attributes(path: Path, plan: CodePlan, record: Provenance, stage: str) -> dict[str, Any]:
    """Attributes of the generation that a plan makes: its clip table and how it came about.

    Args:
        record: without times, and with the shards as its outputs.
        stage: the command that published it.
    """
    return {
        "lvt": {**plan.schema.to_json(), "generation": plan.generation},
        "parent": plan.generation - 1,
        "stage": stage,
        "fingerprint": plan.fingerprint,
        "first_frame": plan.first_frame,
        "array_frames": plan.array_frames,
        "clips": clips_to_columns(plan.clips, path),
        **({"made_of": plan.made_of} if plan.made_of else {}),
        "provenance": record.to_json(),
    }


# How a plan is made -------------------------------------------------------------------------------------------------


def check_clips(clips: Sequence[PlannedClip]) -> None:
    """Refuse clips that make no store.

    Raises:
        StoreError: there are none, one has no frames, or two have one id.
    """
    if not clips:
        raise StoreError("there are no clips to put into the code store")
    twice = [clip_id for clip_id, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise StoreError(f"clip {twice[0]} appears twice; clip ids must differ")
    for clip in clips:
        if clip.length < 1:
            raise StoreError(f"clip {clip.id} has no frames")


def check_path(path: Path) -> None:
    """Refuse a place where a store cannot be.

    Raises:
        StoreError: something else is there.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; choose another path for the code store")
    if not (path / ZARR_METADATA).exists() and path.is_dir() and any(path.iterdir()) and not is_unfinished(path):
        raise StoreError(f"{path} is a folder with other things in it; choose another path for the code store")


def open_current(path: Path, overwrite: bool) -> CodeStore | None:
    """The store at `path` that a plan starts from; None when there is none, or when it is not to be looked at.

    Raises:
        StoreError: something else is there, or a store that is damaged and not to be overwritten.
    """
    try:
        root = read_root(path)
    except DamagedRootError:
        if not overwrite or not is_ours(path):
            raise
        return None
    return None if root is None or overwrite else open_codes(path)


def _check_schema(current: CodeStore, schema: CodeSchema, reencode: bool) -> None:
    old = current.schema
    if schema.tokenizer != old.tokenizer and not reencode:
        raise StoreError(
            f"{current.path} was made by tokenizer {short(old.tokenizer)} but this one is {short(schema.tokenizer)}; "
            "encode again with --reencode or into a new store"
        )
    if (schema.frame_shape, schema.dtype) != (old.frame_shape, old.dtype):
        raise StoreError(
            f"{current.path} holds {old.dtype} codes of shape {old.frame_shape} a frame, these are {schema.dtype} of "
            f"{schema.frame_shape}; choose a new store, or replace this one with --overwrite"
        )


@paused_collection()
def make_plan(
    current: CodeStore | None,
    schema: CodeSchema,
    clips: Sequence[PlannedClip],
    reencode: bool,
    damaged: Collection[int] = (),
) -> CodePlan:
    """What it takes to go from a store, None for no store, to one that holds exactly `clips`; see `plan_codes`."""
    repairs: tuple[ShardPlan, ...] = ()
    lost: frozenset[str] = frozenset()
    if current is not None:
        _check_schema(current, schema, reencode)
        layout = current.schema
        schema = replace(schema, shard_frames=layout.shard_frames, chunk_frames=layout.frames_per_chunk)
        repairs, lost = _inspect_shards(current, clips, damaged)
    published = current.clips if current else []
    published_frames = current.array_frames if current else 0
    old_ids = {clip.id for clip in published}
    available: dict[str, CodeClip] = {}
    twins: dict[str, list[CodeClip]] = {}  # others of the same content, the next one last
    for row in reversed(published):
        if row.id not in lost:
            if row.fingerprint in available:
                twins.setdefault(row.fingerprint, []).append(available[row.fingerprint])
            available[row.fingerprint] = row

    size = schema.shard_frames
    first_frame = offset = -(-published_frames // size) * size
    rows: list[CodeClip] = []
    fresh: list[CodeClip] = []
    change: dict[str, list[str]] = {"kept": [], "added": [], "changed": []}
    renamed: Counter[str] = Counter()
    for clip in clips:
        same = available.get(clip.fingerprint)
        if same:
            # Clips of equal content have a range each, as in a store made from scratch; only a late twin shares one.
            rows.append(_row(clip, same.offset))
            if twins.get(clip.fingerprint):
                available[clip.fingerprint] = twins[clip.fingerprint].pop()
            change["kept"].append(clip.id)
            if clip.id not in old_ids:
                renamed[clip.fingerprint] += 1
            continue
        rows.append(_row(clip, offset))
        fresh.append(rows[-1])
        offset += clip.length
        change["changed" if clip.id in old_ids else "added"].append(clip.id)

    wanted = {clip.id for clip in clips}
    removed = []
    for row in published:
        if row.id not in wanted:
            if renamed[row.fingerprint]:
                renamed[row.fingerprint] -= 1
            else:
                removed.append(row.id)
    publishes = current is None or bool(fresh) or current.fingerprint != table_fingerprint(schema, rows)
    return CodePlan(
        schema=schema,
        generation=(current.generation if current else 0) + publishes,
        clips=tuple(rows),
        change=CodeChange(
            kept=tuple(change["kept"]),
            added=tuple(change["added"]),
            changed=tuple(change["changed"]),
            removed=tuple(removed),
            frames=sum(row.length for row in fresh) + sum(plan.num_frames for plan in repairs),
            publishes=publishes,
            num_frames=_frames_by_kind(change, removed, rows, published),
        ),
        shards=tuple(cut_into_shards(fresh, size)),
        repairs=repairs,
        first_frame=first_frame if fresh else published_frames,
        array_frames=offset if fresh else published_frames,
        made_of=_made_of(clips) if publishes else {},
    )


def _made_of(clips: Sequence[PlannedClip]) -> dict[str, Sequence[str]]:
    """Columns beside the clip table. One in which all clips are alike is that one text."""
    digests = [clip.source_digest[:KEPT_DIGITS] for clip in clips]
    decoders = [clip.decoder for clip in clips]
    if not any(digests) and not any(decoders):
        return {}
    return {"source_digest": digests, "decoder": decoders[0] if len(set(decoders)) == 1 else decoders}


def _frames_by_kind(
    change: Mapping[str, Sequence[str]], removed: Sequence[str], rows: Sequence[CodeClip], published: Sequence[CodeClip]
) -> dict[str, int]:
    """Frames of the clips of each kind, by its name."""
    added, changed, gone = set(change["added"]), set(change["changed"]), set(removed)
    frames = {
        "added": sum(row.length for row in rows if row.id in added),
        "changed": sum(row.length for row in rows if row.id in changed),
        "removed": sum(row.length for row in published if row.id in gone),
    }
    return {"kept": sum(row.length for row in rows) - frames["added"] - frames["changed"], **frames}


def _row(clip: PlannedClip, offset: int) -> CodeClip:
    return CodeClip(
        id=clip.id,
        split=clip.split,
        label=clip.label,
        offset=offset,
        length=clip.length,
        fingerprint=clip.fingerprint,
        fps=clip.fps,
        source=clip.source,
    )


def cut_into_shards(clips: Sequence[CodeClip], size: int) -> Iterator[ShardPlan]:
    """Shard plans for clips that lie one after another from a shard boundary on."""
    parts: dict[int, list[ShardPart]] = defaultdict(list)
    for clip in clips:
        position, end = clip.offset, clip.offset + clip.length
        while position < end:
            index = position // size
            stop = min(end, (index + 1) * size)
            parts[index].append(ShardPart(clip.id, position - clip.offset, stop - clip.offset))
            position = stop
    for index in sorted(parts):
        yield ShardPlan(index=index, parts=tuple(parts[index]))


def _inspect_shards(
    current: CodeStore, clips: Sequence[PlannedClip], damaged: Collection[int]
) -> tuple[tuple[ShardPlan, ...], frozenset[str]]:
    """Published shards that are gone or cut short: those that can be written again in place, and clips that are lost.

    A shard can be restored when all that was ever in it is still at hand; otherwise its clips are encoded anew.

    Args:
        damaged: shards that are known to be wrong although their size is right.
    """
    broken = [index for index in current.shards() if index in damaged or current.array.problem(index)]
    if not broken:
        return (), frozenset()
    at_hand: dict[str, str] = {clip.fingerprint: clip.id for clip in clips}
    short = with_history(current.path, current.root).short_shards
    lengths = {index: short.get(index, current.schema.shard_frames) for index in broken}
    repairs, lost = [], set()
    for index in broken:
        first = index * current.schema.shard_frames
        inside = [c for c in current.clips if c.offset < first + lengths[index] and c.offset + c.length > first]
        inside = sorted({c.offset: c for c in inside}.values(), key=lambda clip: clip.offset)
        parts = [
            ShardPart(
                at_hand.get(c.fingerprint, ""),
                max(first - c.offset, 0),
                min(first + lengths[index] - c.offset, c.length),
            )
            for c in inside
        ]
        plan = ShardPlan(index=index, parts=tuple(parts))
        if plan.num_frames == lengths[index] and all(part.clip_id for part in parts):
            repairs.append(plan)
            continue
        lost |= {c.id for c in current.clips if c.offset < first + lengths[index] and c.offset + c.length > first}
    return tuple(repairs), frozenset(lost)
