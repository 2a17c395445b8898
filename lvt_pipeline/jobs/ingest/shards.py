"""The worker of ingest: decodes the lines of shards in processes that may die, or copies what earlier runs decoded."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import DecodeError, StoreError
from lvt_pipeline.frames.codecs import Codec, encode_frames, lossy_version
from lvt_pipeline.frames.copies import Tar, local_shard
from lvt_pipeline.frames.records import NEXT_NAME, ClipFailure, FrameClip, FrameSample, Part, pixels_fingerprint
from lvt_pipeline.frames.shards import pixels_of, read_arrays, read_range
from lvt_pipeline.frames.verify import require_sound
from lvt_pipeline.frames.writer import stage_shard
from lvt_pipeline.jobs.ingest.folder import FinishedShard, read_plan
from lvt_pipeline.jobs.ingest.settings import IngestSettings, failure_fingerprint, line_fingerprint
from lvt_pipeline.jobs.ingest.workers import Failure, run_isolated
from lvt_pipeline.progress import Bar
from lvt_pipeline.storage import Place, StoreURL, cache_of
from lvt_pipeline.video.clips import Clip, Note
from lvt_pipeline.video.decode import DecodedClip
from lvt_pipeline.video.locations import is_url
from lvt_pipeline.video.picture_folders import pictures_in
from lvt_pipeline.video.read import read_clip, reader_version, readers_of
from lvt_pipeline.video.scenes import Piece, cut, piece_id

DOWNLOADS_NAME = "downloads"  # copies of videos behind URLs, while they are decoded
SLOWEST_BYTES_PER_SECOND = 100_000.0  # a larger file may take longer than a small one
DOWNLOAD_SECONDS = 1800.0  # and longer for videos behind URLs, whose size is not known here

Outcome = list[FrameSample] | ClipFailure
Remembered = list[tuple[Tar, FrameClip]] | ClipFailure  # clips with their shard, or why there are none


@dataclass(frozen=True)
class PlannedShard:
    """A shard that the manifest asks for: its file name and its lines, in manifest order."""

    name: str
    lines: list[Clip]


@dataclass(frozen=True)
class ShardTask:
    """A shard to make, and what earlier runs know of its lines, by id."""

    shard: PlannedShard
    known: Mapping[str, Remembered]

    @property
    def to_decode(self) -> list[Clip]:
        """The other lines."""
        return [line for line in self.shard.lines if line.id not in self.known]


@dataclass(frozen=True)
class Decoding:
    """How lines are decoded, as in `ingest`; nothing of it changes a shard."""

    num_workers: int
    clip_seconds: float
    worker_memory: int | None

    def seconds(self, line: Clip) -> float:
        """How long a line may take."""
        return self.clip_seconds + _reading_seconds(line)


def start_maker(out: Place, plan: str, settings: IngestSettings, decoding: Decoding, device: str) -> ShardMaker:
    """The worker in another process."""
    return ShardMaker(out, plan, settings, decoding)


class _Stopping(Exception):
    """There will be no more results."""


class ShardMaker:
    """Makes frame shards one after another; `plan` is the identity of the plan that the folder `out` must wait for."""

    def __init__(self, out: Place, plan: str, settings: IngestSettings, decoding: Decoding) -> None:
        self._out, self._plan, self._settings, self._decoding = out, plan, settings, decoding
        self._folder = out / NEXT_NAME / plan
        scratch = cache_of(out) if isinstance(out, StoreURL) else out / NEXT_NAME / plan
        self._downloads = scratch / DOWNLOADS_NAME / secrets.token_hex(8)
        self._outcomes: dict[str, Outcome] = {}  # by id of the line, until they are written

    def __call__(
        self, tasks: Sequence[ShardTask], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[FinishedShard]:
        """Make these shards, or as many as there are whole ones before a stop."""
        with self.decoding([line for task in tasks for line in task.to_decode], bar, should_stop):
            for task in tasks:
                yield self.make(task)
                if should_stop():
                    break

    @contextmanager
    def decoding(self, lines: Sequence[Clip], bar: Bar, should_stop: Callable[[], object]) -> Iterator[None]:
        """Decode lines while the block runs; a stop request ends it early."""
        self._bar, self._lines, self._num_failed = bar, lines, 0
        num_workers = self._decoding.num_workers
        self._results = run_isolated(
            decode_task,
            [DecodeTask(line, self._settings, self._downloads) for line in lines],
            num_workers=num_workers,
            deadline_seconds=lambda task: self._decoding.seconds(task.clip),
            memory_bytes=self._decoding.worker_memory,
            window=max(self._settings.clips_per_shard, 2 * num_workers),
            should_stop=should_stop,
        )
        try:
            with closing(self._results), suppress(_Stopping):
                yield
        finally:
            shutil.rmtree(self._downloads, ignore_errors=True)

    def weigh(self, line: Clip, known: Mapping[str, Remembered]) -> float:
        """Bytes of the frames of a line, which is known or is being decoded."""
        return _num_bytes(self._outcome_of(line, known))

    def make(self, task: ShardTask) -> FinishedShard:
        """Write a shard as soon as its last line is there, unless its plan was finished or abandoned.

        Raises:
            StoreError: the folder does not wait for this plan.
        """
        outcomes = [self._outcome_of(line, task.known) for line in task.shard.lines]
        if read_plan(self._out)[0] != self._plan:
            raise StoreError(
                f"{self._out} does not wait for this plan: it was finished, another one took its place, or "
                "--plan-only did not run with these settings"
            )
        samples = [sample for outcome in outcomes if not isinstance(outcome, ClipFailure) for sample in outcome]
        failures = [outcome for outcome in outcomes if isinstance(outcome, ClipFailure)]
        receipt = stage_shard(self._folder, task.shard.name, samples, failures, root=self._out)
        self._bar.advance(len(task.known))
        for line in task.shard.lines:
            self._outcomes.pop(line.id, None)
        return FinishedShard(task.shard.name, self._folder, receipt, is_staged=True)

    def _outcome_of(self, line: Clip, known: Mapping[str, Remembered]) -> Outcome:
        """The outcome of a line: of an earlier run, or as soon as the results of this one contain it."""
        if line.id in known and line.id not in self._outcomes:
            self._outcomes[line.id] = self._recalled(line, known[line.id])
        while line.id not in self._outcomes:
            index, result = next(self._results, (-1, None))
            if result is None:
                raise _Stopping
            decoded = self._lines[index]
            if isinstance(result, Failure):
                self._num_failed += 1
                self._outcomes[decoded.id] = self._failure(decoded, result.reason, result.message)
            else:
                self._outcomes[decoded.id] = self._samples(decoded, result)
            self._bar.advance(**({"failed": self._num_failed} if self._num_failed else {}))
        return self._outcomes[line.id]

    def _recalled(self, line: Clip, remembered: Remembered) -> Outcome:
        """The outcome of an earlier run, under the line's name of today."""
        if isinstance(remembered, ClipFailure):
            return self._failure(line, remembered.reason, remembered.message)
        readers = readers_of(line, self._settings.geometry)
        payloads = []
        for tar, old in remembered:
            try:
                refuse_short(old.num_frames, self._settings.min_frames)
            except DecodeError as error:
                return self._failure(line, error.reason, str(error))
            shard = local_shard(*tar)
            require_sound(shard, tar.digest, None)
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
                    old.pixels or "",
                )
            )
        return self._samples(line, payloads)

    def _samples(self, line: Clip, payloads: Sequence[DecodedPayload]) -> list[FrameSample]:
        samples = []
        for number, decoded in enumerate(payloads):
            made_of = line_fingerprint(line, self._settings, decoded.decoder)
            pixels, part = decoded.pixels, None
            if line.arrays:  # rows in files of their own: without them the frames are what they would be
                pixels = line_fingerprint(replace(line, more_digest=None), self._settings, decoded.decoder)
            if decoded.begins is not None:
                part = Part(of=line.id, fingerprint=made_of, number=number, parts=len(payloads), begins=decoded.begins)
                pixels = lineage.piece_frames_fingerprint(pixels, part.begins) if line.arrays else pixels
            num_frames, height, width = decoded.shape
            clip = FrameClip(
                id=line.id if part is None else piece_id(line.id, part.begins),
                split=line.split,
                label=line.label,
                fps=decoded.fps,
                source=line.source,
                digest=line.digest,
                fingerprint=made_of if part is None else lineage.piece_frames_fingerprint(made_of, part.begins),
                num_frames=num_frames,
                height=height,
                width=width,
                decoder=reader_version(decoded.decoder),
                codec=self._settings.codec,
                part=part,
                truncated=decoded.truncated or None,
                notes=decoded.notes or None,
                pixels=pixels or None,
            )
            geometry = to_plain(self._settings.geometry)
            samples.append(FrameSample(clip=clip, payload=decoded.payload, geometry=geometry, arrays=decoded.arrays))
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


def _num_bytes(outcome: Outcome) -> float:
    """Bytes of the frames of a line, counted as `nbytes` of the receipt, so raw frames without their header."""
    if isinstance(outcome, ClipFailure):
        return 0.0
    raw = [one.clip.num_frames * one.clip.height * one.clip.width * 3 for one in outcome if one.clip.codec == "raw"]
    return float(sum(raw) + sum(len(one.payload) for one in outcome if one.clip.codec != "raw"))


def _reading_seconds(clip: Clip) -> float:
    """How much longer than a small clip this one may take."""
    if is_url(clip.source):
        return DOWNLOAD_SECONDS
    if clip.kind in ("bair", "rlds"):  # records are small, however large the file
        return 0.0
    try:
        files = pictures_in(clip.source) if clip.kind == "frames" else [Path(clip.source)]
        return sum(path.stat().st_size for path in files) / SLOWEST_BYTES_PER_SECOND
    except OSError:
        return 0.0


@dataclass(frozen=True)
class DecodeTask:
    """One line and the settings to decode it with."""

    clip: Clip
    settings: IngestSettings
    downloads: Path


@dataclass(frozen=True)
class DecodedPayload:
    """The result of a worker for a clip, as it will be stored in the shard.

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
    notes: tuple[Note, ...] = ()
    pixels: str = ""


def decode_task(task: DecodeTask) -> list[DecodedPayload]:
    """Decode one line and pack its clips. Runs in a worker process.

    Raises:
        DecodeError: the video cannot be read, or no clip of it is long enough.
    """
    settings, geometry = task.settings, task.settings.geometry
    read = read_clip(task.clip, geometry, task.downloads)
    num_frames = len(read.frames)
    refuse_short(num_frames, settings.min_frames)
    if not geometry.cuts:
        return [_packed(read, Piece(read.begins, 0, num_frames), settings.codec, begins=None)]
    pieces = cut(read, geometry, settings.min_frames)
    if not pieces:
        raise DecodeError("too-short", f"no piece of the clip has {settings.min_frames} frames")
    return [_packed(read, piece, settings.codec, begins=piece.begins) for piece in pieces]


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
        read.notes,
        pixels_fingerprint(frames) if read.arrays and lossy_version(codec) is None else "",
    )


def refuse_short(num_frames: int, min_frames: int) -> None:
    """Refuse a clip with fewer frames than are needed.

    Raises:
        DecodeError: "too-short".
    """
    if num_frames < min_frames:
        raise DecodeError("too-short", f"the clip has {num_frames} frames, at least {min_frames} are asked for")
