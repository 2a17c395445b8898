"""Videos to frame shards: each clip is decoded once, in a worker that may die, and never again while unchanged.

The unit of work and of resume is the shard: a tar and its receipt. What a receipt says is compared, clip by clip, with
what the manifest and the settings ask for today, so a finished shard is kept, an unchanged clip is copied, and only
what is new or changed is decoded. A killed run, run again, ends with the same bytes as one that was never killed.

A line of the manifest gives one clip, or several where long videos are cut (`data.cutting`); they stay together.

While an existing output is brought up to date its new shards wait in `next/`; the old ones stay readable until all new
ones are complete.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline.config import LATER, to_plain
from lvt_pipeline.data.clips import Clip
from lvt_pipeline.data.cutting import Piece, cut, piece_id
from lvt_pipeline.data.frame_codecs import Codec, encode_frames, lossy_version
from lvt_pipeline.data.frames import (
    FAILURES_NAME,
    ClipFailure,
    FrameClip,
    FrameSample,
    Part,
    Receipt,
    content_fingerprint,
    frame_counts,
    output_sizes,
    pixels_of,
    read_arrays,
    read_range,
    read_receipt,
    receipt_path,
    write_failures,
    write_shard,
)
from lvt_pipeline.data.locations import exists, is_url
from lvt_pipeline.data.manifest import manifest_fingerprint, read_manifest
from lvt_pipeline.data.picture_folders import pictures_in
from lvt_pipeline.data.reading import read_clip, reader_version, readers_of
from lvt_pipeline.data.sources import opened_sources
from lvt_pipeline.data.videos import DecodedClip, GeometrySettings
from lvt_pipeline.engine.disk_space import refuse_without_space
from lvt_pipeline.engine.executors import Failure, run_isolated
from lvt_pipeline.engine.shard_plan import PlannedShard, plan_shards
from lvt_pipeline.errors import ArtefactError, ConfigError, DecodeError, LVTError, OverBudget
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.provenance import (
    RECORD_NAME,
    Provenance,
    fingerprint,
    missing_outputs,
    read_record,
    record_path,
    write_record,
)
from lvt_pipeline.storage import exclusive_lock, remove_leftovers, sync_directory

STAGE = "ingest"
VERSION = 1

NEXT_NAME = "next"
DOWNLOADS_NAME = ".downloads.partial"  # copies of videos behind URLs; what a killed run left is removed by the next
SHARD_PATTERN = "*-[0-9][0-9][0-9][0-9][0-9][0-9]"

CLIP_SECONDS = 120.0  # for opening and decoding a small clip on a busy machine
SLOWEST_BYTES_PER_SECOND = 100_000.0  # and longer for larger files
SMALLEST_MEMORY = 1 << 30  # bytes; less is no protection but a nuisance
DOWNLOAD_SECONDS = 1800.0  # and longer for videos behind URLs, whose size is not known here


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Everything that decides the bytes of the shards."""

    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    codec: Codec = "raw"  # png and webp are lossless too, smaller and slower to read; jpeg is not lossless
    clips_per_shard: int = 64  # lines of the manifest, which give one clip each unless videos are cut
    min_frames: int = 1  # a clip with fewer frames is a failure
    shard_mb: float | None = field(default=None, metadata=LATER)  # full at this size, not at a number of clips

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1 or self.min_frames < 1:
            raise ConfigError("clips_per_shard and min_frames are at least 1")
        if self.shard_mb is not None and not self.shard_mb > 0:
            raise ConfigError(f"shard_mb={self.shard_mb} is not a size in megabytes")


def ingest(
    manifest: Path,
    out: Path,
    settings: IngestSettings = IngestSettings(),
    *,
    num_workers: int | None = None,
    max_failures: float = 0.5,
    retry_failed: bool = False,
    overwrite: bool = False,
    clip_seconds: float = CLIP_SECONDS,
    worker_memory: int | None = None,
    check_space: bool = True,
    progress: Progress = SILENT,
) -> Provenance:
    """Decode every clip of a manifest into frame shards; resume or update what is there.

    Args:
        out: folder to create, to finish, or to bring up to date.
        num_workers: decoding processes; None is one per core, 0 decodes in this process without protection.
        max_failures: share of clips that may fail.
        retry_failed: try clips again that failed before and have not changed.
        overwrite: forget what is there and decode everything.
        clip_seconds: how long one clip may take before its worker is killed, plus time in proportion to its size.
        worker_memory: bytes that a worker may use for one clip; None is its share of the machine's memory.
        check_space: refuse to begin when the disk has no room for the frames.

    Returns:
        The record; its counts are clips, frames, failures, failures_by_reason and, when there are some,
        kept_truncated.

    Raises:
        ManifestError: the manifest cannot be used.
        LVTError: not one clip could be decoded, or the disk refused.
        OverBudget: everything is written, but more clips failed than `max_failures` allows.
        Stopped: a signal came; finished shards are kept.
        BusyError: another process writes the same output.
    """
    began = time.monotonic()
    clips = read_manifest(manifest)
    with exclusive_lock(out), stop_requested() as stop:
        _refuse_foreign(out)
        for folder in (out, out / NEXT_NAME):
            remove_leftovers(folder)
        if overwrite:
            for folder in (out, out / NEXT_NAME):
                _remove_shards(folder, keep=())
        job = _Job(out, clips, settings, retry_failed)
        job.look_around()
        workers = _available_cores() if num_workers is None else num_workers
        if check_space:
            refuse_without_space(
                out, job.to_decode, settings.geometry, settings.codec, num_workers=workers, should_stop=lambda: stop
            )
        with progress.bar("decoding", len(clips), "clip", done=job.num_kept) as bar:
            plan = job.make(workers, clip_seconds, worker_memory or _memory_share(workers), stop, bar)
        shutil.rmtree(out / DOWNLOADS_NAME, ignore_errors=True)
        stop.raise_if_set(f"{job.num_saved} shards are saved in {out}")
        receipts = [job.receipt(shard) for shard in plan]
        failures = [failure for receipt in receipts for failure in receipt.failures]
        if len(failures) == len(clips):
            raise _nothing_decoded(out, failures)
        record = _publish(out, plan, receipts, settings, manifest_fingerprint(clips), began)
    if len(failures) > max_failures * len(clips):
        raise OverBudget(
            f"{len(failures)} of {len(clips)} clips failed ({_spoken_reasons(failures)}), more than --max-failures "
            f"{max_failures:g} allows; the others are in {out}, the reasons in {out / FAILURES_NAME}"
        )
    return record


# Fingerprints ------------------------------------------------------------------------------------------------------


def frames_fingerprint(clip: Clip, geometry: GeometrySettings, reader: str) -> str:
    """Hash of what a clip's frames are made of, when this reads it."""
    return fingerprint(
        {
            "clip": clip.fingerprint,
            "geometry": to_plain(geometry),
            "decoder": reader_version(reader),
            "version": VERSION,
        }
    )


def line_fingerprint(line: Clip, settings: IngestSettings, reader: str) -> str:
    """Hash of what the clips of a line are made of: its frames, and what else changes which or how many there are."""
    frames = frames_fingerprint(line, settings.geometry, reader)
    more: dict[str, Any] = {}
    if settings.geometry.cuts:
        more["min_frames"] = settings.min_frames
    lossy = lossy_version(settings.codec)
    if lossy is not None:
        more["codec"] = lossy
    return fingerprint({"frames": frames, **more}) if more else frames


def failure_fingerprint(clip: Clip, settings: IngestSettings) -> str:
    """Hash of what was tried on a clip that failed."""
    return fingerprint(
        {
            "clip": clip.fingerprint,
            "geometry": to_plain(settings.geometry),
            "decoders": [reader_version(reader) for reader in readers_of(clip, settings.geometry)],
            "min_frames": settings.min_frames,
            "version": VERSION,
        }
    )


# What a worker does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeTask:
    """What a worker needs to decode one line."""

    clip: Clip
    geometry: GeometrySettings
    codec: Codec
    min_frames: int
    downloads: Path


@dataclass(frozen=True)
class DecodedPayload:
    """What a worker sends back for a clip, as it will lie in the shard.

    Attributes:
        begins: when it begins, in seconds of the source, if it is a piece of its line.
    """

    payload: bytes
    shape: tuple[int, int, int]
    fps: float
    decoder: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    begins: float | None = None
    truncated: str = ""


def decode_task(task: DecodeTask) -> list[DecodedPayload]:
    """Decode one line and pack its clips. Runs in a worker process.

    Raises:
        DecodeError: with a reason.
    """
    read = read_clip(task.clip, task.geometry, task.downloads)
    num_frames = len(read.frames)
    _refuse_short(num_frames, task.min_frames)
    if not task.geometry.cuts:
        return [_packed(read, Piece(read.begins, 0, num_frames), task.codec, begins=None)]
    pieces = cut(read, task.geometry, task.min_frames)
    if not pieces:
        raise DecodeError("too-short", f"no piece of the clip has {task.min_frames} frames")
    return [_packed(read, piece, task.codec, begins=piece.begins) for piece in pieces]


def _packed(read: DecodedClip, piece: Piece, codec: Codec, *, begins: float | None) -> DecodedPayload:
    frames = read.frames[piece.first : piece.stop]
    return DecodedPayload(
        encode_frames(frames, codec),
        frames.shape[:3],
        read.fps,
        read.decoder,
        {name: rows[piece.first : piece.stop] for name, rows in read.arrays.items()},
        begins,
        read.truncated,
    )


def _refuse_short(num_frames: int, min_frames: int) -> None:
    if num_frames < min_frames:
        raise DecodeError("too-short", f"the clip has {num_frames} frames, at least {min_frames} are asked for")


# What this process does --------------------------------------------------------------------------------------------

Outcome = list[FrameSample] | ClipFailure
Remembered = list[tuple[Path, FrameClip]] | ClipFailure  # clips with the shard they lie in, or why there are none


class _Stopping(Exception):
    """There will be no more results."""


class _Job:
    """One run: what is wanted, what earlier runs left, and what was written."""

    def __init__(self, out: Path, lines: Sequence[Clip], settings: IngestSettings, retry_failed: bool) -> None:
        self._out = out
        self._lines = lines
        self._settings = settings
        self._retry_failed = retry_failed
        self._by_bytes = settings.shard_mb is not None
        self._capacity = settings.clips_per_shard if settings.shard_mb is None else settings.shard_mb * 1e6
        self._receipts: dict[str, Receipt] = {}  # by name of the shard
        self._frames: dict[str, list[tuple[Path, FrameClip]]] = {}  # by fingerprint of the line
        self._failures: dict[str, ClipFailure] = {}  # by fingerprint
        self._known: dict[str, Remembered] = {}  # by id of the line
        self._outcomes: dict[str, Outcome] = {}  # by id of the line, until they are written
        self._kept: set[str] = set()  # shards that are as they should be
        self.to_decode: list[Clip] = []
        self.num_kept = 0  # lines
        self.num_saved = 0  # shards

    def look_around(self) -> None:
        """Learn what is on disk. Shards that wait in `next/` for another plan than this one are removed."""
        for name, receipt in _receipts_in(self._out, self._out):
            self._learn(self._out / name, receipt)
        older = dict(self._frames), dict(self._failures)
        waiting = dict(_receipts_in(self._out / NEXT_NAME, self._out))
        for name, receipt in waiting.items():
            self._learn(self._out / NEXT_NAME / name, receipt, keep=False)
        plan = {shard.name: shard for shard in self._known_plan()} if waiting else {}
        wanted = [name for name in waiting if name in plan and self._matches(plan[name], waiting[name])]
        _remove_shards(self._out / NEXT_NAME, wanted)
        if len(wanted) < len(waiting):  # what lay in the others is gone with them
            self._frames, self._failures = older
        for name in wanted:
            self._learn(self._out / NEXT_NAME / name, waiting[name])
        current = [shard for shard in self._known_plan() if self._is_current(shard)]
        self._kept = {shard.name for shard in current}
        self.num_saved = len(current)
        kept = {line.id for shard in current for line in shard.lines}
        self.num_kept = len(kept)
        others = [line for line in self._lines if line.id not in kept]
        if not self._by_bytes:
            self._remember(others)
        self.to_decode = [line for line in others if line.id not in self._known]

    def _learn(self, shard: Path, receipt: Receipt, *, keep: bool = True) -> None:
        if keep:
            self._receipts[shard.name] = receipt
        for clips in _by_line(receipt).values():
            if _is_whole(clips):
                self._frames[_made_of(clips[0])] = [(shard, clip) for clip in clips]
        self._failures |= {failure.fingerprint: failure for failure in receipt.failures}

    def _remember(self, lines: Sequence[Clip]) -> None:
        remembered = ((line.id, self._remembered(line)) for line in lines)
        self._known = {id: outcome for id, outcome in remembered if outcome is not None}

    def _known_plan(self) -> Iterator[PlannedShard]:
        """The plan as far as it is known before anything is decoded: all of it when shards are cut by count."""
        if self._by_bytes:
            self._remember(self._lines)
        return self._plan(self._known_weight)

    def _plan(self, weigh_bytes: Callable[[Clip], float | None]) -> Iterator[PlannedShard]:
        return plan_shards(self._lines, weigh_bytes if self._by_bytes else lambda line: 1.0, self._capacity)

    def _known_weight(self, line: Clip) -> float | None:
        """Bytes of a line's frames as earlier runs left them; None when that is not known."""
        outcome = self._known.get(line.id)
        if outcome is None or isinstance(outcome, ClipFailure):
            return None if outcome is None else 0.0
        if any(clip.codec != self._settings.codec for _, clip in outcome):
            return None
        return float(sum(clip.nbytes for _, clip in outcome))

    def receipt(self, shard: PlannedShard) -> Receipt:
        """The receipt of a shard that is done."""
        return self._receipts[shard.name]

    def _is_current(self, shard: PlannedShard) -> bool:
        """Whether the shard on disk is what would be written today."""
        return shard.name in self._receipts and self._matches(shard, self._receipts[shard.name])

    def _matches(self, shard: PlannedShard, receipt: Receipt) -> bool:
        frames = _by_line(receipt)
        failures = {failure.id: failure for failure in receipt.failures}
        by_kind = [line.id for line in shard.lines if line.id in frames]
        by_kind += [line.id for line in shard.lines if line.id not in frames]
        return by_kind == [*frames, *failures] and all(
            self._is_same(line, frames[line.id]) if line.id in frames else self._still_fails(line, failures[line.id])
            for line in shard.lines
        )

    def _is_same(self, line: Clip, clips: Sequence[FrameClip]) -> bool:
        wanted = self._wanted(line)
        return _is_whole(clips) and all(
            (clip.split, clip.label, clip.digest) == (line.split, line.label, line.digest)
            and clip.codec == self._settings.codec
            and clip.num_frames >= self._settings.min_frames
            and _made_of(clip) in wanted
            for clip in clips
        )

    def _still_fails(self, line: Clip, failure: ClipFailure) -> bool:
        if self._retry_failed or failure.fingerprint != failure_fingerprint(line, self._settings):
            return False
        return failure.reason != "missing" or not exists(line.source)

    def _wanted(self, line: Clip) -> list[str]:
        """Fingerprints that the clips of a line may be made of."""
        readers = readers_of(line, self._settings.geometry)
        return [line_fingerprint(line, self._settings, reader) for reader in readers]

    def _remembered(self, line: Clip) -> Remembered | None:
        """Frames or failure of an earlier run that still hold for this line."""
        for wanted in self._wanted(line):
            if wanted in self._frames:
                return self._frames[wanted]
        failure = self._failures.get(failure_fingerprint(line, self._settings))
        return failure if failure is not None and self._still_fails(line, failure) else None

    def make(
        self, num_workers: int, clip_seconds: float, worker_memory: int | None, stop: StopRequest, bar: Bar
    ) -> list[PlannedShard]:
        """Write what is missing, each shard as soon as its last line is there, and return the whole plan.

        A stop request ends it early, with the plan as far as it got.
        """
        results = run_isolated(
            decode_task,
            [self._task(line) for line in self.to_decode],
            num_workers=num_workers,
            deadline_seconds=lambda task: clip_seconds + _reading_seconds(task.clip),
            memory_bytes=worker_memory,
            window=max(self._settings.clips_per_shard, 2 * num_workers),
            should_stop=lambda: stop,
        )
        failed = 0

        def outcome_of(line: Clip) -> Outcome:
            nonlocal failed
            if line.id in self._known and line.id not in self._outcomes:
                self._outcomes[line.id] = self._recalled(line, self._known[line.id])
            while line.id not in self._outcomes:
                index, result = next(results, (-1, None))
                if result is None:
                    raise _Stopping
                outcome = self._outcome(self.to_decode[index], result)
                self._outcomes[self.to_decode[index].id] = outcome
                failed += isinstance(outcome, ClipFailure)
                bar.advance(**({"failed": failed} if failed else {}))
            return self._outcomes[line.id]

        def weigh(line: Clip) -> float:
            known = self._known_weight(line)
            return _num_bytes(outcome_of(line)) if known is None else known

        plan = []
        with closing(results), suppress(_Stopping):
            for shard in self._plan(weigh):
                if shard.name not in self._kept:
                    if not self._is_current(shard):
                        outcomes = [outcome_of(line) for line in shard.lines]
                        self._write(shard, outcomes)
                    self.num_saved += 1
                    bar.advance(sum(line.id in self._known for line in shard.lines))
                    for line in shard.lines:
                        self._outcomes.pop(line.id, None)
                plan.append(shard)
                if stop:
                    break
        return plan

    def _write(self, shard: PlannedShard, outcomes: Sequence[Outcome]) -> None:
        samples = [sample for outcome in outcomes if not isinstance(outcome, ClipFailure) for sample in outcome]
        failures = [outcome for outcome in outcomes if isinstance(outcome, ClipFailure)]
        # A name that an older shard holds is not taken from it before all new shards are there.
        folder = self._out / NEXT_NAME if receipt_path(self._out / shard.name).exists() else self._out
        self._receipts[shard.name] = write_shard(folder / shard.name, samples, failures, root=self._out)

    def _task(self, line: Clip) -> DecodeTask:
        return DecodeTask(
            clip=line,
            geometry=self._settings.geometry,
            codec=self._settings.codec,
            min_frames=self._settings.min_frames,
            downloads=self._out / DOWNLOADS_NAME,
        )

    def _outcome(self, line: Clip, result: list[DecodedPayload] | Failure) -> Outcome:
        if isinstance(result, Failure):
            return self._failure(line, result.reason, result.message)
        return self._samples(line, result)

    def _recalled(self, line: Clip, remembered: Remembered) -> Outcome:
        """The outcome of an earlier run, under the line's name of today."""
        if isinstance(remembered, ClipFailure):
            return self._failure(line, remembered.reason, remembered.message)
        readers = readers_of(line, self._settings.geometry)
        payloads = []
        for shard, old in remembered:
            try:
                _refuse_short(old.num_frames, self._settings.min_frames)
            except DecodeError as error:
                return self._failure(line, error.reason, str(error))
            data = read_range(shard, old.offset, old.nbytes)
            if old.codec == self._settings.codec != "raw":
                payload = bytes(data)
            else:
                payload = encode_frames(pixels_of(old, data), self._settings.codec)
            payloads.append(
                DecodedPayload(
                    payload,
                    (old.num_frames, old.height, old.width),
                    old.fps,
                    next(name for name in readers if reader_version(name) == old.decoder),
                    read_arrays(old, shard),
                    old.part.begins if old.part else None,
                    old.truncated or "",
                )
            )
        return self._samples(line, payloads)

    def _samples(self, line: Clip, payloads: Sequence[DecodedPayload]) -> list[FrameSample]:
        samples = []
        for number, decoded in enumerate(payloads):
            made_of = line_fingerprint(line, self._settings, decoded.decoder)
            part = None
            if decoded.begins is not None:
                part = Part(of=line.id, fingerprint=made_of, number=number, parts=len(payloads), begins=decoded.begins)
            samples.append(
                FrameSample(
                    id=line.id if part is None else piece_id(line.id, part.begins),
                    split=line.split,
                    label=line.label,
                    fps=decoded.fps,
                    source=line.source,
                    digest=line.digest,
                    fingerprint=made_of if part is None else fingerprint({"line": made_of, "begins": part.begins}),
                    decoder=reader_version(decoded.decoder),
                    codec=self._settings.codec,
                    shape=decoded.shape,
                    payload=decoded.payload,
                    geometry=to_plain(self._settings.geometry),
                    arrays=decoded.arrays,
                    part=part,
                    truncated=decoded.truncated,
                )
            )
        return samples

    def _failure(self, line: Clip, reason: str, message: str) -> ClipFailure:
        return ClipFailure(
            id=line.id,
            source=line.source,
            reason=reason,
            message=message.replace(line.source, Path(line.source).name),  # equal videos, equal bytes, anywhere
            decoder=self._settings.geometry.decoder,
            fingerprint=failure_fingerprint(line, self._settings),
        )


def _by_line(receipt: Receipt) -> dict[str, list[FrameClip]]:
    """The clips of a receipt by the line that they come from, in order."""
    lines: dict[str, list[FrameClip]] = {}
    for clip in receipt.clips:
        lines.setdefault(clip.part.of if clip.part else clip.id, []).append(clip)
    return lines


def _is_whole(clips: Sequence[FrameClip]) -> bool:
    """Whether these are all clips of one line, in order."""
    if clips[0].part is None:
        return len(clips) == 1
    return [clip.part and clip.part.number for clip in clips] == list(range(clips[0].part.parts))


def _made_of(clip: FrameClip) -> str:
    return clip.part.fingerprint if clip.part else clip.fingerprint


def _num_bytes(outcome: Outcome) -> float:
    """What the frames of a line weigh: as `nbytes` of the receipt has it, so raw frames without their header."""
    if isinstance(outcome, ClipFailure):
        return 0.0
    return float(
        sum(math.prod(sample.shape) * 3 if sample.codec == "raw" else len(sample.payload) for sample in outcome)
    )


def _receipts_in(folder: Path, out: Path) -> Iterator[tuple[str, Receipt]]:
    """Finished shards of a folder by name. One cut short, or without its tar, is not finished."""
    opened = opened_sources(out)
    for path in sorted(folder.glob(f"{SHARD_PATTERN}.json")):
        with suppress(ArtefactError):
            yield path.with_suffix(".tar").name, read_receipt(path, opened=opened)


def _reading_seconds(clip: Clip) -> float:
    """How much longer than a small clip this one may take."""
    if is_url(clip.source):
        return DOWNLOAD_SECONDS
    if clip.kind == "bair":  # records are small, however large the file
        return 0.0
    try:
        files = pictures_in(clip.source) if clip.kind == "frames" else [Path(clip.source)]
        return sum(path.stat().st_size for path in files) / SLOWEST_BYTES_PER_SECOND
    except OSError:
        return 0.0


def _memory_share(num_workers: int) -> int | None:
    """Bytes for each worker when all of them together may fill most of the machine's memory; None where unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return max(SMALLEST_MEMORY, int(0.9 * memory) // max(1, num_workers))


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The end -----------------------------------------------------------------------------------------------------------


def _publish(
    out: Path,
    plan: Sequence[PlannedShard],
    receipts: Sequence[Receipt],
    settings: IngestSettings,
    manifest: str,
    began: float,
) -> Provenance:
    """Put new shards in place of the old ones, remove what the plan no longer has, and write the record."""
    names = [shard.name for shard in plan]
    clips = [clip for receipt in receipts for clip in receipt.clips]
    failures = [failure for receipt in receipts for failure in receipt.failures]
    plain, inputs, content = to_plain(settings), {"manifest": manifest}, content_fingerprint(clips)
    waiting = [name for name in names if receipt_path(out / NEXT_NAME / name).exists()]
    obsolete = set(_shards_in(out)) - set(names)
    old = _record_in(out)
    if (
        old is not None
        and not waiting
        and not obsolete
        and not missing_outputs(out, old)
        and (old.version, old.settings, old.inputs, old.fingerprint) == (VERSION, plain, inputs, content)
    ):
        return old
    # From here to the new record the folder is unfinished, and says so.
    record_path(out).unlink(missing_ok=True)
    for name in waiting:
        _move_shard(out / NEXT_NAME / name, out / name)
    if (out / NEXT_NAME).is_dir():
        shutil.rmtree(out / NEXT_NAME)
    _remove_shards(out, keep=names)
    write_failures(out, failures)
    record = Provenance(
        kind="frames",
        stage=STAGE,
        version=VERSION,
        settings=plain,
        inputs=inputs,
        fingerprint=content,
        outputs=output_sizes(out, names),
        counts=frame_counts(clips, failures),
        seconds=round(time.monotonic() - began, 3),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_record(out, record)
    return record


def _move_shard(new: Path, old: Path) -> None:
    """Replace a shard. At no moment does a receipt lie beside the tar of another."""
    receipt_path(old).unlink(missing_ok=True)
    sync_directory(old.parent)
    if new.exists():
        os.replace(new, old)
    else:
        old.unlink(missing_ok=True)
    os.replace(receipt_path(new), receipt_path(old))
    sync_directory(old.parent)


def _shards_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(f"{SHARD_PATTERN}.tar")]


def _remove_shards(folder: Path, keep: Iterable[str]) -> None:
    """Delete all shards of a folder but these, receipts first; with `keep` empty, the record and failures too."""
    kept = {Path(name).stem for name in keep}
    if not kept:
        for name in (RECORD_NAME, FAILURES_NAME):
            (folder / name).unlink(missing_ok=True)
    for suffix in (".json", ".tar"):
        for path in folder.glob(f"{SHARD_PATTERN}{suffix}"):
            if path.stem not in kept:
                path.unlink()


def _record_in(out: Path) -> Provenance | None:
    try:
        return read_record(out)
    except ArtefactError:
        return None


def _refuse_foreign(out: Path) -> None:
    """Never write among files that are not ours.

    Raises:
        ArtefactError: the folder holds something else.
    """
    record = _record_in(out)
    if record is not None and record.kind != "frames":
        raise ArtefactError(f"{out} holds {record.kind}, not frames; choose another output folder")
    ours = {RECORD_NAME, FAILURES_NAME, NEXT_NAME}
    for path in out.iterdir():
        is_shard = path.suffix in (".tar", ".json") and path.match(f"{SHARD_PATTERN}{path.suffix}")
        if path.name not in ours and not is_shard and not path.name.startswith("."):
            raise ArtefactError(f"{out} is not empty and {path.name} is not ours; choose another output folder")


def _nothing_decoded(out: Path, failures: Sequence[ClipFailure]) -> LVTError:
    """The error when there is not one clip; the reasons go to a file unless an older output owns it."""
    if _record_in(out) is None:
        write_failures(out, failures)
    reason = next(iter(_counted(failures)))
    example = next(failure for failure in failures if failure.reason == reason)
    return LVTError(
        f"none of the {len(failures)} clips could be decoded ({_spoken_reasons(failures)}), for example "
        f"{example.id}: {example.message}; when that is mended, run this again (lvt ingest: with --retry-failed)"
    )


def _counted(failures: Sequence[ClipFailure]) -> Mapping[str, int]:
    """How often each reason occurs, the most common first."""
    counts: Mapping[str, int] = frame_counts([], failures)["failures_by_reason"]
    return counts


def _spoken_reasons(failures: Sequence[ClipFailure]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in _counted(failures).items())
