"""Stage `encode-dataset`: every frame through the tokenizer once, into the code store (paper, section 3.1).

An existing store is brought up to date: clips whose frames and tokenizer are unchanged keep their codes. This module
compares and publishes; `encode_shards` encodes, on this machine or on others (`runner`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.array import side_arrays_of
from lvt_pipeline.codes.plan import CodeChange, CodePlan, ShardPlan, plan_codes
from lvt_pipeline.codes.schema import (
    SHARD_FRAMES,
    CodeSchema,
    PlannedClip,
    SideArray,
    clip_fingerprints,
    codes_of_frames,
    shard_name,
)
from lvt_pipeline.codes.store import is_published, published_arrays
from lvt_pipeline.codes.upkeep.repair import repair_metadata
from lvt_pipeline.codes.usage import perplexity, usage
from lvt_pipeline.codes.verify import find_damaged_shards
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import MismatchError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.jobs.change_table import ChangeTable, change_table
from lvt_pipeline.jobs.encode_shards import (
    EncodePlan,
    EncodeTally,
    ShardEncoder,
    encode_batch,
    start_encoder,
    tokenizer_of,
    use_precision,
)
from lvt_pipeline.jobs.runner import ALL, LOCAL, ArrayStep, Elsewhere, Plan, Runner, require_none_missing
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import Place

STAGE = "encode-dataset"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="codes")


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What an encode did, or would do.

    Attributes:
        provenance: record of the store, None after a dry run.
        change: what became of each clip.
        table: the same in numbers, with an estimate of the work; None when there was nothing to compare or to do.
        num_clips, num_frames: in the store now.
        generation: that readers see now.
        codebook_size: K.
        perplexity, usage: per codebook, over the codes this generation added; empty when it is not known.
        seconds: wall time.
        phases: seconds spent reading, encoding and writing, which overlap, and seconds the encoder waited for the
            other two.
        limited_by: the phase that took the most of the wall time: "read", "encode" or "write"; empty when no frame
            was encoded.
        repaired: damaged files that were written again, relative to the store.
        num_shards, num_missing: new shards of the plan, and those of them that are not on disk yet.
    """

    provenance: Provenance | None
    change: CodeChange
    num_clips: int
    num_frames: int
    generation: int
    codebook_size: int
    table: ChangeTable | None = None
    perplexity: Sequence[float] = ()
    usage: Sequence[float] = ()
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    limited_by: str = ""
    repaired: Sequence[str] = ()
    num_shards: int = 0
    num_missing: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        facts = asdict(self)
        facts["provenance"] = None if self.provenance is None else self.provenance.to_json()
        return facts


def encode_dataset(
    frames: Place,
    vqvae: Path,
    out: Place,
    settings: EncodeSettings = EncodeSettings(),
    *,
    device: str = "auto",
    reencode: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    repair: bool = False,
    step: ArrayStep = ALL,
    runner: Runner = LOCAL,
    progress: Progress = SILENT,
) -> EncodeReport:
    """Make the code store at `out` hold the codes of exactly the clips in `frames`.

    Args:
        frames: folder that `lvt ingest` finished.
        vqvae: run directory.
        out: code store to create, resume or bring up to date.
        reencode: allow a store of another tokenizer; its clips are encoded again in a new generation.
        dry_run: only report what would be done.
        overwrite: start a new store.
        repair: check every byte of the store first, and make damaged shards again.
        step: the part of the work that this process of a job array does.

    Raises:
        StoreError: `out` cannot be extended with these codes, or repaired.
        BusyError: another process is writing it.
        LVTError: shards are missing, when only publishing was asked for.
        Stopped: a signal came; finished shards are kept.
    """
    require_output_folder(out, STAGE, (frames, vqvae))
    task = _EncodeTask(frames, vqvae, out, settings, device, runner, progress, overwrite=overwrite)
    if dry_run:
        damaged = find_damaged_shards(out) if repair else ()
        plan = plan_codes(out, task.schema, task.clips, reencode=reencode, overwrite=overwrite, damaged=damaged)
        return task.report(plan, table=task.table(plan))
    if step.kind == "shards":
        return task.help_with(step)
    with stop_requested() as stop, task.open(reencode, overwrite, repair) as writer:
        if step.kind == "plan":
            return task.report(writer.plan, missing=writer.pending_shards())
        return task.fill_and_publish(writer, stop, may_encode=step.kind == "all")


class _EncodeTask:
    """What an encode is about: frames, the network, and the clips that the store is going to hold."""

    def __init__(
        self,
        frames: Place,
        vqvae: Path,
        out: Place,
        settings: EncodeSettings,
        device: str,
        runner: Runner,
        progress: Progress,
        *,
        overwrite: bool,
    ) -> None:
        self.clock = Clock()
        self.frames, self.vqvae, self.out, self.settings = FrameShards(frames), vqvae, out, settings
        self.device, self.runner, self.progress = device, runner, progress
        self.model = load_vqvae(vqvae, device=device if runner.is_local else "cpu")
        tokenizer = tokenizer_of(self.model, settings.precision)
        use_precision(self.model, settings.precision)
        self.inputs = {"frames": self.frames.fingerprint, "tokenizer": tokenizer}
        self.schema = CodeSchema(
            codebook_size=self.model.codebook_size,
            num_codebooks=self.model.num_codebooks,
            grid=_grid(self.frames),
            tokenizer=tokenizer,
            shard_frames=SHARD_FRAMES,
            geometry=self.frames.record.settings.get("geometry", {}),
            arrays=_side_arrays(self.frames, settings.arrays, None if overwrite else out),
        )
        self.clips = _planned_clips(self.frames, self.schema)
        self.recorded = to_plain(settings)
        if settings.arrays is None:
            del self.recorded["arrays"]  # records of stores without arrays stay what they were
        self.of_plan = {"stage": STAGE, "version": VERSION, **self.recorded}
        self.repaired: list[str] = []

    @contextmanager
    def open(self, reencode: bool, overwrite: bool, repair: bool) -> Iterator[CodeStoreWriter]:
        """Own the store."""

        def find_damage() -> Sequence[int]:
            if not repair or overwrite:
                return ()
            self.repaired += repair_metadata(self.out, self.schema, self.clips)
            return find_damaged_shards(self.out) if is_published(self.out) else ()

        with CodeStoreWriter.open(
            self.out,
            self.schema,
            self.clips,
            settings=self.of_plan,
            reencode=reencode,
            overwrite=overwrite,
            damaged=find_damage,
        ) as writer:
            yield writer

    def help_with(self, step: ArrayStep) -> EncodeReport:
        """Encode some shards of a plan that another process has made and will publish."""
        writer = CodeStoreWriter.join(self.out, self.schema, self.clips, self.of_plan)
        missing = {shard.index for shard in writer.pending_shards()} if writer.change.publishes else set()
        mine = [shard for shard in step.share(writer.plan.shards) if shard.index in missing]
        total = sum(shard.num_frames for shard in mine)
        with stop_requested() as stop, self.progress.bar("encode", total, "frames") as bar:
            tally = self._encode(writer, mine, bar, stop)
        left = writer.pending_shards() if writer.change.publishes else []
        return self.report(writer.plan, tally=tally, missing=left)

    def fill_and_publish(self, writer: CodeStoreWriter, stop: StopRequest, *, may_encode: bool) -> EncodeReport:
        """Encode the shards that are missing, or refuse because of them, and publish the store."""
        missing = writer.pending_shards()
        if not may_encode:
            shards = len(writer.plan.shards) + len(writer.plan.repairs)
            require_none_missing(self.out, [shard_name(shard.index) for shard in missing], shards)
        has_changes = writer.change.frames or writer.change.copied
        has_table = may_encode and is_published(self.out) and has_changes and self.runner.is_local
        table = self.table(writer.plan) if has_table else None
        for line in table.lines() if table else ():
            self.progress.say(line)
        tally = self._encode_missing(writer, missing, stop)
        recorder = JOB.recorder(self.recorded, self.inputs, self.clock)
        record = writer.publish(recorder.new_record(counts=_counts(writer, tally)))
        self.repaired += [shard_name(shard.index) for shard in writer.plan.repairs]
        return self.report(writer.plan, table=table, record=record, tally=tally)

    def _encode_missing(self, writer: CodeStoreWriter, missing: Sequence[ShardPlan], stop: StopRequest) -> EncodeTally:
        """Encode shards, and count the codes of the others too."""
        tally = EncodeTally.empty(self.schema)
        finished = writer.finished_shards()
        for shard in finished:
            tally.count(writer.read_shard(shard.index))
        if missing:
            done = sum(shard.num_frames for shard in finished)
            total = done + sum(shard.num_frames for shard in missing)
            with self.progress.bar("encode", total, "frames", done=done) as bar:
                tally.add(self._encode(writer, missing, bar, stop, num_finished=len(finished)))
        return tally

    def _encode(
        self, writer: CodeStoreWriter, shards: Sequence[ShardPlan], bar: Bar, stop: StopRequest, num_finished: int = 0
    ) -> EncodeTally:
        plans = [self._plan_of(shard, writer.plan) for shard in shards]
        here = ShardEncoder(self.frames, self.model, writer.shards, writer.write_shard, self.settings.batch_size)
        places, helper = (self.frames.root, self.vqvae.absolute()), writer.helper()
        start = partial(start_encoder, *places, helper, self.settings)
        elsewhere = Elsewhere(start, [*places, helper.path], self.device)

        def saved(done: int) -> str:
            return f"{done + num_finished} of {len(shards) + num_finished} shards are finished"

        tally = EncodeTally.empty(self.schema)
        for receipt in self.runner.make((here, elsewhere), plans, bar, stop, saved):
            writer.accept({receipt.index: receipt.digest})
            tally.add(receipt.tally)
        return tally

    def _plan_of(self, shard: ShardPlan, plan: CodePlan) -> Plan[EncodePlan]:
        ids = {part.clip_id for part in shard.parts}
        copies = {clip_id: plan.copies[clip_id] for clip_id in ids if clip_id in plan.copies}
        work = EncodePlan(shard, {clip_id: self.frames[clip_id] for clip_id in ids}, copies)
        return Plan(shard_name(shard.index), work, stays_here=shard in plan.repairs)

    def table(self, plan: CodePlan) -> ChangeTable:
        """The change in numbers, with an estimate that is measured on a few frames."""
        size = self.settings.batch_size
        return change_table(plan, self.frames, lambda pixels: encode_batch(self.model, pixels, size), size)

    def report(
        self,
        plan: CodePlan,
        *,
        table: ChangeTable | None = None,
        record: Provenance | None = None,
        tally: EncodeTally | None = None,
        missing: Sequence[ShardPlan] = (),
    ) -> EncodeReport:
        """The work done, or, without a record, the work planned."""
        counts = record.counts if record is not None else {}
        return EncodeReport(
            provenance=record,
            change=plan.change,
            table=table,
            num_clips=len(plan.table),
            num_frames=plan.table.num_frames,
            generation=plan.generation,
            codebook_size=self.schema.codebook_size,
            perplexity=counts.get("perplexity", ()),
            usage=counts.get("usage", ()),
            seconds=self.clock.seconds,
            phases=tally.phases() if tally else {},
            limited_by=tally.limited_by() if tally else "",
            repaired=tuple(self.repaired),
            num_shards=len(plan.shards),
            num_missing=len(missing),
        )


def _counts(writer: CodeStoreWriter, tally: EncodeTally) -> dict[str, Any]:
    change, table = writer.change, writer.plan.table
    counts: dict[str, Any] = {
        "clips": len(table),
        "frames": table.num_frames,
        "kept": len(change.kept),
        "added": len(change.added),
        "changed": len(change.changed),
        "removed": len(change.removed),
        "encoded_frames": change.frames,
        **({"copied": len(change.copied)} if change.copied else {}),
    }
    if change.frames:
        for name, values in (("perplexity", perplexity(tally.occurrences)), ("usage", usage(tally.occurrences))):
            counts[name] = [round(value, 4) for value in values]
    return counts


@paused_collection()
def _planned_clips(frames: FrameShards, schema: CodeSchema) -> list[PlannedClip]:
    facts = frames.array_facts if schema.arrays else lambda clip: {}
    return [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=clip.label,
            length=clip.num_frames,
            fps=clip.fps,
            source=clip.source,
            source_digest=clip.digest,
            decoder=clip.decoder,
            **clip_fingerprints(codes_of_frames(clip, schema.tokenizer), facts(clip), schema),
        )
        for clip in frames.clips
    ]


def _side_arrays(frames: FrameShards, names: Sequence[str] | None, out: Place | None) -> tuple[SideArray, ...]:
    """The side arrays of a store of these frames.

    Args:
        names: of the arrays that are wanted; None: all.
        out: a store that may have some already, for other clips.
    """
    known = published_arrays(out) if out is not None else ()
    clips = ((clip.id, frames.array_facts(clip)) for clip in (frames.clips if names != () else ()))
    if names is not None:
        known = tuple(array for array in known if array.name in names)
        clips = ((clip, {name: facts[name] for name in names if name in facts}) for clip, facts in clips)
    arrays = side_arrays_of(clips, known, frames.root)
    missing = {*(names or ())} - {array.name for array in arrays}
    if missing:
        has = ", ".join(sorted({name for clip in frames.clips for name in clip.arrays or ()})) or "none"
        raise MismatchError(f"{frames.root} has no array {min(missing)!r}; it has {has}")
    return arrays


def _grid(frames: FrameShards) -> tuple[int, int]:
    """(h, w) of the codes of these frames."""
    if not frames.clips:
        raise MismatchError(f"{frames.root} has no clips to encode")
    first = frames.clips[0]
    for clip in frames.clips:
        if (clip.height, clip.width) != (first.height, first.width):
            raise MismatchError(
                f"{frames.root}: clip {clip.id} is {clip.width}x{clip.height} but {first.id} is "
                f"{first.width}x{first.height}; ingest them with one --size"
            )
    if first.height % DOWNSAMPLING or first.width % DOWNSAMPLING:
        raise MismatchError(
            f"{frames.root} has frames of {first.width}x{first.height} pixels; the tokenizer needs multiples of "
            f"{DOWNSAMPLING}"
        )
    return first.height // DOWNSAMPLING, first.width // DOWNSAMPLING
