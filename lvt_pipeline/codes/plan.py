"""Plan the next generation of a code store: which clips are kept, which are new, and where they will be.

Planning writes nothing. Codes that are in the store already keep their place, also when the clip has another id now;
the others get places in new shards, which begin at a shard boundary after everything that was ever published.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lvt_pipeline.codes.checks import open_current, require_clips, require_place
from lvt_pipeline.codes.clip_table import ClipTable, Page, table_columns
from lvt_pipeline.codes.layout import PAGED_VERSION
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, PlannedClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import StoreError
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.progress import count_of
from lvt_pipeline.provenance import Provenance, fingerprint, short
from lvt_pipeline.storage import Place


@dataclass(frozen=True, kw_only=True)
class CodeChange:
    """How the next generation differs from the current one, by clip id.

    Attributes:
        kept: codes are there already, perhaps under another id, split or label.
        added: not in the store.
        changed: in the store under this id with other codes, or its codes are lost.
        removed: in the store and no longer wanted. Their codes stay readable in older generations.
        copied: those of the added and changed whose codes are in the store, at a place where other side arrays are.
            Their codes are copied and no frame of them is encoded.
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
    copied: tuple[str, ...] = ()

    def summary(self) -> str:
        """Such as "120 clips kept, 3 added, 1 changed, 0 removed"."""
        return (
            f"{count_of(len(self.kept), 'clip')} kept, {len(self.added)} added, {len(self.changed)} changed, "
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
        table: the next clip table.
        shards: new shards, empty when every clip is kept.
        repairs: published shards that are gone and can be written again in place.
        first_frame, array_frames: the part of the array that this generation adds, and the array's length with it.
        copies: clips whose codes are copied, and their rows in the current generation, by id.
    """

    schema: CodeSchema
    generation: int
    table: ClipTable
    change: CodeChange
    shards: tuple[ShardPlan, ...]
    repairs: tuple[ShardPlan, ...]
    first_frame: int
    array_frames: int
    copies: Mapping[str, CodeClip] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the generation."""
        return self.table.fingerprint(self.schema)

    @property
    def new_shards(self) -> range:
        """Numbers of the new shards."""
        size = self.schema.shard_frames
        return range(self.first_frame // size, -(-self.array_frames // size)) if self.shards else range(0)

    def identity(self, settings: Mapping[str, Any]) -> str:
        """Hash of everything that decides the bytes of the planned shards: an equal plan may continue with them."""
        return fingerprint(
            {
                "table": self.fingerprint,
                "offsets": self.table.columns["offset"],
                "first_frame": self.first_frame,
                "shard_frames": self.schema.shard_frames,
                "settings": settings,
            }
        )


def plan_codes(
    path: Place,
    schema: CodeSchema,
    clips: Sequence[PlannedClip],
    *,
    reencode: bool = False,
    overwrite: bool = False,
    damaged: Collection[int] = (),
) -> CodePlan:
    """The plan that makes the store at `path` hold exactly `clips`. Writes nothing.

    Args:
        reencode: accept codes of another tokenizer: they go into a new generation, the older ones stay readable.
        overwrite: plan as if the store were not there.
        damaged: indices of shards whose content cannot be trusted.

    Raises:
        StoreError: `path` holds something else, the codes of another tokenizer, or an array that these codes do not
            fit; or `clips` is empty or names a clip twice.
    """
    require_clips(clips)
    require_place(path)
    return make_plan(open_current(path, overwrite), schema, clips, reencode, damaged)


def table_attributes(
    path: Place, plan: CodePlan, record: Provenance, stage: str, pages: Sequence[Page]
) -> dict[str, Any]:
    """Attributes of the generation that a plan makes: its clip table and its record.

    Args:
        record: without times, and with the shards as its outputs.
        stage: the command that published it.
        pages: of the clip table.
    """
    version = {"schema": PAGED_VERSION} if pages else {}
    return {
        "lvt": {**plan.schema.to_json(), **version, "generation": plan.generation},
        "parent": plan.generation - 1,
        "stage": stage,
        "fingerprint": plan.fingerprint,
        "first_frame": plan.first_frame,
        "array_frames": plan.array_frames,
        **table_columns(path, plan.table, pages),
        "provenance": record.to_json(),
    }


# How a plan is made -------------------------------------------------------------------------------------------------


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
    for array in old.arrays:
        new = next((each for each in schema.arrays if each.name == array.name), None)
        if new is None or (new.dtype, new.dimension) != (array.dtype, array.dimension):
            found = "these clips are to have none" if new is None else f"this one is {new}"
            raise StoreError(
                f"{current.path} has the array {array}, {found}; choose a new store, or replace this one with "
                "--overwrite"
            )


@paused_collection()
def make_plan(
    current: CodeStore | None,
    schema: CodeSchema,
    clips: Sequence[PlannedClip],
    reencode: bool,
    damaged: Collection[int] = (),
    first_shard: int = 0,
) -> CodePlan:
    """The plan from a store, None for no store, to one that holds exactly `clips`; see `plan_codes`.

    Args:
        first_shard: new shards have this number or a higher one.
    """
    repairs: tuple[ShardPlan, ...] = ()
    lost: frozenset[str] = frozenset()
    if current is not None:
        _check_schema(current, schema, reencode)
        layout = current.schema
        schema = replace(schema, shard_frames=layout.shard_frames, chunk_frames=layout.frames_per_chunk)
        repairs, lost = _inspect_shards(current, clips, damaged)
    published, wanted = current.table if current else ClipTable.planned(()), ClipTable.planned(clips)
    published_frames = current.array_frames if current else 0
    first_frame = max(first_shard, current.next_shard if current else 0) * schema.shard_frames
    # Shards hold the arrays that the store had when they were written: with a further array, every clip moves.
    is_wider = current is not None and len(schema.arrays) > len(current.schema.arrays)
    first, last = (0, 0) if lost or is_wider else wanted.alike_ends(published)
    new, old = wanted.between(first, last), published.between(first, last)
    sound = published.without(lost)
    usable = ClipTable.planned(()) if is_wider else sound.between(first, last)
    offsets, fresh_places = _places(new, usable, first_frame)
    ids, places = wanted.columns["id"], published.columns["offset"]
    offsets = [*places[:first], *offsets, *places[len(places) - last :]]
    table = ClipTable({**wanted.columns, "offset": offsets})
    fresh = table.take([first + place for place in fresh_places]).rows
    change = _change(new, fresh, old)
    change["kept"] = [*ids[:first], *change["kept"], *ids[len(ids) - last :]]
    copies = _copies(fresh, sound)
    array_frames = first_frame + sum(row.length for row in fresh)
    publishes = current is None or bool(fresh) or current.fingerprint != table.fingerprint(schema)
    return CodePlan(
        schema=schema,
        generation=(current.generation if current else 0) + publishes,
        table=table,
        change=CodeChange(
            **{kind: tuple(ids) for kind, ids in change.items()},
            frames=sum(row.length for row in fresh if row.id not in copies) + sum(plan.num_frames for plan in repairs),
            publishes=publishes,
            num_frames={
                **_frames_by_kind(change, table, fresh, published),
                **({"copied": sum(row.length for row in fresh if row.id in copies)} if copies else {}),
            },
            copied=tuple(copies),
        ),
        shards=tuple(cut_into_shards(fresh, schema.shard_frames)),
        repairs=repairs,
        first_frame=first_frame if fresh else published_frames,
        array_frames=array_frames if fresh else published_frames,
        copies=copies,
    )


def _places(new: ClipTable, published: ClipTable, offset: int) -> tuple[list[int], list[int]]:
    """Offset of every row, and which rows have new codes; those are stored from `offset` on.

    Clips of equal content have a range each, as in a store made from scratch; only a late twin shares one.
    """
    available: dict[str, int] = {}  # by content
    twins: dict[str, list[int]] = {}  # of those, the next one last
    columns = [reversed(published.columns[name]) for name in ("fingerprint", "offset")]
    for content, place in zip(*columns, strict=True):
        if content in available:
            twins.setdefault(content, []).append(available[content])
        available[content] = place
    offsets: list[int] = []
    fresh: list[int] = []
    for content, length in zip(new.columns["fingerprint"], new.columns["length"], strict=True):
        if content in available:
            offsets.append(available[content])
            if twins.get(content):
                available[content] = twins[content].pop()
            continue
        fresh.append(len(offsets))
        offsets.append(offset)
        offset += length
    return offsets, fresh


def _copies(fresh: Sequence[CodeClip], published: ClipTable) -> dict[str, CodeClip]:
    """The published rows with the codes of new rows, by id of the new ones."""
    wanted = {row.codes_fingerprint for row in fresh}
    pairs = zip(published.columns["codes"], published.columns["fingerprint"], strict=True) if wanted else ()
    places = [place for place, (codes, content) in enumerate(pairs) if (codes or content) in wanted]
    found = {row.codes_fingerprint: row for row in published.take(places).rows}
    return {row.id: found[row.codes_fingerprint] for row in fresh if row.codes_fingerprint in found}


def _change(new: ClipTable, fresh: Sequence[CodeClip], published: ClipTable) -> dict[str, list[str]]:
    """Ids of the clips that are kept, added, changed and removed. A clip under a new id is kept, not removed."""
    old_ids, new_ids, fresh_ids = {*published.columns["id"]}, {*new.columns["id"]}, {row.id for row in fresh}
    change = {
        "kept": [clip_id for clip_id in new.columns["id"] if clip_id not in fresh_ids],
        "added": [row.id for row in fresh if row.id not in old_ids],
        "changed": [row.id for row in fresh if row.id in old_ids],
        "removed": [],
    }
    pairs = zip(new.columns["id"], new.columns["fingerprint"], strict=True)
    renamed = Counter(content for clip_id, content in pairs if clip_id not in fresh_ids and clip_id not in old_ids)
    for clip_id, content in zip(published.columns["id"], published.columns["fingerprint"], strict=True):
        if clip_id in new_ids:
            continue
        if renamed[content]:
            renamed[content] -= 1
        else:
            change["removed"].append(clip_id)
    return change


def _frames_by_kind(
    change: Mapping[str, Sequence[str]], table: ClipTable, fresh: Sequence[CodeClip], published: ClipTable
) -> dict[str, int]:
    """Frames of the clips of each kind, by its name."""
    added, removed = set(change["added"]), set(change["removed"])
    new = sum(row.length for row in fresh)
    from_nothing = sum(row.length for row in fresh if row.id in added)
    old_lengths = zip(published.columns["id"], published.columns["length"], strict=True) if removed else ()
    return {
        "kept": table.num_frames - new,
        "added": from_nothing,
        "changed": new - from_nothing,
        "removed": sum(length for clip_id, length in old_lengths if clip_id in removed),
    }


def cut_into_shards(clips: Sequence[CodeClip], size: int) -> Iterator[ShardPlan]:
    """Shard plans for clips that are stored one after another from a shard boundary on."""
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

    A shard can be restored when everything that it ever held is still at hand; otherwise its clips are encoded again
    into new shards.

    Args:
        damaged: shards that are known to be wrong although their size is right.
    """
    shards = current.shards()
    problems = current.problems(shards)
    broken = [index for index in shards if index in damaged or index in problems]
    at_hand = {clip.fingerprint: clip.id for clip in clips} if broken else {}
    size = current.schema.shard_frames
    repairs, lost = [], set()
    for index in broken:
        first = index * size
        length = current.root.short_shards.get(index, size)
        inside = [clip for clip in current.clips if clip.offset < first + length and clip.offset + clip.length > first]
        parts = tuple(
            ShardPart(
                at_hand.get(clip.fingerprint, ""),
                max(first - clip.offset, 0),
                min(first + length - clip.offset, clip.length),
            )
            for clip in sorted({clip.offset: clip for clip in inside}.values(), key=lambda clip: clip.offset)
        )
        plan = ShardPlan(index=index, parts=parts)
        if plan.num_frames == length and all(part.clip_id for part in parts):
            repairs.append(plan)
        else:
            lost |= {clip.id for clip in inside}
    return tuple(repairs), frozenset(lost)
