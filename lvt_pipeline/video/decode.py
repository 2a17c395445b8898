"""One video to the frames of a clip. It runs inside a worker process that can be killed.

The container decides (`video.container`): which frames there are, when each is shown, how pictures are turned, which
are missing. The readers (`video.readers`) are held to it, so the verdict does not depend on which of them reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ConfigError, DecodeError
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.container.facts import VideoFacts, inspect_video
from lvt_pipeline.video.container.timing import Times, Timing
from lvt_pipeline.video.episodes.trajectory import NO_ARRAYS, Arrays, require_rows
from lvt_pipeline.video.geometry import Fit, Frames, lanczos_square, square_of_scaled
from lvt_pipeline.video.readers import UnexpectedFrameError, pictures_of, readers_for
from lvt_pipeline.video.settings import GeometrySettings

FAILURE_REASONS = (
    "missing",
    "changed",  # since the manifest was made
    "unreadable",
    "no-video",
    "unsupported-codec",
    "damaged",
    "truncated",
    "no-start",  # the beginning of the video cannot be decoded
    "incomplete",  # frames are missing in the middle
    "timeout",
    "crashed",
    "out-of-memory",
    "too-short",
    "row-count",  # an array does not have a row per frame
    "unknown",
)
DECODERS = ("decord", "pyav")
# Raised when the same file and settings give other frames: 2 takes orientation, stream and times from the container.
READING = 2
_KEEP = "--on-truncated keep takes the frames that are there"

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class DecodedClip:
    """The frames of one clip.

    Attributes:
        frames: uint8 (T, size, size, 3), RGB.
        fps: frames per second of `frames`.
        decoder: "decord" or "pyav"; for other sources than videos, the name of the reader in `video.read`.
        notes: accepted peculiarities of the file, for receipts.
        arrays: what the source holds in addition to the frames, one row per frame, by name.
        times: when each frame is shown, seconds from the first one of the source, float64 (T,).
        begins: the moment the clip was asked to begin at, in the same seconds.
        truncated: the missing part of a file that is kept although it is not whole; empty for a whole one.
    """

    frames: Frames
    fps: float
    decoder: str
    notes: tuple[Note, ...] = ()
    arrays: Arrays = field(default_factory=dict)
    times: Times = field(default_factory=lambda: np.empty(0))
    begins: float = 0.0
    truncated: str = ""


@cache
def decoder_version(decoder: str) -> str:
    """Family and version of a decoder, such as "decord 0.6.0 reading 2". Decoders differ in pixels, so this enters
    fingerprints, as does the version of the rules by which frames are chosen.

    For PyAV the versions of FFmpeg's libraries decide, not that of the Python package.

    Raises:
        ConfigError: there is no such decoder.
    """
    if decoder == "decord":
        import decord

        return f"decord {decord.__version__} reading {READING}"
    if decoder == "pyav":
        import av

        codec, scaler = (".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale"))
        return f"pyav libavcodec {codec} libswscale {scaler} reading {READING}"
    raise ConfigError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")


def decode_clip(
    path: str, start: float | None, end: float | None, geometry: GeometrySettings, arrays: Arrays = NO_ARRAYS
) -> DecodedClip:
    """Decode one clip.

    Args:
        path: the video file.
        start: seconds from the first frame; earlier frames are left out. None: from the first.
        end: frames shown at this time or later are left out. None: to the last.
        arrays: a row per frame of the whole video; those of the clip's frames are kept.

    Raises:
        DecodeError: with one of `FAILURE_REASONS`.
    """
    try:
        return _decode(path, inspect_video(path), start, end, geometry, arrays)
    except UnexpectedFrameError:
        # The packets promised other frames than they give. Now the decoded frames decide.
        facts = inspect_video(path, thorough=True)
    try:
        return _decode(path, facts, start, end, geometry, arrays)
    except UnexpectedFrameError as error:
        raise DecodeError("damaged", f"{path} holds {facts.codec} data that decodes differently each time") from error


def read_video(
    path: Path | str, size: int = 64, *, start: float | None = None, end: float | None = None, fps: float | None = None
) -> tuple[Frames, float]:
    """The frames of a video file as `lvt ingest` would store them, and their rate.

    Args:
        size: height and width of a frame, a multiple of 4.
        start, end: seconds from the first frame; None: the whole video.
        fps: rate to resample to; None: the native rate.

    Returns:
        uint8 (T, size, size, 3), RGB, and frames per second.

    Raises:
        DecodeError: the video cannot be decoded.
        ConfigError: the size or the rate cannot be used.
    """
    clip = decode_clip(str(path), start, end, GeometrySettings(size=size, fps=fps))
    return clip.frames, clip.fps


def _decode(
    path: str, facts: VideoFacts, start: float | None, end: float | None, geometry: GeometrySettings, arrays: Arrays
) -> DecodedClip:
    wanted = choose_frames(facts.timing, start, end, geometry)
    missing = _shortage_of(facts, start, float(facts.timing.times[wanted[-1]]))
    if missing is not None and geometry.on_truncated == "fail":
        raise DecodeError(missing.reason, f"{path} {missing.kind}: {missing.details}; {_KEEP}")
    for name, rows in arrays.items():
        if not facts.truncated or len(rows) < facts.num_frames:  # rows of lost frames at the end do no harm
            require_rows(name, len(rows), facts.num_frames, path)
    remarks: list[Note] = []
    frames, decoder = _frames(path, facts, wanted, geometry, remarks, keep=missing is not None)
    if not len(frames):
        raise DecodeError("truncated", f"{path} is cut short and none of the clip's frames is left")
    notes = [*facts.notes, *remarks]
    if missing is not None:
        kind = "holes" if missing.reason == "incomplete" else "truncated"
        notes.append(Note(kind, f"the file {missing.kind}: {missing.details}"))
    if end is not None and end > facts.timing.seconds + facts.timing.tolerance:
        notes.append(Note("short-range", f"the range ends at {end:g} s, the video at {facts.timing.seconds:.2f} s"))
    return DecodedClip(
        frames,
        clip_fps(facts.timing, geometry),
        decoder,
        tuple(notes),
        arrays={name: rows[wanted[: len(frames)]] for name, rows in arrays.items()},
        times=shown_times(facts.timing, start, wanted, geometry)[: len(frames)],
        begins=max(0.0, start or 0.0),
        truncated="" if missing is None else missing.details,
    )


@dataclass(frozen=True)
class _Shortage:
    """What a file lacks: the reason of the failure, what kind of shortage it is, and the details."""

    reason: str
    kind: str
    details: str


def _shortage_of(facts: VideoFacts, start: float | None, last: float) -> _Shortage | None:
    """What the file lacks that concerns a clip from `start` to its last frame; None for nothing."""
    if facts.truncated:
        return _Shortage("truncated", "is cut short", facts.truncated)
    if facts.no_start:
        return _Shortage("no-start", "lacks its beginning", facts.no_start)
    holes = [hole for hole in facts.holes if hole[1] > (start or 0) and hole[0] < last]
    if holes:
        begin, end = max(holes, key=lambda hole: hole[1] - hole[0])
        places = f"in {len(holes)} places, the longest from" if len(holes) > 1 else "from"
        text = f"its data is damaged {places} {begin:.2f} to {end:.2f} s"
        return _Shortage("incomplete", "lacks frames in the middle", text)
    lost = [moment for moment in facts.lost if moment < last]
    if lost:
        text = f"{len(facts.lost)} cannot be decoded, the first at {lost[0]:.2f} s"
        return _Shortage("incomplete", "lacks frames in the middle", text)
    return None


def _frames(
    path: str, facts: VideoFacts, wanted: Indices, geometry: GeometrySettings, remarks: list[Note], *, keep: bool
) -> tuple[Frames, str]:
    """The wanted frames and the decoder that gave them."""
    for decoder in readers_for(path, facts, geometry, int(wanted[-1]), keep=keep):
        try:
            with closing(pictures_of(decoder, path, facts, geometry, remarks, keep=keep)) as pictures:
                return take_frames(pictures, wanted, geometry), decoder
        except DecodeError:
            if decoder == "pyav":
                raise
    raise AssertionError("PyAV is the last reader of every video")


def choose_frames(timing: Timing, start: float | None, end: float | None, geometry: GeometrySettings) -> Indices:
    """Which frames of the source make the clip, int64, ascending; a frame repeats where the rate is raised.

    At rate `fps`, frame k is the one that a player shows at `start` + k / fps, which is what
    `ffmpeg -vf fps=FPS:round=up` gives. The source's own rate gives every frame once. A stride of n then keeps every
    n-th frame. Moments are compared up to one unit of the container's clock.

    Raises:
        DecodeError: "too-short": the range holds no frame.
    """
    tolerance = timing.tolerance
    first = max(0.0, start or 0.0)
    if geometry.fps is None or timing.is_constant(geometry.fps):
        inside = timing.times >= first - tolerance
        if end is not None:
            inside &= timing.times < end - tolerance
        wanted = np.flatnonzero(inside).astype(np.int64)
    else:
        last = min(timing.seconds, math.inf if end is None else end)
        count = max(0, math.ceil((last - first - tolerance) * geometry.fps))
        moments = first + np.arange(count) / geometry.fps
        wanted = np.searchsorted(timing.times, moments + tolerance, side="right").astype(np.int64) - 1
    if not len(wanted):
        until = "the end" if end is None else f"{end:g} s"
        raise DecodeError(
            "too-short", f"there is no frame between {first:g} s and {until}: the video lasts {timing.seconds:.2f} s"
        )
    wanted = wanted[:: geometry.stride]
    # Where the video is cut into clips, `max_frames` is a limit for each of them.
    return wanted if geometry.cuts else wanted[: geometry.max_frames]


def clip_fps(timing: Timing, geometry: GeometrySettings) -> float:
    """Frames per second of what `choose_frames` chose."""
    return (geometry.fps or timing.fps) / geometry.stride


def shown_times(timing: Timing, start: float | None, wanted: Indices, geometry: GeometrySettings) -> Times:
    """When the frames that `choose_frames` chose are shown, seconds from the first frame of the source."""
    if geometry.fps is None or timing.is_constant(geometry.fps):
        times: Times = timing.times[wanted]
        return times
    return max(0.0, start or 0.0) + np.arange(len(wanted)) * geometry.stride / geometry.fps


def take_frames(pictures: Iterator[Frames], wanted: Indices, geometry: GeometrySettings) -> Frames:
    """Gather the wanted frames as squares, (T, size, size, 3), from all pictures in order.

    There are fewer frames than wanted where the pictures end earlier, which those of a whole video never do.
    """
    to_square: Callable[[Frames, int, Fit], Frames]
    to_square = square_of_scaled if geometry.resize == "decoder" else lanczos_square
    frames = np.empty((len(wanted), geometry.size, geometry.size, 3), np.uint8)
    last = 0
    for index, picture in enumerate(islice(pictures, int(wanted[-1]) + 1)):
        first, last = np.searchsorted(wanted, (index, index + 1))
        if first < last:
            frames[first:last] = to_square(picture, geometry.size, geometry.fit)
    return frames[:last]
