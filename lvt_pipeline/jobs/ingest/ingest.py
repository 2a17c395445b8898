"""Videos to frame shards: each clip is decoded once, in a worker that may die, and never again while unchanged.

The unit of work and of resume is the shard: a tar and its receipt. A killed run, run again, ends with the same bytes as
one that was never killed. A line of the manifest gives one clip, or several where long videos are cut
(`video.scenes`); they stay together.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvt_pipeline.errors import LVTError, OverBudget
from lvt_pipeline.frames.records import FAILURES_NAME, ClipFailure, Receipt, failures_of, frame_counts
from lvt_pipeline.frames.writer import write_failures
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.job import Clock
from lvt_pipeline.jobs.ingest.folder import NEXT_NAME, publish, refuse_foreign, remove_shards, splits_in
from lvt_pipeline.jobs.ingest.job import DOWNLOADS_NAME, IngestJob
from lvt_pipeline.jobs.ingest.settings import JOB, STAGE, IngestSettings
from lvt_pipeline.jobs.ingest.space import require_space
from lvt_pipeline.machine import num_cores, total_memory
from lvt_pipeline.manifest.manifest import manifest_fingerprint, read_manifest
from lvt_pipeline.manifest.splits import content_key, fill_empty_splits
from lvt_pipeline.outputs import record_of, require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.storage import exclusive_lock, remove_leftovers
from lvt_pipeline.video.clips import Clip

CLIP_SECONDS = 120.0  # for opening and decoding a small clip on a busy machine
DEFAULTS = IngestSettings()
SMALLEST_MEMORY = 1 << 30  # bytes; less would stop sound clips


def ingest(
    manifest: Path,
    out: Path,
    settings: IngestSettings = DEFAULTS,
    *,
    num_workers: int | None = None,
    max_failures: float = 0.5,
    retry_failed: bool = False,
    overwrite: bool = False,
    clip_seconds: float = CLIP_SECONDS,
    worker_memory: int | None = None,
    check_space: bool = True,
    damaged: Collection[str] = (),
    progress: Progress = SILENT,
) -> Provenance:
    """Decode every clip of a manifest into frame shards; resume or update an existing folder.

    Args:
        out: folder to create, to finish, or to bring up to date.
        num_workers: decoding processes; None is one per core, 0 decodes in this process without protection.
        max_failures: share of clips that may fail.
        retry_failed: try clips again that failed before and have not changed.
        overwrite: delete the existing shards and decode everything.
        clip_seconds: how long one clip may take before its worker is killed, plus time in proportion to its size.
        worker_memory: bytes that a worker may use for one clip; None is its share of the machine's memory.
        check_space: refuse to begin when the disk has no room for the frames.
        damaged: names of shards that differ from their receipts; they are made again.

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
    clock = Clock()
    require_output_folder(out, STAGE, (manifest,))
    clips = read_manifest(manifest)
    workers = num_cores() if num_workers is None else num_workers
    with exclusive_lock(out), stop_requested() as stop:
        _prepare(out, overwrite)
        run = _Run(out, settings, workers, clip_seconds, worker_memory or _memory_share(workers), stop, progress)
        lines, moved, receipts = run.fill_splits(clips, retry_failed, check_space, damaged)
        failures = failures_of(receipts.values())
        if len(failures) == len(clips):
            raise _nothing_decoded(out, failures)
        _report_moved(lines, moved, {failure.id for failure in failures}, progress)
        recorder = JOB.recorder(settings, {"manifest": manifest_fingerprint(clips)}, clock)
        record = publish(out, receipts, recorder, moved)
    _require_few_failures(out, failures, len(clips), max_failures)
    return record


@dataclass(frozen=True)
class _Run:
    """Where and how a run of ingest decodes."""

    out: Path
    settings: IngestSettings
    num_workers: int
    clip_seconds: float
    worker_memory: int | None
    stop: StopRequest
    progress: Progress

    def fill_splits(
        self, clips: Sequence[Clip], retry_failed: bool, check_space: bool, damaged: Collection[str]
    ) -> tuple[Sequence[Clip], Mapping[str, str], dict[str, Receipt]]:
        """Decode all clips, and move some into splits of which no clip could be decoded.

        Returns:
            the clips with their splits, the contents that were moved with their split, and the receipts of all shards.
        """
        earlier = splits_in(self.out)
        failed = IngestJob(self.out, clips, self.settings, retry_failed).known_failures()
        lines, moved = fill_empty_splits(clips, failed, earlier)
        receipts = self.receipts(lines, retry_failed, check_space, damaged)
        while True:
            failed |= {failure.id for failure in failures_of(receipts.values())}
            filled, moved = fill_empty_splits(clips, failed, earlier)
            if filled == lines:
                return lines, moved, receipts
            # A clip that was alone in its split failed: another one takes its place, copied and not decoded again.
            lines = filled
            receipts = self.receipts(lines)

    def receipts(
        self,
        lines: Sequence[Clip],
        retry_failed: bool = False,
        check_space: bool = False,
        damaged: Collection[str] = (),
    ) -> dict[str, Receipt]:
        """The receipts of all shards of these lines, by name; missing shards are written."""
        job = IngestJob(self.out, lines, self.settings, retry_failed)
        job.look_around(damaged)
        if check_space:
            require_space(self.out, job.to_decode, self.settings, self.num_workers, self.stop)
        with self.progress.bar("decoding", len(lines), "clip", done=job.num_kept) as bar:
            plan = job.make(self.num_workers, self.clip_seconds, self.worker_memory, self.stop, bar)
        shutil.rmtree(self.out / DOWNLOADS_NAME, ignore_errors=True)
        self.stop.raise_if_set(f"{job.num_saved} shards are saved in {self.out}")
        return {shard.name: job.receipt(shard) for shard in plan}


def _report_moved(lines: Sequence[Clip], moved: Collection[str], failed: Collection[str], progress: Progress) -> None:
    for line in lines:
        if content_key(line) in moved and line.id not in failed:
            progress.say(f"{line.id} is in {line.split}, of which no other clip could be decoded")


def _require_few_failures(out: Path, failures: Sequence[ClipFailure], num_clips: int, max_failures: float) -> None:
    if len(failures) > max_failures * num_clips:
        raise OverBudget(
            f"{len(failures)} of {num_clips} clips failed ({_format_reasons(failures)}), more than --max-failures "
            f"{max_failures:g} allows; the others are in {out}, the reasons in {out / FAILURES_NAME}"
        )


def _prepare(out: Path, overwrite: bool) -> None:
    """Remove what a killed run left half-written, and everything if it is to be made again."""
    refuse_foreign(out)
    for folder in (out, out / NEXT_NAME):
        remove_leftovers(folder)
        if overwrite:
            remove_shards(folder, keep=())


def _memory_share(num_workers: int) -> int | None:
    """Bytes for each worker when all of them together may fill most of the memory; None where its size is unknown."""
    memory = total_memory()
    return None if memory is None else max(SMALLEST_MEMORY, int(0.9 * memory) // max(1, num_workers))


def _nothing_decoded(out: Path, failures: Sequence[ClipFailure]) -> LVTError:
    """The error when there is not one clip; the reasons go to a file unless an older output owns it."""
    if record_of(out) is None:
        write_failures(out, failures)
    reason = next(iter(_counted(failures)))
    example = next(failure for failure in failures if failure.reason == reason)
    return LVTError(
        f"none of the {len(failures)} clips could be decoded ({_format_reasons(failures)}), for example "
        f"{example.id}: {example.message}; fix this and run the command again (lvt ingest: with --retry-failed)"
    )


def _counted(failures: Sequence[ClipFailure]) -> Mapping[str, int]:
    """How often each reason occurs, the most common first."""
    counts: Mapping[str, int] = frame_counts([], failures)["failures_by_reason"]
    return counts


def _format_reasons(failures: Sequence[ClipFailure]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in _counted(failures).items())
