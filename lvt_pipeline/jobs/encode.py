"""Stage `encode-dataset`: every frame through the tokenizer once, into the code store (paper, section 3.1).

Frames are read by threads, encoded here and written by another thread, with bounded queues between them. They pass
through the encoder in batches of one fixed size that take no notice of where clips and shards end: a frame's codes
depend on the frame and the tokenizer, and not on neighbouring frames.

An existing store is brought up to date: clips whose frames and tokenizer are unchanged keep their codes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.plan import CodeChange, CodePlan, ShardPlan, plan_codes
from lvt_pipeline.codes.repair import repair_metadata
from lvt_pipeline.codes.schema import SHARD_FRAMES, CodeSchema, PlannedClip, codes_fingerprint, shard_name
from lvt_pipeline.codes.store import is_published
from lvt_pipeline.codes.usage import perplexity, usage
from lvt_pipeline.codes.verify import find_damaged_shards
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import LVTError, MismatchError
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.jobs.change_table import ChangeTable, change_table
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.machine import paused_collection
from lvt_pipeline.models.vqvae.config import DOWNSAMPLING
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.read import in_precision, load_vqvae

if TYPE_CHECKING:
    from torch import Tensor

    from lvt_pipeline.models.vqvae.model import VQVAE

STAGE = "encode-dataset"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="codes")

PIECE_BYTES = 2**24  # pixels read at a time
PIECES_AHEAD = 4  # pieces read before they are needed
READERS = 2


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

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        facts = asdict(self)
        facts["provenance"] = None if self.provenance is None else self.provenance.to_json()
        return facts


class Encoder(Protocol):
    """What the loop needs of a VQ-VAE."""

    def encode(self, frames: NDArray[np.uint8], batch_size: int) -> Tensor:
        """uint8 (N, H, W, 3) -> int64 (N, h, w, n_c) on the CPU."""


def encode_dataset(
    frames: Path,
    vqvae: Path,
    out: Path,
    settings: EncodeSettings = EncodeSettings(),
    *,
    device: str = "auto",
    reencode: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    repair: bool = False,
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

    Raises:
        StoreError: `out` cannot be extended with these codes, or repaired.
        BusyError: another process is writing it.
        Stopped: a signal came; finished shards are kept.
    """
    clock = Clock()
    require_output_folder(out, STAGE, (frames, vqvae))
    task = _EncodeTask(frames, vqvae, settings, device)
    if dry_run:
        damaged = find_damaged_shards(out) if repair else ()
        plan = plan_codes(out, task.schema, task.clips, reencode=reencode, overwrite=overwrite, damaged=damaged)
        return task.report(plan, clock, table=task.table(plan))
    repaired: list[str] = []

    def find_damage() -> Sequence[int]:
        if not repair or overwrite:
            return ()
        repaired.extend(repair_metadata(out, task.schema, task.clips))
        return find_damaged_shards(out) if is_published(out) else ()

    with (
        stop_requested() as stop,
        CodeStoreWriter.open(
            out,
            task.schema,
            task.clips,
            settings={"stage": STAGE, "version": VERSION, **to_plain(settings)},
            reencode=reencode,
            overwrite=overwrite,
            damaged=find_damage,
        ) as writer,
    ):
        table = task.table(writer.plan) if is_published(out) and writer.change.frames else None
        for line in table.lines() if table else ():
            progress.say(line)
        tally = encode_shards(
            task.frames, task.model, writer, batch_size=settings.batch_size, progress=progress, stop=stop
        )
        record = writer.publish(JOB.recorder(settings, task.inputs, clock).new_record(counts=_counts(writer, tally)))
        repaired += [shard_name(shard.index) for shard in writer.plan.repairs]
        return task.report(writer.plan, clock, table=table, record=record, tally=tally, repaired=repaired)


class _EncodeTask:
    """What an encode is about: frames, the network, and the clips that the store is going to hold."""

    def __init__(self, frames: Path, vqvae: Path, settings: EncodeSettings, device: str) -> None:
        from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint

        self.frames, self.settings = FrameShards(frames), settings
        self.model = load_vqvae(vqvae, device=device)
        tokenizer = in_precision(tokenizer_fingerprint(self.model), settings.precision)
        use_precision(self.model, settings.precision)
        self.inputs = {"frames": self.frames.fingerprint, "tokenizer": tokenizer}
        self.schema = CodeSchema(
            codebook_size=self.model.codebook_size,
            num_codebooks=self.model.num_codebooks,
            grid=_grid(self.frames),
            tokenizer=tokenizer,
            shard_frames=SHARD_FRAMES,
            geometry=self.frames.record.settings.get("geometry", {}),
        )
        self.clips = _planned_clips(self.frames, tokenizer)

    def table(self, plan: CodePlan) -> ChangeTable:
        """The change in numbers, with an estimate that is measured on a few frames."""
        size = self.settings.batch_size
        return change_table(plan, self.frames, lambda pixels: _encode(self.model, pixels, size), size)

    def report(
        self,
        plan: CodePlan,
        clock: Clock,
        *,
        table: ChangeTable | None,
        record: Provenance | None = None,
        tally: EncodeTally | None = None,
        repaired: Sequence[str] = (),
    ) -> EncodeReport:
        """The work done, or, without a record, the work planned."""
        counts = record.counts if record is not None else {}
        return EncodeReport(
            provenance=record,
            change=plan.change,
            table=table,
            num_clips=len(plan.clips),
            num_frames=sum(clip.length for clip in plan.clips),
            generation=plan.generation,
            codebook_size=self.schema.codebook_size,
            perplexity=counts.get("perplexity", ()),
            usage=counts.get("usage", ()),
            seconds=clock.seconds,
            phases=tally.phases() if tally else {},
            limited_by=tally.limited_by() if tally else "",
            repaired=tuple(repaired),
        )


def _counts(writer: CodeStoreWriter, tally: EncodeTally) -> dict[str, Any]:
    change, clips = writer.change, writer.plan.clips
    counts: dict[str, Any] = {
        "clips": len(clips),
        "frames": sum(clip.length for clip in clips),
        "kept": len(change.kept),
        "added": len(change.added),
        "changed": len(change.changed),
        "removed": len(change.removed),
        "encoded_frames": change.frames,
    }
    if change.frames:
        for name, values in (("perplexity", perplexity(tally.occurrences)), ("usage", usage(tally.occurrences))):
            counts[name] = [round(value, 4) for value in values]
    return counts


def use_precision(model: VQVAE, precision: str | None) -> None:
    """Let a tokenizer's encoder run in this precision from now on. Call it once its fingerprint is known."""
    import torch

    if precision == "bfloat16":
        model.encoder.to(torch.bfloat16)


@dataclass
class EncodeTally:
    """The counts of an encoding.

    Attributes:
        occurrences: int64 (n_c, K), how often each new code occurs, those of an interrupted run included.
        num_frames: frames encoded by this process.
        read, encode, write: busy seconds of each phase; they overlap.
        waited_for_read, waited_for_write: seconds in which the encoder had nothing to do.
    """

    occurrences: NDArray[np.int64]
    num_frames: int = 0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    waited_for_read: float = 0.0
    waited_for_write: float = 0.0

    def count(self, codes: NDArray[Any]) -> None:
        """Add codes (N, h, w, n_c)."""
        for codebook, row in enumerate(self.occurrences):
            row += np.bincount(codes[..., codebook].ravel(), minlength=len(row))

    def phases(self) -> dict[str, float]:
        """Seconds by phase, rounded for people."""
        names = ("read", "encode", "write", "waited_for_read", "waited_for_write")
        return {name: round(getattr(self, name), 3) for name in names}

    def limited_by(self) -> str:
        """The phase that more speed would help most."""
        if not self.num_frames:
            return ""
        share = {"read": self.waited_for_read, "encode": self.encode, "write": self.waited_for_write}
        return max(share, key=lambda name: share[name])


def encode_shards(
    frames: FrameShards,
    encoder: Encoder,
    writer: CodeStoreWriter,
    *,
    batch_size: int,
    progress: Progress = SILENT,
    stop: StopRequest | None = None,
) -> EncodeTally:
    """Encode every shard that the writer still misses.

    Raises:
        Stopped: `stop` was set; the shard in flight is finished first.
    """
    tally = EncodeTally(np.zeros((writer.schema.num_codebooks, writer.schema.codebook_size), np.int64))
    shards = writer.pending_shards()
    finished = writer.finished_shards()
    for shard in finished:
        tally.count(writer.read_shard(shard.index))
    done = sum(shard.num_frames for shard in finished)
    total = done + sum(shard.num_frames for shard in shards)
    if not shards:
        return tally
    with (
        ThreadPoolExecutor(READERS, "read") as readers,
        ThreadPoolExecutor(1, "write") as writers,
        progress.bar("encode", total, "frames", done=done) as bar,
    ):
        pieces = _read_ahead(frames, shards, readers, tally)
        codes = _encoded(_rebatched(pieces, batch_size), encoder, batch_size, tally, bar)
        writing: Future[None] | None = None
        for number, (shard, shard_codes) in enumerate(_by_shard(codes, shards, writer.schema), start=1):
            tally.count(shard_codes)
            # One shard is on its way to the disk while the next one is encoded: that is all a killed run can lose.
            _wait_for(writing, tally)
            writing = writers.submit(_write, writer, shard, shard_codes, tally)
            is_last, is_stopped = number == len(shards), bool(stop)
            if is_last or is_stopped:
                _wait_for(writing, tally)
            if is_stopped and not is_last:
                assert stop is not None
                stop.raise_if_set(f"{number + len(finished)} of {len(shards) + len(finished)} shards are finished")
    return tally


@paused_collection()
def _planned_clips(frames: FrameShards, tokenizer: str) -> list[PlannedClip]:
    return [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=clip.label,
            length=clip.num_frames,
            fingerprint=codes_fingerprint(clip.fingerprint, tokenizer),
            fps=clip.fps,
            source=clip.source,
            source_digest=clip.digest,
            decoder=clip.decoder,
        )
        for clip in frames.clips
    ]


def _grid(frames: FrameShards) -> tuple[int, int]:
    """(h, w) of the codes of these frames.

    Raises:
        MismatchError: the folder is empty, or its frames differ in size.
    """
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


# The chain from frames to shards of codes -----------------------------------------------------------------------------


def _read_ahead(
    frames: FrameShards, shards: Sequence[ShardPlan], readers: ThreadPoolExecutor, tally: EncodeTally
) -> Iterator[NDArray[np.uint8]]:
    """Frames of the shards in order, in pieces, a few of them read before they are asked for."""
    ahead: deque[Future[tuple[NDArray[np.uint8], float]]] = deque()
    for clip, start, stop in _pieces(frames, shards):
        ahead.append(readers.submit(_read, frames, clip, start, stop))
        if len(ahead) > PIECES_AHEAD:
            yield _received(ahead.popleft(), tally)
    while ahead:
        yield _received(ahead.popleft(), tally)


def _pieces(frames: FrameShards, shards: Sequence[ShardPlan]) -> Iterator[tuple[FrameClip, int, int]]:
    for shard in shards:
        for part in shard.parts:
            clip = frames[part.clip_id]
            length = part.stop - part.start
            if clip.codec == "raw":  # a PNG strip is decoded whole, so it is asked for once
                length = max(1, PIECE_BYTES // (clip.height * clip.width * 3))
            for start in range(part.start, part.stop, length):
                yield clip, start, min(part.stop, start + length)


def _read(frames: FrameShards, clip: FrameClip, start: int, stop: int) -> tuple[NDArray[np.uint8], float]:
    began = time.monotonic()
    return frames.read(clip, start, stop), time.monotonic() - began


def _received(piece: Future[tuple[NDArray[np.uint8], float]], tally: EncodeTally) -> NDArray[np.uint8]:
    began = time.monotonic()
    pixels, seconds = piece.result()
    tally.waited_for_read += time.monotonic() - began
    tally.read += seconds
    return pixels


def _rebatched(pieces: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """The same frames in batches of exactly `size`; only the last may be smaller."""
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for piece in pieces:
        position = 0
        while count + len(piece) - position >= size:
            taken = size - count
            waiting.append(piece[position : position + taken])
            yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            position += taken
            waiting, count = [], 0
        if position < len(piece):
            waiting.append(piece[position:])
            count += len(piece) - position
    if waiting:
        yield np.concatenate(waiting)


def _encoded(
    batches: Iterator[NDArray[np.uint8]], encoder: Encoder, batch_size: int, tally: EncodeTally, bar: Bar
) -> Iterator[NDArray[np.int64]]:
    for batch in batches:
        began = time.monotonic()
        codes = _encode(encoder, batch, batch_size)
        tally.encode += time.monotonic() - began
        tally.num_frames += len(batch)
        bar.advance(len(batch))
        yield codes


def _encode(encoder: Encoder, batch: NDArray[np.uint8], batch_size: int) -> NDArray[np.int64]:
    import torch

    try:
        codes: NDArray[np.int64] = encoder.encode(batch, batch_size=batch_size).numpy()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LVTError(
            f"there is not enough memory to encode {batch_size} frames at a time; run the same command again with a "
            "smaller --batch-size. Finished work is kept"
        ) from error
    return codes


def _by_shard(
    batches: Iterator[NDArray[np.int64]], shards: Sequence[ShardPlan], schema: CodeSchema
) -> Iterator[tuple[ShardPlan, NDArray[Any]]]:
    """Codes of one shard after another, cut from batches that know nothing of shards."""
    rest = np.empty((0, *schema.frame_shape), np.int64)
    for shard in shards:
        codes = np.empty((shard.num_frames, *schema.frame_shape), schema.dtype)
        filled = 0
        while filled < len(codes):
            if not len(rest):
                rest = next(batches)
            taken = rest[: len(codes) - filled]
            codes[filled : filled + len(taken)] = taken
            filled += len(taken)
            rest = rest[len(taken) :]
        yield shard, codes


def _write(writer: CodeStoreWriter, shard: ShardPlan, codes: NDArray[Any], tally: EncodeTally) -> None:
    began = time.monotonic()
    writer.write_shard(shard.index, codes)
    tally.write += time.monotonic() - began


def _wait_for(writing: Future[None] | None, tally: EncodeTally) -> None:
    """Wait until the shard that is being written is on the disk."""
    if writing is not None:
        began = time.monotonic()
        writing.result()
        tally.waited_for_write += time.monotonic() - began
