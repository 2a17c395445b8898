"""One run of ingest: it compares the manifest with the results of earlier runs, then decodes and writes the rest.

Receipts are compared, clip by clip, with the manifest and the settings of today, so a finished
shard is kept, an unchanged clip is copied, and only new or changed clips are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from lvt_pipeline import lineage
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import DecodeError
from lvt_pipeline.frames.codecs import encode_frames
from lvt_pipeline.frames.records import ClipFailure, FrameClip, FrameSample, Part, Receipt, receipt_path
from lvt_pipeline.frames.shards import pixels_of, read_arrays, read_range
from lvt_pipeline.frames.verify import problem_of
from lvt_pipeline.frames.writer import write_shard
from lvt_pipeline.interrupts import StopRequest
from lvt_pipeline.jobs.ingest.folder import NEXT_NAME, receipts_in, remove_shards
from lvt_pipeline.jobs.ingest.plan import PlannedShard, plan_shards
from lvt_pipeline.jobs.ingest.settings import IngestSettings, failure_fingerprint, line_fingerprint
from lvt_pipeline.jobs.ingest.tasks import DecodedPayload, DecodeTask, decode_task, refuse_short
from lvt_pipeline.jobs.ingest.workers import Failure, run_isolated
from lvt_pipeline.progress import Bar
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import exists, is_url
from lvt_pipeline.video.picture_folders import pictures_in
from lvt_pipeline.video.read import reader_version, readers_of
from lvt_pipeline.video.scenes import piece_id

DOWNLOADS_NAME = ".downloads.partial"  # copies of videos behind URLs; the next run removes those of a killed one
SLOWEST_BYTES_PER_SECOND = 100_000.0  # a larger file may take longer than a small one
DOWNLOAD_SECONDS = 1800.0  # and longer for videos behind URLs, whose size is not known here

Outcome = list[FrameSample] | ClipFailure
Remembered = list[tuple[Path, FrameClip]] | ClipFailure  # clips with their shard, or why there are none


class _Stopping(Exception):
    """There will be no more results."""


class IngestJob:
    """One run: the lines of the manifest, the results of earlier runs, and those of this one."""

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
        self._learned: dict[Path, Receipt] = {}  # by shard, those in `next/` too
        self._sound: dict[Path, bool] = {}  # by shard, as far as that was checked
        self._kept: set[str] = set()  # shards that are as they should be
        self.to_decode: list[Clip] = []
        self.num_kept = 0  # lines
        self.num_saved = 0  # shards
        self._num_failed = 0  # lines decoded in this run

    def look_around(self, damaged: Collection[str] = ()) -> None:
        """Read what earlier runs left. Shards that wait in `next/` for another plan than this one are removed.

        Args:
            damaged: shards of which nothing is used.
        """
        for name, receipt in receipts_in(self._out, self._out):
            if name not in damaged:
                self._learn(self._out / name, receipt)
        older = dict(self._frames), dict(self._failures)
        waiting = dict(receipts_in(self._out / NEXT_NAME, self._out))
        for name, receipt in waiting.items():
            self._learn(self._out / NEXT_NAME / name, receipt, keep=False)
        plan = {shard.name: shard for shard in self._known_plan()} if waiting else {}
        wanted = [name for name in waiting if name in plan and self._matches(plan[name], waiting[name])]
        remove_shards(self._out / NEXT_NAME, wanted)
        if len(wanted) < len(waiting):  # the clips of the others were removed with them
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
        for line in others:
            if not self._is_sound(self._known.get(line.id)):
                del self._known[line.id]
        self.to_decode = [line for line in others if line.id not in self._known]

    def known_failures(self) -> set[str]:
        """Ids of the lines that failed in an earlier run and are not tried again."""
        found = set()
        for folder in (self._out, self._out / NEXT_NAME):
            for _, receipt in receipts_in(folder, self._out):
                self._failures |= {failure.fingerprint: failure for failure in receipt.failures}
        for line in self._lines if self._failures else ():
            failure = self._failures.get(failure_fingerprint(line, self._settings))
            if failure is not None and self._still_fails(line, failure):
                found.add(line.id)
        return found

    def _learn(self, shard: Path, receipt: Receipt, *, keep: bool = True) -> None:
        self._learned[shard] = receipt
        if keep:
            self._receipts[shard.name] = receipt
        for clips in _by_line(receipt).values():
            if _is_whole(clips):
                self._frames[_made_of(clips[0])] = [(shard, clip) for clip in clips]
        self._failures |= {failure.fingerprint: failure for failure in receipt.failures}

    def _is_sound(self, remembered: Remembered | None) -> bool:
        """Whether the shards that hold an earlier outcome have the bytes that were written."""
        if remembered is None or isinstance(remembered, ClipFailure):
            return True
        for shard, _ in remembered:
            if shard not in self._sound:
                receipt = self._learned[shard]
                self._sound[shard] = problem_of(shard, receipt.digest or "", receipt.clips) is None
        return all(self._sound[shard] for shard, _ in remembered)

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
        """Write the missing shards, each as soon as its last line is there, and return the whole plan.

        A stop request ends it early, with the plan as far as it got.
        """
        results = run_isolated(
            decode_task,
            [DecodeTask(line, self._settings, self._out / DOWNLOADS_NAME) for line in self.to_decode],
            num_workers=num_workers,
            deadline_seconds=lambda task: clip_seconds + _reading_seconds(task.clip),
            memory_bytes=worker_memory,
            window=max(self._settings.clips_per_shard, 2 * num_workers),
            should_stop=lambda: stop,
        )

        def weigh(line: Clip) -> float:
            known = self._known_weight(line)
            return _num_bytes(self._outcome_of(line, results, bar)) if known is None else known

        plan = []
        with closing(results), suppress(_Stopping):
            for shard in self._plan(weigh):
                if shard.name not in self._kept:
                    if not self._is_current(shard):
                        self._write(shard, [self._outcome_of(line, results, bar) for line in shard.lines])
                    self.num_saved += 1
                    bar.advance(sum(line.id in self._known for line in shard.lines))
                    for line in shard.lines:
                        self._outcomes.pop(line.id, None)
                plan.append(shard)
                if stop:
                    break
        return plan

    def _outcome_of(
        self, line: Clip, results: Iterator[tuple[int, list[DecodedPayload] | Failure]], bar: Bar
    ) -> Outcome:
        """The outcome of a line: of an earlier run, or as soon as the results of this one contain it."""
        if line.id in self._known and line.id not in self._outcomes:
            self._outcomes[line.id] = self._recalled(line, self._known[line.id])
        while line.id not in self._outcomes:
            index, result = next(results, (-1, None))
            if result is None:
                raise _Stopping
            decoded = self.to_decode[index]
            if isinstance(result, Failure):
                self._num_failed += 1
                self._outcomes[decoded.id] = self._failure(decoded, result.reason, result.message)
            else:
                self._outcomes[decoded.id] = self._samples(decoded, result)
            bar.advance(**({"failed": self._num_failed} if self._num_failed else {}))
        return self._outcomes[line.id]

    def _write(self, shard: PlannedShard, outcomes: Sequence[Outcome]) -> None:
        samples = [sample for outcome in outcomes if not isinstance(outcome, ClipFailure) for sample in outcome]
        failures = [outcome for outcome in outcomes if isinstance(outcome, ClipFailure)]
        # A name that an older shard holds is not taken from it before all new shards are there.
        folder = self._out / NEXT_NAME if receipt_path(self._out / shard.name).exists() else self._out
        self._receipts[shard.name] = write_shard(folder / shard.name, samples, failures, root=self._out)

    def _recalled(self, line: Clip, remembered: Remembered) -> Outcome:
        """The outcome of an earlier run, under the line's name of today."""
        if isinstance(remembered, ClipFailure):
            return self._failure(line, remembered.reason, remembered.message)
        readers = readers_of(line, self._settings.geometry)
        payloads = []
        for shard, old in remembered:
            try:
                refuse_short(old.num_frames, self._settings.min_frames)
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
                    old.notes or (),
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
                    fingerprint=made_of if part is None else lineage.piece_frames_fingerprint(made_of, part.begins),
                    decoder=reader_version(decoded.decoder),
                    codec=self._settings.codec,
                    shape=decoded.shape,
                    payload=decoded.payload,
                    geometry=to_plain(self._settings.geometry),
                    arrays=decoded.arrays,
                    part=part,
                    truncated=decoded.truncated,
                    notes=decoded.notes,
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
    """Bytes of the frames of a line, counted as `nbytes` of the receipt, so raw frames without their header."""
    if isinstance(outcome, ClipFailure):
        return 0.0
    return float(
        sum(math.prod(sample.shape) * 3 if sample.codec == "raw" else len(sample.payload) for sample in outcome)
    )


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
