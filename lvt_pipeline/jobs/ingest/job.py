"""One run of ingest: it compares the manifest with the results of earlier runs, and names the shards that are missing.

Receipts are compared, clip by clip, with the manifest and the settings of today, so a finished
shard is kept, an unchanged clip is copied, and only new or changed clips are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from lvt_pipeline.config import to_plain
from lvt_pipeline.frames.copies import Tar, local_shard
from lvt_pipeline.frames.records import NEXT_NAME, ClipFailure, FrameClip, Receipt, receipt_name, shard_name
from lvt_pipeline.frames.verify import problem_of
from lvt_pipeline.jobs.ingest.folder import FinishedShard, finished_shards
from lvt_pipeline.jobs.ingest.settings import VERSION, IngestSettings, failure_fingerprint, line_fingerprint
from lvt_pipeline.jobs.ingest.shards import Decoding, PlannedShard, Remembered, ShardTask
from lvt_pipeline.jobs.ingest.workers import START_SECONDS
from lvt_pipeline.jobs.runner import Plan
from lvt_pipeline.manifest.manifest import manifest_fingerprint
from lvt_pipeline.provenance import fingerprint
from lvt_pipeline.storage import Place, open_storage
from lvt_pipeline.video.clips import SPLITS, Clip
from lvt_pipeline.video.locations import exists
from lvt_pipeline.video.read import readers_of


class IngestJob:
    """One run: the lines of the manifest, the results of earlier runs, and those of this one.

    Attributes:
        identity: of the plan: which lines are in which shard, and how they are decoded.
        is_by_size: whether shards are cut by the size of their frames, which nobody knows before they are decoded.
        shards: those that are as they should be, by name.
        known: outcomes of earlier runs, by id of the line.
        to_decode: lines that no earlier run decoded.
        num_lines: of the manifest.
        num_kept: lines in the shards that were found finished.
    """

    def __init__(self, out: Place, lines: Sequence[Clip], settings: IngestSettings, retry_failed: bool) -> None:
        self._out = out
        self._lines = lines
        self._settings = settings
        self._retry_failed = retry_failed
        self.is_by_size = settings.shard_mb is not None
        self._capacity = settings.clips_per_shard if settings.shard_mb is None else settings.shard_mb * 1e6
        self._found: dict[str, list[FinishedShard]] = {}  # by name, wherever they are
        self._frames: dict[str, list[tuple[Tar, FrameClip]]] = {}  # by fingerprint of the line
        self._failures: dict[str, ClipFailure] = {}  # by fingerprint
        self.known: dict[str, Remembered] = {}  # by id of the line
        self._receipts: dict[Tar, Receipt] = {}
        self._sound: dict[Tar, bool] = {}  # as far as that was checked
        self._waiting: set[str] = set()  # files of this plan that were there
        self.shards: dict[str, FinishedShard] = {}
        self.to_decode: list[Clip] = []
        self.num_lines = len(lines)
        self.num_kept = 0
        decides = {"lines": manifest_fingerprint(lines), "settings": to_plain(settings), "retry": retry_failed}
        self.identity = fingerprint({**decides, "version": VERSION})[:16]

    def look_around(self, damaged: Collection[str] = ()) -> None:
        """Read what earlier runs left. Shards of another plan are used too, as far as they are what this one wants.

        Args:
            damaged: published shards of which nothing is used.
        """
        self._waiting = {entry.name for entry in open_storage(self._out).list(f"{NEXT_NAME}/{self.identity}")}
        for shard in finished_shards(self._out):
            if shard.is_staged or shard.name not in damaged:
                self._learn(shard)
        for planned in self._known_plan():
            self.num_kept += len(planned.lines) * self.is_finished(planned)
        kept = {line.id for planned in self._known_plan() if planned.name in self.shards for line in planned.lines}
        others = [line for line in self._lines if line.id not in kept]
        if not self.is_by_size:
            self._remember(others)
        for line in others:
            if not self._is_sound(self.known.get(line.id)):
                del self.known[line.id]
        self.to_decode = [line for line in others if line.id not in self.known]

    def is_finished(self, shard: PlannedShard) -> bool:
        """Whether a shard of the plan is there; it is in `shards` then."""
        if shard.name not in self.shards:
            found = [one for one in self._found.get(shard.name, ()) if self._matches(shard, one)]
            self.shards |= {one.name: one for one in found[:1]}
        return shard.name in self.shards

    def missing(self) -> list[PlannedShard]:
        """The shards of the plan that are not there, when shards are cut by count."""
        return [shard for shard in self._known_plan() if shard.name not in self.shards]

    def task(self, shard: PlannedShard, decoding: Decoding) -> Plan[ShardTask]:
        """The work that a missing shard is."""
        task = ShardTask(shard, {line.id: self.known[line.id] for line in shard.lines if line.id in self.known})
        return Plan(shard.name, task, 2 * START_SECONDS + sum(decoding.seconds(line) for line in task.to_decode))

    def discard(self, shard: PlannedShard) -> None:
        """Remove what waits in place of a missing shard, such as failures to try again; for the owner of the folder."""
        name = f"{NEXT_NAME}/{self.identity}/{receipt_name(shard.name)}"
        open_storage(self._out).delete({name} & self._waiting)

    def known_failures(self) -> set[str]:
        """Ids of the lines that failed in an earlier run and are not tried again."""
        found = set()
        for shard in finished_shards(self._out):
            self._failures |= {failure.fingerprint: failure for failure in shard.receipt.failures}
        for line in self._lines if self._failures else ():
            failure = self._failures.get(failure_fingerprint(line, self._settings))
            if failure is not None and self._still_fails(line, failure):
                found.add(line.id)
        return found

    def _learn(self, shard: FinishedShard) -> None:
        self._receipts[shard.tar] = shard.receipt
        self._found.setdefault(shard.name, []).append(shard)
        for clips in _by_line(shard.receipt).values():
            if _is_whole(clips):
                self._frames[_made_of(clips[0])] = [(shard.tar, clip) for clip in clips]
        self._failures |= {failure.fingerprint: failure for failure in shard.receipt.failures}

    def _is_sound(self, remembered: Remembered | None) -> bool:
        """Whether the shards that hold an earlier outcome have the bytes that were written."""
        if remembered is None or isinstance(remembered, ClipFailure):
            return True
        for shard, _ in remembered:
            if shard not in self._sound:
                receipt = self._receipts[shard]
                tar = local_shard(*shard, is_fresh=True)
                self._sound[shard] = problem_of(tar, shard.digest, receipt.clips) is None
        return all(self._sound[shard] for shard, _ in remembered)

    def _remember(self, lines: Sequence[Clip]) -> None:
        remembered = ((line.id, self._remembered(line)) for line in lines)
        self.known = {id: outcome for id, outcome in remembered if outcome is not None}

    def _known_plan(self) -> Iterator[PlannedShard]:
        """The plan as far as it is known before anything is decoded: all of it when shards are cut by count."""
        if self.is_by_size:
            self._remember(self._lines)
        return self.plan(self.known_weight)

    def plan(self, weigh_bytes: Callable[[Clip], float | None]) -> Iterator[PlannedShard]:
        """The shards of all lines, as far as the weights of lines are known."""
        return plan_shards(self._lines, weigh_bytes if self.is_by_size else lambda line: 1.0, self._capacity)

    def known_weight(self, line: Clip) -> float | None:
        """Bytes of a line's frames as earlier runs left them; None when that is not known."""
        outcome = self.known.get(line.id)
        if outcome is None or isinstance(outcome, ClipFailure):
            return None if outcome is None else 0.0
        if any(clip.codec != self._settings.codec for _, clip in outcome):
            return None
        return float(sum(clip.nbytes for _, clip in outcome))

    def _matches(self, shard: PlannedShard, finished: FinishedShard) -> bool:
        """Whether a finished shard is what would be made today."""
        receipt = finished.receipt
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


def plan_shards(
    lines: Sequence[Clip], weigh: Callable[[Clip], float | None], capacity: float
) -> Iterator[PlannedShard]:
    """Cut each split into shards: one is full as soon as its lines weigh `capacity` or more.

    Equal weights give equal plans, so a plan by bytes is the same whether a line was decoded just now or by an earlier
    run. The lines of a shard are weighed, in order, before it comes out.

    Args:
        weigh: weight of a line; None when it is not known yet, which ends the plan of its split.
    """
    for split in SPLITS:
        index, members, weight = 0, list[Clip](), 0.0
        for line in lines:
            if line.split != split:
                continue
            added = weigh(line)
            if added is None:
                break
            members.append(line)
            weight += added
            if weight >= capacity:
                yield PlannedShard(shard_name(split, index), members)
                index, members, weight = index + 1, [], 0.0
        else:
            if members:
                yield PlannedShard(shard_name(split, index), members)
