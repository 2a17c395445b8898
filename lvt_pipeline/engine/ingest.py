"""Videos to frame shards: each clip is decoded once, in a worker that may die, and never again while unchanged.

The unit of work and of resume is the shard: a tar and its receipt. What a receipt says is compared, clip by clip, with
what the manifest and the settings ask for today, so a finished shard is kept, an unchanged clip is copied, and only
what is new or changed is decoded. A killed run, run again, ends with the same bytes as one that was never killed.

While an existing output is brought up to date its new shards wait in `next/`; the old ones stay readable until all new
ones are complete.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lvt_pipeline.config import to_plain
from lvt_pipeline.data.frames import (
    FAILURES_NAME,
    SPLITS,
    ClipFailure,
    Codec,
    FrameClip,
    FrameSample,
    Receipt,
    content_fingerprint,
    encode_frames,
    frame_counts,
    output_sizes,
    pixels_of,
    read_range,
    read_receipt,
    receipt_path,
    shard_name,
    write_failures,
    write_shard,
)
from lvt_pipeline.data.manifest import Clip, manifest_fingerprint, read_manifest
from lvt_pipeline.data.videos import DECODERS, GeometrySettings, decode_clip, decoder_version
from lvt_pipeline.engine.executors import Failure, run_isolated
from lvt_pipeline.errors import ArtefactError, ConfigError, DecodeError, LVTError, OverBudget
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.provenance import (
    RECORD_NAME,
    Provenance,
    digest_file,
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
SHARD_PATTERN = "*-[0-9][0-9][0-9][0-9][0-9][0-9]"

CLIP_SECONDS = 120.0  # for opening and decoding a small clip on a busy machine
SLOWEST_BYTES_PER_SECOND = 100_000.0  # and longer for larger files


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Everything that decides the bytes of the shards."""

    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    codec: Codec = "raw"  # png is lossless too, about half the size and much slower to read
    clips_per_shard: int = 64
    min_frames: int = 1  # a clip with fewer frames is a failure

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1 or self.min_frames < 1:
            raise ConfigError("clips_per_shard and min_frames are at least 1")


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

    Returns:
        The record; its counts are clips, frames, failures and failures_by_reason.

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
        plan = plan_shards(clips, settings.clips_per_shard)
        job = _Job(out, settings, retry_failed)
        job.look_around(plan)
        stale = [shard for shard in plan if not job.is_current(shard)]
        workers = _available_cores() if num_workers is None else num_workers
        with progress.bar("decoding", len(clips), "clip", done=_num_clips(plan) - _num_clips(stale)) as bar:
            job.make(stale, workers, clip_seconds, stop, bar)
        stop.raise_if_set(f"{len(plan) - len(stale) + job.num_written} of {len(plan)} shards are saved in {out}")
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


# The plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedShard:
    """A shard that the manifest asks for: its file name and its clips, in manifest order."""

    name: str
    clips: list[Clip]


def plan_shards(clips: Sequence[Clip], clips_per_shard: int) -> list[PlannedShard]:
    """Cut each split into shards. It depends on the manifest alone, not on which clips will fail."""
    plan = []
    for split in SPLITS:
        members = [clip for clip in clips if clip.split == split]
        for index, first in enumerate(range(0, len(members), clips_per_shard)):
            plan.append(PlannedShard(shard_name(split, index), members[first : first + clips_per_shard]))
    return plan


def frames_fingerprint(clip: Clip, geometry: GeometrySettings, decoder: str) -> str:
    """Hash of what a clip's frames are made of, when this decoder reads it."""
    return fingerprint(
        {
            "clip": clip.fingerprint,
            "geometry": to_plain(geometry),
            "decoder": decoder_version(decoder),
            "version": VERSION,
        }
    )


def failure_fingerprint(clip: Clip, settings: IngestSettings) -> str:
    """Hash of what was tried on a clip that failed."""
    return fingerprint(
        {
            "clip": clip.fingerprint,
            "geometry": to_plain(settings.geometry),
            "decoders": [decoder_version(decoder) for decoder in _decoders(settings)],
            "min_frames": settings.min_frames,
            "version": VERSION,
        }
    )


def _decoders(settings: IngestSettings) -> tuple[str, ...]:
    chosen = settings.geometry.decoder
    return DECODERS if chosen == "auto" else (chosen,)


def _num_clips(shards: Iterable[PlannedShard]) -> int:
    return sum(len(shard.clips) for shard in shards)


# What a worker does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeTask:
    """What a worker needs to decode one clip."""

    source: str
    digest: str
    start: float | None
    end: float | None
    geometry: GeometrySettings
    codec: Codec
    min_frames: int


@dataclass(frozen=True)
class DecodedPayload:
    """What a worker sends back: the clip as it will lie in the shard."""

    payload: bytes
    shape: tuple[int, int, int]
    fps: float
    decoder: str


def decode_task(task: DecodeTask) -> DecodedPayload:
    """Decode and pack one clip. Runs in a worker process.

    Raises:
        DecodeError: with a reason.
    """
    if os.path.isfile(task.source):
        status = os.stat(task.source)
        if _digest(task.source, status.st_size, status.st_mtime_ns) != task.digest:
            raise DecodeError(
                "changed", f"{task.source} has changed since the manifest was made; run `lvt manifest build` again"
            )
    clip = decode_clip(task.source, task.start, task.end, task.geometry)
    num_frames, height, width, _ = clip.frames.shape
    _refuse_short(num_frames, task.min_frames)
    return DecodedPayload(encode_frames(clip.frames, task.codec), (num_frames, height, width), clip.fps, clip.decoder)


def _refuse_short(num_frames: int, min_frames: int) -> None:
    if num_frames < min_frames:
        raise DecodeError("too-short", f"the clip has {num_frames} frames, at least {min_frames} are asked for")


@lru_cache(maxsize=8)
def _digest(source: str, size: int, mtime_ns: int) -> str:
    """Digest of a file's bytes; many clips of one video hash it once."""
    return digest_file(Path(source))


# What this process does --------------------------------------------------------------------------------------------

Outcome = FrameSample | ClipFailure
Remembered = tuple[Path, FrameClip] | ClipFailure  # frames with the shard they lie in, or why there are none


class _Job:
    """One run: what is wanted, what earlier runs left, and what was written."""

    def __init__(self, out: Path, settings: IngestSettings, retry_failed: bool) -> None:
        self._out = out
        self._settings = settings
        self._retry_failed = retry_failed
        self._receipts: dict[str, Receipt] = {}  # by name of the shard
        self._frames: dict[str, tuple[Path, FrameClip]] = {}  # by fingerprint, with the shard they lie in
        self._failures: dict[str, ClipFailure] = {}  # by fingerprint
        self.num_written = 0

    def look_around(self, plan: Sequence[PlannedShard]) -> None:
        """Learn what is on disk. Shards that wait in `next/` for another plan than this one are removed."""
        for name, receipt in _receipts_in(self._out, self._out):
            self._learn(self._out / name, receipt)
        wanted = {shard.name: shard for shard in plan}
        keep = []
        for name, receipt in _receipts_in(self._out / NEXT_NAME, self._out):
            if name in wanted and self._matches(wanted[name], receipt):
                self._learn(self._out / NEXT_NAME / name, receipt)
                keep.append(name)
        _remove_shards(self._out / NEXT_NAME, keep)

    def _learn(self, shard: Path, receipt: Receipt) -> None:
        self._receipts[shard.name] = receipt
        self._frames |= {clip.fingerprint: (shard, clip) for clip in receipt.clips}
        self._failures |= {failure.fingerprint: failure for failure in receipt.failures}

    def receipt(self, shard: PlannedShard) -> Receipt:
        """The receipt of a shard that is done."""
        return self._receipts[shard.name]

    def is_current(self, shard: PlannedShard) -> bool:
        """Whether the shard on disk is what would be written today."""
        return shard.name in self._receipts and self._matches(shard, self._receipts[shard.name])

    def _matches(self, shard: PlannedShard, receipt: Receipt) -> bool:
        frames = {clip.id: clip for clip in receipt.clips}
        failures = {failure.id: failure for failure in receipt.failures}
        by_kind = [clip.id for clip in shard.clips if clip.id in frames]
        by_kind += [clip.id for clip in shard.clips if clip.id not in frames]
        return by_kind == [*frames, *failures] and all(
            self._is_same(clip, frames[clip.id]) if clip.id in frames else self._still_fails(clip, failures[clip.id])
            for clip in shard.clips
        )

    def _is_same(self, clip: Clip, frames: FrameClip) -> bool:
        return (
            (frames.split, frames.label, frames.digest) == (clip.split, clip.label, clip.digest)
            and frames.codec == self._settings.codec
            and frames.num_frames >= self._settings.min_frames
            and frames.fingerprint in self._wanted(clip)
        )

    def _still_fails(self, clip: Clip, failure: ClipFailure) -> bool:
        if self._retry_failed or failure.fingerprint != failure_fingerprint(clip, self._settings):
            return False
        return failure.reason != "missing" or not os.path.exists(clip.source)

    def _wanted(self, clip: Clip) -> list[str]:
        """Fingerprints that the clip's frames may have."""
        return [frames_fingerprint(clip, self._settings.geometry, decoder) for decoder in _decoders(self._settings)]

    def _remembered(self, clip: Clip) -> Remembered | None:
        """Frames or failure of an earlier run that still hold for this clip."""
        for wanted in self._wanted(clip):
            if wanted in self._frames:
                return self._frames[wanted]
        failure = self._failures.get(failure_fingerprint(clip, self._settings))
        return failure if failure is not None and self._still_fails(clip, failure) else None

    def make(
        self, shards: Sequence[PlannedShard], num_workers: int, clip_seconds: float, stop: StopRequest, bar: Bar
    ) -> None:
        """Write these shards, in order, each as soon as its last clip is there. A stop request ends it early."""
        known = {clip.id: self._remembered(clip) for shard in shards for clip in shard.clips}
        clips = [clip for shard in shards for clip in shard.clips if known[clip.id] is None]
        results = run_isolated(
            decode_task,
            [self._task(clip) for clip in clips],
            num_workers=num_workers,
            deadline_seconds=lambda task: clip_seconds + _size(task.source) / SLOWEST_BYTES_PER_SECOND,
            window=self._settings.clips_per_shard,
            should_stop=lambda: stop,
        )
        outcomes: dict[str, Outcome] = {}
        facts: dict[str, int] = {}
        with closing(results):
            for shard in shards:
                while not all(clip.id in outcomes or known[clip.id] for clip in shard.clips):
                    index, result = next(results, (-1, None))
                    if result is None:
                        return
                    outcome = self._outcome(clips[index], result)
                    outcomes[outcome.id] = outcome
                    if isinstance(outcome, ClipFailure):
                        facts["failed"] = facts.get("failed", 0) + 1
                    bar.advance(**facts)
                bar.advance(sum(known[clip.id] is not None for clip in shard.clips))
                self._write(
                    shard,
                    [
                        outcomes.pop(clip.id) if clip.id in outcomes else self._recalled(clip, known[clip.id])
                        for clip in shard.clips
                    ],
                )
                if stop:
                    return

    def _write(self, shard: PlannedShard, members: Sequence[Outcome]) -> None:
        samples = [member for member in members if isinstance(member, FrameSample)]
        failures = [member for member in members if isinstance(member, ClipFailure)]
        # A name that an older shard holds is not taken from it before all new shards are there.
        folder = self._out / NEXT_NAME if receipt_path(self._out / shard.name).exists() else self._out
        self._receipts[shard.name] = write_shard(folder / shard.name, samples, failures, root=self._out)
        self.num_written += 1

    def _task(self, clip: Clip) -> DecodeTask:
        return DecodeTask(
            source=clip.source,
            digest=clip.digest,
            start=clip.start,
            end=clip.end,
            geometry=self._settings.geometry,
            codec=self._settings.codec,
            min_frames=self._settings.min_frames,
        )

    def _outcome(self, clip: Clip, result: DecodedPayload | Failure) -> Outcome:
        if isinstance(result, Failure):
            return self._failure(clip, result.reason, result.message)
        return self._sample(clip, result)

    def _recalled(self, clip: Clip, remembered: Remembered | None) -> Outcome:
        """The outcome of an earlier run, under the clip's name of today."""
        assert remembered is not None
        if isinstance(remembered, ClipFailure):
            return self._failure(clip, remembered.reason, remembered.message)
        shard, old = remembered
        try:
            _refuse_short(old.num_frames, self._settings.min_frames)
        except DecodeError as error:
            return self._failure(clip, error.reason, str(error))
        frames = pixels_of(old, read_range(shard, old.offset, old.nbytes))
        decoder = next(name for name in _decoders(self._settings) if decoder_version(name) == old.decoder)
        payload = encode_frames(frames, self._settings.codec)
        return self._sample(clip, DecodedPayload(payload, (old.num_frames, old.height, old.width), old.fps, decoder))

    def _sample(self, clip: Clip, decoded: DecodedPayload) -> FrameSample:
        geometry = self._settings.geometry
        return FrameSample(
            id=clip.id,
            split=clip.split,
            label=clip.label,
            fps=decoded.fps,
            source=clip.source,
            digest=clip.digest,
            fingerprint=frames_fingerprint(clip, geometry, decoded.decoder),
            decoder=decoder_version(decoded.decoder),
            codec=self._settings.codec,
            shape=decoded.shape,
            payload=decoded.payload,
            geometry=to_plain(geometry),
        )

    def _failure(self, clip: Clip, reason: str, message: str) -> ClipFailure:
        return ClipFailure(
            id=clip.id,
            source=clip.source,
            reason=reason,
            message=message.replace(clip.source, Path(clip.source).name),  # equal videos, equal bytes, anywhere
            decoder=self._settings.geometry.decoder,
            fingerprint=failure_fingerprint(clip, self._settings),
        )


def _receipts_in(folder: Path, out: Path) -> Iterator[tuple[str, Receipt]]:
    """Finished shards of a folder by name. One cut short, or without its tar, is not finished."""
    for path in sorted(folder.glob(f"{SHARD_PATTERN}.json")):
        with suppress(ArtefactError):
            yield path.with_suffix(".tar").name, read_receipt(path, root=out)


def _size(source: str) -> int:
    try:
        return os.path.getsize(source)
    except OSError:
        return 0


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
