"""Videos to frame shards: each clip is decoded once, in a worker that may die, and never again while unchanged.

The unit of work and of resume is the shard: a tar and its receipt. A killed run, run again, ends with the same bytes as
one that was never killed. A line of the manifest gives one clip, or several where long videos are cut
(`video.scenes`); they stay together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lvt_pipeline.errors import LVTError, OverBudget, StoreError
from lvt_pipeline.frames.records import FAILURES_NAME, ClipFailure, failures_of, frame_counts
from lvt_pipeline.frames.writer import write_failures
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.job import Clock, Recorder
from lvt_pipeline.jobs.ingest.folder import (
    FinishedShard,
    begin_plan,
    holds_only_ours,
    publish,
    read_plan,
    remove_shards,
    splits_in,
)
from lvt_pipeline.jobs.ingest.job import IngestJob
from lvt_pipeline.jobs.ingest.settings import JOB, STAGE, IngestSettings
from lvt_pipeline.jobs.ingest.shards import Decoding, PlannedShard, ShardMaker, start_maker
from lvt_pipeline.jobs.ingest.space import require_space
from lvt_pipeline.jobs.runner import LOCAL, ArrayStep, Elsewhere, Runner, require_none_missing
from lvt_pipeline.machine import num_cores, total_memory
from lvt_pipeline.manifest.manifest import manifest_fingerprint, read_manifest
from lvt_pipeline.manifest.splits import Earlier, content_key, fill_empty_splits
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Bar, Progress, count_of
from lvt_pipeline.provenance import Provenance, finished_record
from lvt_pipeline.storage import Place, as_place
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import is_url

CLIP_SECONDS = 120.0  # for opening and decoding a small clip on a busy machine
DEFAULTS = IngestSettings()
SMALLEST_MEMORY = 1 << 30  # bytes; less would stop sound clips


def ingest(
    manifest: Path,
    out: Place | str,
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
    publish_only: bool = False,
    runner: Runner = LOCAL,
    progress: Progress = SILENT,
) -> Provenance:
    """Decode every clip of a manifest into frame shards in a folder `out` that is created, finished or updated.

    Args:
        out: on a disk, or an s3://, gs:// or az:// URL.
        num_workers: decoding processes; None is one per core, 0 decodes in this process without protection.
        max_failures: share of clips that may fail.
        retry_failed: try clips again that failed before and have not changed.
        overwrite: delete the existing shards and decode everything.
        clip_seconds: how long one clip may take before its worker is killed, plus time in proportion to its size.
        worker_memory: bytes that a worker may use for one clip; None is its share of the machine's memory.
        check_space: refuse to begin when the disk has no room for the frames.
        damaged: names of shards that differ from their receipts; they are made again.
        publish_only: refuse to decode: the last step of a job array.

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
    clock, out = Clock(), as_place(out)
    require_output_folder(out, STAGE, (manifest,))
    clips = read_manifest(manifest)
    decoding = _decoding(num_workers, clip_seconds, worker_memory)
    recorder = JOB.recorder(settings, {"manifest": manifest_fingerprint(clips)}, clock)
    with JOB.own_folder(out, partial(holds_only_ours, out)) as stop:
        if overwrite:
            remove_shards(out, keep=())
        run = _Run(out, recorder, settings, decoding, runner, stop, progress)
        if publish_only:
            run.require_shards(clips)
        finish = partial(run.finish, clips, retry_failed, check_space, damaged)
        try:
            record, failures = finish()
        except StoreError:  # in a bucket another process with this plan was quicker: its shards are there now
            record, failures = finish()
    _require_few_failures(out, failures, len(clips), max_failures)
    return record


@dataclass(frozen=True)
class ShardCounts:
    """The shards of a plan, and how many of them are not there."""

    num_shards: int
    num_missing: int


def ingest_step(
    manifest: Path,
    out: Place,
    settings: IngestSettings,
    step: ArrayStep,
    *,
    num_workers: int | None = None,
    worker_memory: int | None = None,
    overwrite: bool = False,
    check_space: bool = True,
    progress: Progress = SILENT,
) -> ShardCounts:
    """One process of a job array: decide which shard holds which clips, or make some of them; else as `ingest`.

    Raises:
        LVTError: shards are cut by size, which one process does alone.
    """
    require_output_folder(out, STAGE, (manifest,))
    clips = read_manifest(manifest)
    if settings.shard_mb is not None:
        raise _sized_elsewhere()
    decoding = _decoding(num_workers, CLIP_SECONDS, worker_memory)
    recorder = JOB.recorder(settings, {"manifest": manifest_fingerprint(clips)})
    if step.kind == "shards":
        with stop_requested() as stop:
            return _Run(out, recorder, settings, decoding, LOCAL, stop, progress).help_with(step, clips)
    with JOB.own_folder(out, partial(holds_only_ours, out)) as stop:
        if overwrite:
            remove_shards(out, keep=())
        return _Run(out, recorder, settings, decoding, LOCAL, stop, progress).begin(clips, check_space)


def _decoding(num_workers: int | None, clip_seconds: float, worker_memory: int | None) -> Decoding:
    workers = num_cores() if num_workers is None else num_workers
    return Decoding(workers, clip_seconds, worker_memory or _memory_share(workers))


@dataclass(frozen=True)
class _Run:
    """Where and how a run of ingest decodes."""

    out: Place
    recorder: Recorder
    settings: IngestSettings
    decoding: Decoding
    runner: Runner
    stop: StopRequest
    progress: Progress

    def finish(
        self, clips: Sequence[Clip], retry_failed: bool, check_space: bool, damaged: Collection[str]
    ) -> tuple[Provenance, list[ClipFailure]]:
        """Make and publish all shards; the record, and the clips that failed."""
        lines, moved, shards = self.fill_splits(clips, retry_failed, check_space, damaged)
        failures = failures_of(shard.receipt for shard in shards)
        if len(failures) == len(clips):
            raise _nothing_decoded(self.out, failures)
        _report_moved(lines, moved, {failure.id for failure in failures}, self.progress)
        return publish(self.out, shards, self.recorder, moved), failures

    def fill_splits(
        self, clips: Sequence[Clip], retry_failed: bool, check_space: bool, damaged: Collection[str]
    ) -> tuple[Sequence[Clip], Mapping[str, str], list[FinishedShard]]:
        """Decode all clips, and move some into splits of which no clip could be decoded.

        Returns:
            the clips with their splits, the contents that were moved with their split, and all shards.
        """
        earlier = splits_in(self.out)
        failed = IngestJob(self.out, clips, self.settings, retry_failed).known_failures()
        lines, moved = fill_empty_splits(clips, failed, earlier)
        shards = self.shards(self._job(lines, retry_failed, damaged), moved, check_space)
        while True:
            failed |= {failure.id for failure in failures_of(shard.receipt for shard in shards)}
            filled, moved = fill_empty_splits(clips, failed, earlier)
            if filled == lines:
                return lines, moved, shards
            # A clip that was alone in its split failed: another one takes its place, copied and not decoded again.
            lines = filled
            shards = self.shards(self._job(lines), moved)

    def begin(self, clips: Sequence[Clip], check_space: bool) -> ShardCounts:
        """Let the processes of a job array make the shards."""
        failed = IngestJob(self.out, clips, self.settings, False).known_failures()
        lines, moved = fill_empty_splits(clips, failed, splits_in(self.out))
        job = self._job(lines)
        missing = job.missing()
        if missing:
            self._begin(job, moved, check_space)
            for shard in missing:
                job.discard(shard)
        return ShardCounts(len(missing) + len(job.shards), len(missing))

    def help_with(self, step: ArrayStep, clips: Sequence[Clip]) -> ShardCounts:
        """Make some shards of a plan that another process has begun."""
        job = self._begun_job(clips)
        names = {shard.name for shard in job.missing()}
        mine = [shard for shard in step.share(list(job.plan(job.known_weight))) if shard.name in names]
        maker = ShardMaker(self.out, job.identity, self.settings, self.decoding)
        tasks = [job.task(shard, self.decoding).work for shard in mine]
        with self.progress.bar("decoding", sum(len(task.shard.lines) for task in tasks), "clips") as bar:
            made = list(maker(tasks, bar, lambda: self.stop))
        if len(made) < len(tasks):
            self.stop.raise_if_set(f"{len(made)} of {len(tasks)} shards are saved in {self.out}")
        return ShardCounts(len(names) + len(job.shards), len(names) - len(made))

    def require_shards(self, clips: Sequence[Clip]) -> None:
        """Refuse to publish while shards of the plan that was begun are missing."""
        job = self._begun_job(clips)
        missing = [shard.name for shard in job.missing()]
        require_none_missing(self.out, missing, len(missing) + len(job.shards))

    def _begun_job(self, clips: Sequence[Clip]) -> IngestJob:
        """The plan that was begun. It names the contents that it moves: failures that came later move no more."""
        plan, moved = read_plan(self.out)
        earlier = Earlier(moved=moved) if plan else splits_in(self.out)
        return self._job(fill_empty_splits(clips, set(), earlier)[0])

    def _job(self, lines: Sequence[Clip], retry_failed: bool = False, damaged: Collection[str] = ()) -> IngestJob:
        job = IngestJob(self.out, lines, self.settings, retry_failed)
        job.look_around(damaged)
        return job

    def _begin(self, job: IngestJob, moved: Mapping[str, str], check_space: bool) -> None:
        if check_space:
            require_space(self.out, job.to_decode, self.settings, self.decoding.num_workers, self.stop)
        begin_plan(self.out, job.identity, moved, command=self.recorder.new_record().recipe)

    def shards(self, job: IngestJob, moved: Mapping[str, str], check_space: bool = False) -> list[FinishedShard]:
        """All shards of a plan, in order; missing ones are made."""
        self._begin(job, moved, check_space)
        make = self._make_by_size if job.is_by_size else self._make
        with self.progress.bar("decoding", job.num_lines, "clips", done=job.num_kept) as bar:
            plan = make(job, bar)
        return [job.shards[shard.name] for shard in plan]

    def _make(self, job: IngestJob, bar: Bar) -> list[PlannedShard]:
        """Make the missing shards and return the plan."""
        missing = job.missing()
        for shard in missing:
            job.discard(shard)
        here = ShardMaker(self.out, job.identity, self.settings, self.decoding)
        decoding = replace(self.decoding, num_workers=1)
        sources = [Path(line.source) for line in job.to_decode if not is_url(line.source)][:1]
        paths: list[Place] = [*(source for source in sources if source.exists()), self.out.absolute()]
        start = partial(start_maker, paths[-1], job.identity, self.settings, decoding)
        tasks = [job.task(shard, self.decoding) for shard in missing]
        workers = here, Elsewhere(start, paths)
        for made in self.runner.make(workers, tasks, bar, self.stop, lambda done: self._saved(job)):
            job.shards[made.name] = made
        return list(job.plan(job.known_weight))

    def _make_by_size(self, job: IngestJob, bar: Bar) -> list[PlannedShard]:
        """The same for shards whose plan is known as far as their lines are decoded."""
        if not self.runner.is_local:
            raise _sized_elsewhere()
        maker = ShardMaker(self.out, job.identity, self.settings, self.decoding)

        def weigh(line: Clip) -> float:
            known = job.known_weight(line)
            return maker.weigh(line, job.known) if known is None else known

        plan = []
        with maker.decoding(job.to_decode, bar, lambda: self.stop):
            for shard in job.plan(weigh):
                if not job.is_finished(shard):
                    job.discard(shard)
                    job.shards[shard.name] = maker.make(job.task(shard, self.decoding).work)
                plan.append(shard)
                if self.stop:
                    break
        self.stop.raise_if_set(self._saved(job))
        return plan

    def _saved(self, job: IngestJob) -> str:
        return f"finished shards in {self.out}: {len(job.shards)}"


def _sized_elsewhere() -> LVTError:
    return LVTError(
        "shards of a given size (--shard-mb) are cut while they are decoded, by one process on one machine; use "
        "--clips-per-shard, or leave out the options for several processes or machines"
    )


def _report_moved(lines: Sequence[Clip], moved: Collection[str], failed: Collection[str], progress: Progress) -> None:
    for line in lines:
        if content_key(line) in moved and line.id not in failed:
            progress.say(f"{line.id} is in {line.split}, of which no other clip could be decoded")


def _require_few_failures(out: Place, failures: Sequence[ClipFailure], num_clips: int, max_failures: float) -> None:
    if len(failures) > max_failures * num_clips:
        raise OverBudget(
            f"{len(failures)} of {num_clips} clips failed ({_format_reasons(failures)}), more than --max-failures "
            f"{max_failures:g} allows; the others are in {out}, the reasons in {out / FAILURES_NAME}"
        )


def _memory_share(num_workers: int) -> int | None:
    """Bytes for each worker when all of them together may fill most of the memory; None where its size is unknown."""
    memory = total_memory()
    return None if memory is None else max(SMALLEST_MEMORY, int(0.9 * memory) // max(1, num_workers))


def _nothing_decoded(out: Place, failures: Sequence[ClipFailure]) -> LVTError:
    """The error when there is not one clip; the reasons go to a file unless an older output owns it."""
    if finished_record(out) is None:
        write_failures(out, failures)
    reason = next(iter(_counted(failures)))
    example = next(failure for failure in failures if failure.reason == reason)
    return LVTError(
        f"0 of {count_of(len(failures), 'clip')} could be decoded ({_format_reasons(failures)}), for example "
        f"{example.id}: {example.message}; fix this and run the command again (lvt ingest: with --retry-failed)"
    )


def _counted(failures: Sequence[ClipFailure]) -> Mapping[str, int]:
    """How often each reason occurs, the most common first."""
    counts: Mapping[str, int] = frame_counts([], failures)["failures_by_reason"]
    return counts


def _format_reasons(failures: Sequence[ClipFailure]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in _counted(failures).items())
