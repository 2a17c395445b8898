"""Writing a code store: plan the new clips, write whole shards, publish a generation with one replace.

The order of writes makes every moment safe to be killed at:

1. `pending` lists which clips will be stored where. Nothing published refers to it.
2. The `zarr.json` of every array grows. Published clips keep their place, so no reader notices.
3. Shards appear, those of the side arrays before that of the codes. Each is whole and written once: a file that exists
   is never changed, except to repair it. A shard belongs to one plan; a new plan starts after every shard that was ever
   planned, so a late process cannot disturb it.
4. The clip table of the new generation appears, then the root `zarr.json` is replaced: this is the commit.
5. The card for people is written again and `pending` is removed.

`plan.py` decides where each clip is stored; `layout.py` puts files there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes import checks, commit, layout
from lvt_pipeline.codes.array import CodeArray, remove_unpublished, resize_arrays
from lvt_pipeline.codes.checks import PendingPlan, ShardWriter
from lvt_pipeline.codes.clip_table import write_pages
from lvt_pipeline.codes.layout import ARRAY, ARRAY_METADATA, ARRAYS, CARD, GENERATIONS, PENDING, PENDING_FILE
from lvt_pipeline.codes.plan import CodeChange, CodePlan, ShardPlan, make_plan, table_attributes
from lvt_pipeline.codes.readers import require_no_readers, without_readers
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, shard_name, shard_names
from lvt_pipeline.codes.shard_file import array_metadata
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import BusyError, ShapeError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance
from lvt_pipeline.storage import Place, as_place

_OTHER_PLAN = (
    "another command has not finished {path}, and nobody can see whether it still runs, as there are no locks in a "
    "bucket; run that command again, or, if it will never come back, discard its work with lvt gc {path} "
    "--drop-pending --apply"
)


class CodeStoreWriter:
    """The one writer of a code store. Make it with `CodeStoreWriter.open`, which holds the lock.

    Write every shard of `pending_shards` with `write_shard`, in any order, from one thread; then `publish`.
    """

    def __init__(self, path: Place, plan: CodePlan, settings: Mapping[str, Any], current: CodeStore | None) -> None:
        self.path = path
        self._storage = layout.storage_of(path)
        self._is_alone = False  # nobody else can write the store now; see `Storage.exclusive`
        self.plan = plan
        self._settings = settings
        self._current = current
        self._root = current.root if current is not None else commit.NO_ROOT
        self._planned = {shard.index: shard for shard in (*plan.repairs, *plan.shards)}
        self._repairs = {shard.index for shard in plan.repairs}
        self.shards = ShardWriter(path, plan.schema, plan=None)
        self._digests: dict[str, str] = {}  # of the shards that this writer has written
        self._pages = list(current.table.pages) if current is not None else []
        self._is_array_rewritten = False  # its metadata is right again, but not the bytes that the root names

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Place,
        schema: CodeSchema,
        clips: Sequence[PlannedClip],
        *,
        settings: Mapping[str, Any] | None = None,
        reencode: bool = False,
        overwrite: bool = False,
        damaged: Callable[[], Collection[int]] = tuple,
    ) -> Iterator[Self]:
        """Own the store at `path` until the block ends, ready to make it hold exactly `clips`.

        An interrupted plan is continued when it was for the same clips and `settings`; otherwise its shards are
        removed.

        Args:
            settings: everything else that decides the codes, as plain data; "stage" is the command that writes.
            reencode, overwrite: see `plan_codes`.
            damaged: called once the store is owned; gives the indices of shards whose content cannot be trusted.

        Raises:
            BusyError: another process is writing it, or reading a store that would be overwritten.
            StoreError: see `plan_codes`; or another command made the store.
        """
        path = as_place(path).absolute()
        settings = settings or {}
        checks.require_clips(clips)
        checks.require_place(path)
        with layout.storage_of(path).exclusive() as is_alone:
            checks.require_stage(path, settings.get("stage", ""))
            broken = damaged()
            current = checks.open_current(path, overwrite)
            is_replaced = overwrite and layout.has_file(path, ZARR_METADATA)
            pending = None if is_replaced else checks.read_pending(path)
            first = pending.first_shard if pending else 0
            plan = make_plan(current, schema, clips, reencode, broken, first)
            if pending is not None and pending.plan != plan.identity(settings):
                if not is_alone and checks.is_unpublished(path, current.generation if current else 0):
                    raise StoreError(_OTHER_PLAN.format(path=path))
                plan = make_plan(current, schema, clips, reencode, broken, pending.end_shard)
            writer = cls(path, plan, settings, current)
            writer._is_alone = is_alone
            if is_replaced:
                writer._remove_published()
            writer._prepare()
            yield writer

    @classmethod
    @contextmanager
    def open_plan(
        cls, path: Place, plan_of: Callable[[CodeStore], CodePlan], settings: Mapping[str, Any]
    ) -> Iterator[Self]:
        """Own an existing store until the block ends, ready for a plan from its current generation.

        Raises:
            BusyError: another process is writing it.
            StoreError: there is no store at `path`, or another plan for it is unfinished.
        """
        path = as_place(path).absolute()
        open_codes(path, holds=False)  # before the lock, which would create a folder
        with layout.storage_of(path).exclusive() as is_alone:
            current = open_codes(path, holds=False)
            writer = cls(path, plan_of(current), settings, current)
            writer._is_alone = is_alone
            if checks.is_unpublished(path, current.generation) and not writer._is_pending():
                raise StoreError(
                    f"an interrupted command left {path} unfinished; run it again, or discard its work with "
                    "lvt gc --drop-pending --apply"
                )
            if writer.change.publishes or layout.has_file(path, PENDING_FILE):
                writer._prepare()
            yield writer

    @classmethod
    def join(
        cls, path: Place, schema: CodeSchema, clips: Sequence[PlannedClip], settings: Mapping[str, Any] | None = None
    ) -> Self:
        """Help with the plan that another process has begun: write shards without the lock. The owner publishes.

        Args:
            schema, clips, settings: as the owner gave them to `open`.

        Raises:
            StoreError: this is not the plan that the store is waiting for.
        """
        path, settings = as_place(path).absolute(), settings or {}
        pending = checks.read_pending(path)
        current = checks.open_current(path, overwrite=False)
        first = pending.first_shard if pending else 0
        writer = cls(path, make_plan(current, schema, clips, reencode=True, first_shard=first), settings, current)
        writer.shards = writer.helper()
        if writer.change.publishes:
            checks.require_pending(path, writer.shards.plan or "")
        return writer

    @property
    def schema(self) -> CodeSchema:
        """What the codes must look like."""
        return self.plan.schema

    @property
    def change(self) -> CodeChange:
        """How the next generation differs from the current one."""
        return self.plan.change

    def pending_shards(self) -> list[ShardPlan]:
        """The shards that are not on disk yet or must be replaced, in order."""
        repairs = {index for index in self._repairs if shard_name(index) not in self._digests}
        finished = self._finished()
        return [plan for index, plan in sorted(self._planned.items()) if index in repairs or index not in finished]

    def finished_shards(self) -> list[ShardPlan]:
        """The new shards of this plan that are on disk, in order, including those of an interrupted run."""
        finished = self._finished()
        return [plan for plan in self.plan.shards if plan.index in finished]

    def _finished(self) -> set[int]:
        """Numbers of the planned shards of which every file is there."""
        found = {entry.name for entry in layout.shard_files(self.path)}
        return {index for index in self._planned if found.issuperset(shard_names(index, self.schema))}

    def read_shard(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """Codes of a finished new shard of this plan, (num_frames, h, w, n_c).

        Raises:
            StoreError: it is damaged.
        """
        start = index * self.schema.shard_frames
        return CodeArray(self.path, self.schema, sizes={}).read(start, start + self._planned[index].num_frames)

    def write_shard(self, index: int, codes: NDArray[Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> str:
        """Put one planned shard on disk, each file whole. A damaged one stays until its replacement takes its name.

        Where several processes write the same shard, the first one wins.

        Args:
            codes: any integers in [0, K), (num_frames, h, w, n_c) in the order of the plan's parts.
            arrays: rows of every side array of the schema in the same order, (num_frames, d), by name.

        Returns:
            SHA-256 of the file of the codes, which another process may have made.

        Raises:
            ShapeError: the codes or rows do not fit the plan.
            StoreError: a file that is not a shard has its name; or, in a helper, the plan was abandoned.
            LVTError: the disk is full or refuses.
        """
        expected = (self._planned[index].num_frames, *self.schema.frame_shape)
        if codes.shape != expected:
            raise ShapeError(f"shard {index} of {self.path} has shape {expected}, the codes have {codes.shape}")
        write = self.shards.replace if index in self._repairs else self.shards.create
        digest = self._digests[shard_name(index)] = write(index, codes, arrays or {})
        return digest

    def helper(self) -> ShardWriter:
        """What other processes and machines write the new shards of this plan with."""
        return replace(self.shards, plan=self._identity)

    @cached_property
    def _identity(self) -> str:
        return self.plan.identity(self._settings)

    def accept(self, receipts: Mapping[int, str]) -> None:
        """Note that helpers have written shards: their SHA-256, by index."""
        self._digests |= {shard_name(index): digest for index, digest in receipts.items()}

    def publish(self, record: Provenance, info: layout.GenerationInfo | None = None) -> Provenance:
        """Make the plan the current generation.

        When the tables do not differ nothing is published; the record is renewed if it describes other settings or
        inputs that lead to the same codes, or if shards were repaired.

        Args:
            record: its fingerprint and outputs are filled in here.
            info: `stage` and `finished` of the store's history, when they are not the record's.

        Returns:
            The record as it is in the store.
        """
        assert self.shards.plan is None, "the owner of a store publishes"
        missing = self.pending_shards()
        assert not missing, f"{len(missing)} shards of {self.path} are not written"
        if not self.change.publishes:
            return self._renew(record)
        number = self.plan.generation
        record = replace(record, fingerprint=self.plan.fingerprint, outputs=commit.output_sizes(self.path, self.plan))
        # The table is the same bytes whenever and however often it is written: no times in it.
        timeless = replace(record, seconds=0.0, finished="", command=[])
        stage = info.stage if info else record.stage
        self._pages = write_pages(self.path, self.plan.table, self._current.table if self._current else None)
        attributes = table_attributes(self.path, self.plan, timeless, stage, self._pages)
        self._write_group(layout.generation_name(number), attributes, indent=None)
        record = replace(record, outputs=commit.output_sizes(self.path, self.plan, self._pages))
        now = layout.GenerationInfo(
            generation=number,
            fingerprint=self.plan.fingerprint,
            clips=len(self.plan.table),
            frames=self.plan.table.num_frames,
            finished=info.finished if info else record.finished,
            stage=stage,
        )
        try:
            self._write_root(record, (*self._root.generations, now))
        except BusyError:
            published = open_codes(self.path, holds=False)
            if (published.generation, published.fingerprint) != (number, self.plan.fingerprint):
                raise
            record = published.provenance  # another process with the same plan was quicker
        self._remove_group(PENDING)
        return record

    def _renew(self, record: Provenance) -> Provenance:
        """The record of a generation that stays: its own, or one with new settings and inputs that led to it too."""
        assert self._current is not None  # otherwise there is a plan to publish
        old = self._current.provenance
        if old.recipe == record.recipe and not self.plan.repairs and not self._is_array_rewritten:
            return old
        renewed = replace(
            old,
            stage=record.stage,
            version=record.version,
            settings=record.settings,
            inputs=record.inputs,
            outputs=commit.output_sizes(self.path, self.plan, self._pages),
        )
        self._write_root(renewed, self._root.generations)
        return renewed

    def _write_root(self, record: Provenance, generations: tuple[layout.GenerationInfo, ...]) -> None:
        """The commit."""
        files = {**self._root.files, **commit.new_digests(self.path, self.plan, self._digests)}
        root = commit.next_root(self.path, self._root, self.plan, files, is_paged=bool(self._pages))
        root = replace(root, generations=generations, provenance=record.to_json())
        commit.commit_root(self.path, root, self.plan.table)

    def _prepare(self) -> None:
        """Bring the store to the state in which shards of this plan can be written."""
        if not self.change.publishes:
            self._discard_unpublished()
            self._remember_used_shards()
            self._remove_group(PENDING)
        elif not self._is_pending():
            self._discard_unpublished()
            self._begin_plan()
        self._resize_arrays(self.schema, self.plan.array_frames)
        if self._current is not None and CARD in self._root.files:
            commit.restore_card(self.path, self._root, self._current.table)
        if not layout.has_file(self.path, f"{GENERATIONS}/{ZARR_METADATA}"):
            self._write_group(GENERATIONS, {})

    def _resize_arrays(self, schema: CodeSchema, num_frames: int) -> None:
        self._is_array_rewritten |= resize_arrays(self.path, schema, num_frames, self._root)

    def _is_pending(self) -> bool:
        """Whether the store waits for this very plan."""
        pending = checks.read_pending(self.path)
        return pending is not None and pending.plan == self._identity

    def _begin_plan(self) -> None:
        """Put the plan into the place of an abandoned one, in one step."""
        abandoned = checks.read_pending(self.path)
        PendingPlan(
            plan=self._identity,
            generation=self.plan.generation,
            array=layout.digest_bytes(array_metadata(self.plan.array_frames, self.schema)),
            stage=self._settings.get("stage", ""),
            first_shard=self.plan.new_shards.start,
            end_shard=max(self.plan.new_shards.stop, abandoned.end_shard if abandoned else 0),
        ).write(self.path)

    def _remember_used_shards(self) -> None:
        """Note the numbers of an abandoned plan in the root before the plan is removed."""
        assert self._current is not None  # otherwise there is a plan to publish
        root = self._current.root
        used = commit.used_shards(self.path, root, self.plan)
        if checks.is_unpublished(self.path, root.generation) and root.used_shards != used:
            root = replace(root, used_shards=used)
            self._root = commit.commit_root(self.path, root, self._current.table)

    def _discard_unpublished(self) -> None:
        """Remove the shards and clip tables of an abandoned plan, and make the array as long as it was before."""
        if not self._is_alone:
            return  # others may have begun; what nobody needs is left to lvt gc
        published = self._current.array_frames if self._current else 0
        first = -(-published // self.schema.shard_frames)
        if self._current is None:
            self._storage.delete([ARRAY_METADATA])
        remove_unpublished(self.path, self._current.schema if self._current else None, first)
        generation = self._current.generation if self._current else 0
        later = [number for number in layout.generations_in(self._storage) if number > generation]
        self._storage.delete(map(layout.table_name, later))
        if self._current is not None:  # before the plan goes, so that the array is as long as the root or a plan states
            self._resize_arrays(self._current.schema, published)

    def _remove_published(self) -> None:
        """Remove a whole store: first the plan that could be resumed, then the commit point, then the rest."""
        generations = layout.generations_in(self._storage)
        with without_readers(self.path, generations) as in_use:
            require_no_readers(self.path, in_use)
            self._remove_group(PENDING)
            self._storage.delete([ZARR_METADATA])
            for group in (GENERATIONS, ARRAYS, ARRAY):
                self._remove_group(group)

    def _write_group(self, group: str, attributes: Mapping[str, Any], indent: int | None = 2) -> None:
        name, data = f"{group}/{ZARR_METADATA}", layout.group_metadata(attributes, indent)
        if self._is_alone:
            self._storage.replace(name, data)
        elif not self._storage.create(name, data):
            raise StoreError(f"{self.path / name} is of another command; remove it with lvt gc {self.path} --apply")

    def _remove_group(self, group: str) -> None:
        self._storage.delete([entry.name for entry in self._storage.list(group)])
