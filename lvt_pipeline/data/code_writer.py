"""Writing a code store: plan what is new, write whole shards, publish a generation with one replace.

The order of writes makes every moment safe to be killed at:

1. `pending` says which clips are going to lie where. Nothing published refers to it.
2. The array's `zarr.json` grows. Published clips keep their place, so no reader notices.
3. Shards appear, each whole and once. A shard belongs to one plan; a new plan starts at a shard boundary behind
   everything that was ever published.
4. The clip table of the new generation appears, then the root `zarr.json` is replaced: this is the commit.
5. `pending` goes.

Temporary files live inside `codes/`, where no zarr reader looks for members.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.data.codes import (
    ARRAY,
    GENERATIONS,
    PENDING,
    CodeArray,
    CodeClip,
    CodeSchema,
    CodeStore,
    array_metadata,
    chunk_size,
    clips_to_columns,
    generation_name,
    group_metadata,
    is_unfinished,
    open_codes,
    read_attributes,
    root_attributes,
    shard_bytes,
    shard_name,
    shards_of,
    table_fingerprint,
)
from lvt_pipeline.errors import ArtefactError, LVTError, ShapeError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance, fingerprint, short
from lvt_pipeline.storage import (
    describe_os_error,
    exclusive_lock,
    read_json,
    remove_leftovers,
    sync_directory,
    write_bytes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """A clip that the next generation shall hold. `fingerprint` is that of its codes (`codes_fingerprint`)."""

    id: str
    split: str
    label: str | None
    length: int
    fingerprint: str
    fps: float
    source: str


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
    """

    kept: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    frames: int
    publishes: bool

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
    """

    schema: CodeSchema
    generation: int
    clips: tuple[CodeClip, ...]
    change: CodeChange
    shards: tuple[ShardPlan, ...]
    repairs: tuple[ShardPlan, ...]
    first_frame: int
    array_frames: int

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
    return fingerprint({"frames": frames, "tokenizer": tokenizer})


def plan_codes(
    path: Path, schema: CodeSchema, clips: Sequence[PlannedClip], *, reencode: bool = False, overwrite: bool = False
) -> CodePlan:
    """What it takes to make the store at `path` hold exactly `clips`. Writes nothing.

    Args:
        reencode: accept codes of another tokenizer: they go into a new generation, the older ones stay readable.
        overwrite: plan as if the store were not there.

    Raises:
        StoreError: `path` holds something else, the codes of another tokenizer, or an array that these codes do not
            fit; or `clips` is empty or names a clip twice.
    """
    _check_clips(clips)
    _check_path(path)
    return _plan(_open_current(path, overwrite), schema, clips, reencode)


class CodeStoreWriter:
    """The one writer of a code store. Make it with `CodeStoreWriter.open`, which holds the lock.

    Write every shard of `pending_shards` with `write_shard`, in any order, from one thread; then `publish`.
    """

    def __init__(self, path: Path, plan: CodePlan, settings: Mapping[str, Any], current: CodeStore | None) -> None:
        self.path = path
        self.plan = plan
        self._settings = settings
        self._current = current
        self._planned = {shard.index: shard for shard in (*plan.repairs, *plan.shards)}

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        schema: CodeSchema,
        clips: Sequence[PlannedClip],
        *,
        settings: Mapping[str, Any] | None = None,
        reencode: bool = False,
        overwrite: bool = False,
    ) -> Iterator[CodeStoreWriter]:
        """Own the store at `path` until the block ends, ready to make it hold exactly `clips`.

        An interrupted plan goes on when it was for the same clips and `settings`; otherwise its shards are removed.

        Args:
            settings: what else decides the codes, as plain data.
            reencode, overwrite: see `plan_codes`.

        Raises:
            BusyError: another process is writing it.
            StoreError: see `plan_codes`.
        """
        _check_clips(clips)
        _check_path(path)
        with exclusive_lock(path):
            current = _open_current(path, overwrite)
            writer = cls(path, _plan(current, schema, clips, reencode), settings or {}, current)
            with _os_errors(f"preparing {path}"):
                if overwrite and root_attributes(path) is not None:
                    writer._remove_published()
                writer._prepare()
            yield writer

    @property
    def schema(self) -> CodeSchema:
        """What the codes must look like."""
        return self.plan.schema

    @property
    def change(self) -> CodeChange:
        """How the next generation differs from the current one."""
        return self.plan.change

    def pending_shards(self) -> list[ShardPlan]:
        """The shards that are not on disk yet, in order."""
        return [plan for index, plan in sorted(self._planned.items()) if not (self.path / shard_name(index)).exists()]

    def finished_shards(self) -> list[ShardPlan]:
        """The new shards of this plan that are on disk, in order, including those of an interrupted run."""
        return [plan for plan in self.plan.shards if (self.path / shard_name(plan.index)).exists()]

    def read_shard(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """Codes of a finished new shard of this plan, (num_frames, h, w, n_c).

        Raises:
            StoreError: it is damaged.
        """
        start = index * self.schema.shard_frames
        return CodeArray(self.path, self.schema, sizes={}).read(start, start + self._planned[index].num_frames)

    def write_shard(self, index: int, codes: NDArray[Any]) -> None:
        """Put one planned shard on disk, whole.

        Args:
            codes: any integers in [0, K), (num_frames, h, w, n_c) in the order of the plan's parts.

        Raises:
            ShapeError: the codes do not fit the plan.
            LVTError: the disk is full or refuses.
        """
        plan = self._planned[index]
        expected = (plan.num_frames, *self.schema.frame_shape)
        if codes.shape != expected:
            raise ShapeError(f"shard {index} of {self.path} has shape {expected}, the codes have {codes.shape}")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ShapeError(f"codes are integers, found {codes.dtype}")
        if codes.min() < 0 or codes.max() >= self.schema.codebook_size:
            raise ShapeError(
                f"codes lie in [0, {self.schema.codebook_size}), found {int(codes.min())} to {int(codes.max())}"
            )
        data = shard_bytes(codes.astype(self.schema.dtype), self.schema, chunk_size(self.schema.shard_frames))
        file = self.path / shard_name(index)
        remove_leftovers(file.parent)
        write_bytes(file, data)
        for folder in file.parents:  # new folders must be as durable as the file in them
            if folder == self.path:
                break
            sync_directory(folder)

    def publish(self, record: Provenance) -> Provenance:
        """Make the plan the current generation.

        When the tables do not differ nothing is published; the record is renewed if it describes other settings or
        inputs that lead to the same codes, or if shards were repaired.

        Args:
            record: its fingerprint and outputs are filled in here.

        Returns:
            The record as it is in the store.
        """
        missing = self.pending_shards()
        assert not missing, f"{len(missing)} shards of {self.path} are not written"
        if not self.change.publishes:
            assert self._current is not None
            old = self._current.provenance
            if old.recipe == record.recipe and not self.plan.repairs:
                return old
            renewed = replace(
                old,
                stage=record.stage,
                version=record.version,
                settings=record.settings,
                inputs=record.inputs,
                outputs=self._outputs(),
            )
            self._write_root(renewed)
            return renewed
        name = generation_name(self.plan.generation)
        table = {
            "lvt": {**self.schema.to_json(), "generation": self.plan.generation},
            "parent": self.plan.generation - 1,
            "fingerprint": self.plan.fingerprint,
            "first_frame": self.plan.first_frame,
            "array_frames": self.plan.array_frames,
            "clips": clips_to_columns(self.plan.clips, self.path),
        }
        record = replace(record, fingerprint=self.plan.fingerprint, outputs=self._shards())
        # The table is the same bytes whenever and however often it is written: no times in it.
        timeless = replace(record, seconds=0.0, finished="", command=[])
        self._write_group(self.path / name, {**table, "provenance": timeless.to_json()}, indent=None)
        record = replace(record, outputs=self._outputs())
        self._write_root(record)
        self._remove_group(self.path / PENDING)
        return record

    def _shards(self) -> dict[str, int]:
        names = [shard_name(index) for index in shards_of(self.plan.clips, self.schema.shard_frames)]
        return {name: (self.path / name).stat().st_size for name in names}

    def _outputs(self) -> dict[str, int]:
        table = f"{generation_name(self.plan.generation)}/{ZARR_METADATA}"
        return {**self._shards(), table: (self.path / table).stat().st_size}

    def _write_root(self, record: Provenance) -> None:
        about = {**self.schema.to_json(), "generation": self.plan.generation}
        self._write_group(self.path, {"lvt": about, "provenance": record.to_json()})

    def _prepare(self) -> None:
        """Bring what is on disk to the state in which shards of this plan can be written."""
        array = self.path / ARRAY
        array.mkdir(exist_ok=True)
        remove_leftovers(array)
        for leftover in array.glob(".staged*"):
            _remove(leftover)
        identity = self.plan.identity(self._settings)
        if not self.change.publishes:
            self._discard_unpublished()
        elif self._pending_identity() != identity:
            self._discard_unpublished()
            self._write_group(self.path / PENDING, {"plan": identity, "generation": self.plan.generation})
        for shard in self.plan.repairs:
            (self.path / shard_name(shard.index)).unlink(missing_ok=True)
        metadata = array_metadata(self.plan.array_frames, self.schema, chunk_size(self.schema.shard_frames))
        file = array / ZARR_METADATA
        if not file.exists() or read_json(file)["shape"] != json.loads(metadata)["shape"]:
            write_bytes(file, metadata)
        if not (self.path / GENERATIONS / ZARR_METADATA).exists():
            self._write_group(self.path / GENERATIONS, {})

    def _pending_identity(self) -> str:
        try:
            return str(read_attributes(self.path / PENDING).get("plan"))
        except ArtefactError:
            return ""

    def _discard_unpublished(self) -> None:
        """Remove what no published generation refers to: shards of an abandoned plan first, then the plan."""
        published = self._current.array_frames if self._current else 0
        first = -(-published // self.schema.shard_frames)
        if self._current is None:
            (self.path / ARRAY / ZARR_METADATA).unlink(missing_ok=True)
        for folder in (self.path / ARRAY / "c").glob("*"):
            if not folder.name.isdecimal() or int(folder.name) >= first:
                _remove(folder)
        generation = self._current.generation if self._current else 0
        for folder in (self.path / GENERATIONS).glob("*"):
            if folder.is_dir() and folder.name > f"{generation:06d}":
                self._remove_group(folder)
        self._remove_group(self.path / PENDING)

    def _remove_published(self) -> None:
        """Take a whole store back: what could be resumed first, then the commit point, then the rest."""
        (self.path / ARRAY).mkdir(exist_ok=True)
        self._remove_group(self.path / PENDING)
        (self.path / ZARR_METADATA).unlink()
        sync_directory(self.path)
        self._remove_group(self.path / GENERATIONS)
        _remove(self.path / ARRAY)

    def _write_group(self, group: Path, attributes: Mapping[str, Any], indent: int | None = 2) -> None:
        with _os_errors(f"writing {group}"):
            staged = self.path / ARRAY / ".staged"
            _remove(staged)
            write_bytes(staged / ZARR_METADATA, group_metadata(attributes, indent))
            if group.exists():
                os.replace(staged / ZARR_METADATA, group / ZARR_METADATA)
                sync_directory(group)
                _remove(staged)
            else:
                os.replace(staged, group)
            sync_directory(group.parent)

    def _remove_group(self, group: Path) -> None:
        if group.exists():
            with _os_errors(f"removing {group}"):
                staged = self.path / ARRAY / ".staged-for-removal"
                _remove(staged)
                os.replace(group, staged)
                sync_directory(group.parent)
                _remove(staged)


# Planning -----------------------------------------------------------------------------------------------------------


def _check_clips(clips: Sequence[PlannedClip]) -> None:
    if not clips:
        raise StoreError("there are no clips to put into the code store")
    twice = [clip_id for clip_id, count in Counter(clip.id for clip in clips).items() if count > 1]
    if twice:
        raise StoreError(f"clip {twice[0]} appears twice; clip ids must differ")
    for clip in clips:
        if clip.length < 1:
            raise StoreError(f"clip {clip.id} has no frames")


def _check_path(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; choose another path for the code store")
    if root_attributes(path) is None and path.is_dir() and any(path.iterdir()) and not is_unfinished(path):
        raise StoreError(f"{path} is a folder with other things in it; choose another path for the code store")


def _open_current(path: Path, overwrite: bool) -> CodeStore | None:
    return None if overwrite or root_attributes(path) is None else open_codes(path)


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


def _plan(current: CodeStore | None, schema: CodeSchema, clips: Sequence[PlannedClip], reencode: bool) -> CodePlan:
    repairs: tuple[ShardPlan, ...] = ()
    lost: frozenset[str] = frozenset()
    if current is not None:
        _check_schema(current, schema, reencode)
        schema = replace(schema, shard_frames=current.schema.shard_frames)
        repairs, lost = _inspect_shards(current, clips)
    published = current.clips if current else []
    published_frames = current.array_frames if current else 0
    old_ids = {clip.id for clip in published}
    available: dict[str, deque[CodeClip]] = defaultdict(deque)
    for row in published:
        if row.id not in lost:
            available[row.fingerprint].append(row)

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
            rows.append(_row(clip, same.popleft().offset if len(same) > 1 else same[0].offset))
            change["kept"].append(clip.id)
            renamed[clip.fingerprint] += clip.id not in old_ids
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
        ),
        shards=tuple(_cut_into_shards(fresh, size)),
        repairs=repairs,
        first_frame=first_frame if fresh else published_frames,
        array_frames=offset if fresh else published_frames,
    )


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


def _cut_into_shards(clips: Sequence[CodeClip], size: int) -> Iterator[ShardPlan]:
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


def _inspect_shards(current: CodeStore, clips: Sequence[PlannedClip]) -> tuple[tuple[ShardPlan, ...], frozenset[str]]:
    """Published shards that are gone or cut short: those that can be written again in place, and clips that are lost.

    A shard can be restored when all that was ever in it is still at hand; otherwise its clips are encoded anew.
    """
    broken = [index for index in current.shards() if current.array.problem(index)]
    if not broken:
        return (), frozenset()
    at_hand: dict[str, str] = {clip.fingerprint: clip.id for clip in clips}
    lengths = _published_lengths(current)
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


def _published_lengths(current: CodeStore) -> dict[int, int]:
    """Frames that were written into each shard, by shard index."""
    size = current.schema.shard_frames
    lengths = {}
    for generation in current.generations:
        table = read_attributes(current.path / generation_name(generation))
        for start in range(int(table["first_frame"]), int(table["array_frames"]), size):
            lengths[start // size] = min(size, int(table["array_frames"]) - start)
    return lengths


# Files --------------------------------------------------------------------------------------------------------------


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except LVTError:
        raise
    except OSError as error:
        raise describe_os_error(error, doing) from error
