"""One video to frames: the only place that opens one. It runs inside a worker process that can be killed.

decord reads the frames, always in order from the first one, because its jumps return wrong pictures on some files.
PyAV reads the container: how many frames there really are and when each is shown. The two are compared, so a file
that decodes to less than it promises is a failure with a reason, never a short clip. PyAV also decodes what decord
cannot (AV1, GIF, containers without a length).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ConfigError, DecodeError
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.geometry import Fit, Frames, lanczos_square, scaled_sides, square_of_scaled
from lvt_pipeline.video.settings import MAX_FPS, GeometrySettings

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.stream import Stream

FAILURE_REASONS = (
    "missing",
    "changed",  # since the manifest was made
    "unreadable",
    "no-video",
    "unsupported-codec",
    "damaged",
    "truncated",
    "timeout",
    "crashed",
    "out-of-memory",
    "too-short",
    "unknown",
)
DECODERS = ("decord", "pyav")

UNKNOWN_FPS = 25.0  # for a single frame without a rate
# From MPEG-TS decord 0.6.0 returns the right number of pictures, but stale and shifted ones, without an error.
_CONTAINERS_NOT_FOR_DECORD = frozenset({"mpegts"})
_TIME_TOLERANCE = 1e-6  # seconds
# A container may announce a little more than its packets fill; more than this is a file cut short.
_SHORTFALL_SECONDS = 0.25
_SHORTFALL_SHARE = 0.01

Times = NDArray[np.float64]
Indices = NDArray[np.int64]
Scaled = Callable[[int, int], tuple[int, int]]  # height and width of a picture to those it is scaled to


@dataclass(frozen=True)
class DecodedClip:
    """The frames of one clip.

    Attributes:
        frames: uint8 (T, size, size, 3), RGB.
        fps: frames per second of what is in `frames`.
        decoder: "decord" or "pyav"; for what is no video, the name of its reader in `video.read`.
        notes: what was unusual about the file but accepted, for receipts.
        arrays: what the source holds beside the frames, one row per frame, by name.
        times: when each frame is shown, seconds from the first one of the source, float64 (T,).
        begins: the moment the clip was asked to begin at, in the same seconds.
        truncated: what was found of a file that was cut short but is kept; empty for a whole one.
    """

    frames: Frames
    fps: float
    decoder: str
    notes: tuple[Note, ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    times: Times = field(default_factory=lambda: np.empty(0))
    begins: float = 0.0
    truncated: str = ""


@dataclass(frozen=True)
class VideoFacts:
    """What the container says, without decoding.

    Attributes:
        container: FFmpeg's name of the file format.
        codec: name of the video codec.
        times: when each frame is shown, seconds from the first one, ascending, float64 (frames,).
        fps: native frame rate.
        notes: what is unusual.
        truncated: what is there and what is missing, when the file was cut short; empty for a whole one.
    """

    container: str
    codec: str
    times: Times
    fps: float
    notes: tuple[Note, ...] = ()
    truncated: str = ""

    @property
    def num_frames(self) -> int:
        """Frames that a player would show."""
        return len(self.times)

    @property
    def seconds(self) -> float:
        """Duration, the last frame included."""
        return float(self.times[-1]) + 1 / self.fps


@cache
def decoder_version(decoder: str) -> str:
    """Family and version of a decoder, such as "decord 0.6.0". Decoders differ in pixels, so this enters fingerprints.

    For PyAV the versions of FFmpeg's libraries decide, not that of the Python package.
    """
    if decoder == "decord":
        import decord

        return f"decord {decord.__version__}"
    if decoder == "pyav":
        import av

        codec, scaler = (".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale"))
        return f"pyav libavcodec {codec} libswscale {scaler}"
    raise ConfigError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")


def decode_clip(path: str, start: float | None, end: float | None, geometry: GeometrySettings) -> DecodedClip:
    """Decode one clip.

    Args:
        path: the video file.
        start: seconds from the first frame; earlier frames are left out. None: from the first.
        end: frames shown at this time or later are left out. None: to the last.

    Raises:
        DecodeError: with one of `FAILURE_REASONS`.
    """
    facts = inspect_video(path)
    if facts.truncated and geometry.on_truncated == "fail":
        raise DecodeError("truncated", f"{path} is cut short: {facts.truncated}")
    try:
        return _decode(path, facts, start, end, geometry)
    except DecodeError as error:
        if error.reason != "truncated" or facts.truncated or geometry.on_truncated == "fail":
            raise
    # The container looked whole, but gives fewer pictures than it has packets.
    cut = replace(facts, truncated=f"not all of its {facts.num_frames} frames are there to be decoded")
    return _decode(path, cut, start, end, geometry)


def _decode(
    path: str, facts: VideoFacts, start: float | None, end: float | None, geometry: GeometrySettings
) -> DecodedClip:
    wanted = choose_frames(facts, start, end, geometry)
    errors: list[DecodeError] = []
    for decoder in DECODERS if geometry.decoder == "auto" else (geometry.decoder,):
        try:
            with closing(pictures_of(decoder, path, facts, geometry)) as pictures:
                frames = take_frames(pictures, wanted, geometry)
        except DecodeError as error:
            errors.append(error)
            continue
        if not len(frames):
            raise DecodeError("truncated", f"{path} is cut short and none of the clip's frames is left")
        return DecodedClip(
            frames,
            clip_fps(facts, geometry),
            decoder,
            facts.notes,
            times=shown_times(facts, start, wanted, geometry)[: len(frames)],
            begins=max(0.0, start or 0.0),
            truncated=facts.truncated,
        )
    # The decoder tried last knows most about the file: PyAV has the newer FFmpeg.
    raise errors[-1]


def choose_frames(facts: VideoFacts, start: float | None, end: float | None, geometry: GeometrySettings) -> Indices:
    """Which frames of the video make the clip, int64, ascending; a frame repeats where the rate is raised.

    At rate `fps`, frame k is what a player shows at `start` + k / fps. A stride of n then keeps every n-th frame.

    Raises:
        DecodeError: "too-short": the range holds no frame.
    """
    first = max(0.0, start or 0.0)
    last = min(facts.seconds, math.inf if end is None else end)
    if geometry.fps is None:
        inside = (facts.times >= first - _TIME_TOLERANCE) & (facts.times < last - _TIME_TOLERANCE)
        wanted = np.flatnonzero(inside).astype(np.int64)
    else:
        count = max(0, math.ceil((last - first) * geometry.fps - _TIME_TOLERANCE))
        moments = first + np.arange(count) / geometry.fps
        wanted = np.searchsorted(facts.times, moments + _TIME_TOLERANCE, side="right").astype(np.int64) - 1
    if not len(wanted):
        until = "the end" if end is None else f"{end:g} s"
        raise DecodeError(
            "too-short", f"no frame lies between {first:g} s and {until}: the video lasts {facts.seconds:.2f} s"
        )
    wanted = wanted[:: geometry.stride]
    # Where the video is cut into clips, `max_frames` is a limit for each of them.
    return wanted if geometry.cuts else wanted[: geometry.max_frames]


def clip_fps(facts: VideoFacts, geometry: GeometrySettings) -> float:
    """Frames per second of what `choose_frames` chose."""
    return (geometry.fps or facts.fps) / geometry.stride


def shown_times(facts: VideoFacts, start: float | None, wanted: Indices, geometry: GeometrySettings) -> Times:
    """When the frames that `choose_frames` chose are shown, seconds from the first frame of the source."""
    if geometry.fps is None:
        times: Times = facts.times[wanted]
        return times
    return max(0.0, start or 0.0) + np.arange(len(wanted)) * geometry.stride / geometry.fps


# The container -----------------------------------------------------------------------------------------------------


def inspect_video(path: str) -> VideoFacts:
    """Read every packet of a video file without decoding: what is in it, and is it whole?

    Raises:
        DecodeError: missing, unreadable, no-video or, for a file cut short before its first frame, truncated.
    """
    _check_file(path)
    with _open_container(path) as container:
        stream = _video_stream(container, path)
        moments, truncated = _read_packets(container, stream)
        if not moments and truncated:
            raise DecodeError("truncated", f"{path} is cut short: {truncated}")
        if not moments:
            raise DecodeError("no-video", f"{path} announces a video stream that holds no frame")
        fps, notes = _native_fps(moments, stream.average_rate)
        times = _ascending(moments, fps)
        return VideoFacts(container.format.name, stream.codec_context.name, times, fps, notes, truncated)


def _check_file(path: str) -> None:
    # FFmpeg cannot say what is wrong with a file it does not recognise, so the plain cases are told apart here.
    if not os.path.exists(path):
        raise DecodeError("missing", f"{path} does not exist")
    if not os.path.isfile(path):
        raise DecodeError("unreadable", f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise DecodeError("unreadable", f"{path} cannot be read: permission denied")
    if os.path.getsize(path) == 0:
        raise DecodeError("unreadable", f"{path} is empty: it has 0 bytes")


def _open_container(path: str) -> InputContainer:
    import av

    av.logging.set_level(None)  # FFmpeg's remarks would land between the lines of the command
    try:
        return av.open(path, metadata_errors="replace")  # phones write titles that are not UTF-8
    except (av.FFmpegError, OSError) as error:
        raise DecodeError("unreadable", f"{path} is not a video, or its index is missing or damaged") from error


def _video_stream(container: InputContainer, path: str) -> VideoStream:
    from av.stream import Disposition

    stream = next((item for item in container.streams.video if item is container.streams.best("video")), None)
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = sorted({item.type for item in container.streams})
        raise DecodeError("no-video", f"{path} holds no video, only {', '.join(kinds) or 'nothing'}")
    if stream.codec_context is None:
        raise DecodeError("unsupported-codec", f"{path} is in a video codec that FFmpeg cannot decode here")
    return stream


def _read_packets(container: InputContainer, stream: VideoStream) -> tuple[list[float | None], str]:
    """When each frame is shown (seconds, in file order, None where unknown), and what is missing at the end, if so.

    All streams are read: sound that outlasts the picture is normal, a file where everything ends early was cut.
    """
    import av

    moments: list[float | None] = []
    first = last = 0.0
    try:
        for packet in container.demux():
            if packet.size == 0:  # the demuxer's way to say that a stream is over
                continue
            unit = float(packet.time_base or 0)
            shown = packet.pts if packet.pts is not None else packet.dts
            if shown is not None:
                first = min(first, shown * unit)
                last = max(last, (shown + (packet.duration or 0)) * unit)
            if packet.stream.index == stream.index and _shows_a_frame(packet, stream.codec_context.name):
                moments.append(None if packet.pts is None else packet.pts * unit)
    except av.FFmpegError:
        return moments, f"it ends inside a packet, after {_counted(len(moments), stream)}"
    announced = max((container.duration or 0) / 1_000_000, _counted_seconds(stream))
    missing = announced - (last - first)
    if missing <= _SHORTFALL_SECONDS + _SHORTFALL_SHARE * announced:
        return moments, ""
    there = f"there are {last - first:.2f} of the {announced:.2f} s that its header announces"
    return moments, f"{there}, and {_counted(len(moments), stream)}"


def _counted(num_frames: int, stream: VideoStream) -> str:
    """Frames found, beside what the header counts if it counts."""
    return f"{num_frames} of {stream.frames} frames" if stream.frames else f"{num_frames} frames"


def _counted_seconds(stream: VideoStream) -> float:
    """How long the frames that the header counts last: AVI files learn their duration from what is left of them."""
    rate = float(stream.average_rate or 0)
    return stream.frames / rate if 0 < rate <= MAX_FPS else 0.0


def _shows_a_frame(packet: Packet[Stream], codec: str) -> bool:
    """Whether a player would show something: edit lists hide packets, and VP8 keeps hidden reference frames."""
    if packet.is_discard:
        return False
    if codec == "vp8":
        return bool(bytes(packet)[0] & 0x10)  # show_frame, RFC 6386 section 9.1
    return True


def _native_fps(moments: list[float | None], header: Fraction | None) -> tuple[float, tuple[Note, ...]]:
    """Frames per second: the header's when the frames agree with it, else what the frames say; and a note if not."""
    known = [moment for moment in moments if moment is not None]
    span = max(known) - min(known) if known else 0.0
    measured = (len(known) - 1) / span if span > 0 else None
    stated = float(header) if header and header <= MAX_FPS else None
    if stated and (measured is None or 0.8 < stated / measured < 1.25):
        return round(stated, 6), ()
    fps = round(min(measured or stated or UNKNOWN_FPS, MAX_FPS), 6)
    text = f"the header says {float(header or 0):g} frames per second, the frames {fps:g}"
    return fps, (Note("rate", text),)


def _ascending(moments: list[float | None], fps: float) -> Times:
    """Presentation times from the first frame on; evenly spaced where the file's own are missing or repeat."""
    known = [moment for moment in moments if moment is not None]
    times: Times = np.sort(np.array(known, np.float64))
    if len(known) < len(moments) or (np.diff(times) <= 0).any():
        return np.arange(len(moments), dtype=np.float64) / fps
    times -= times[0]
    return times


# The pictures ------------------------------------------------------------------------------------------------------


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


def pictures_of(decoder: str, path: str, facts: VideoFacts, geometry: GeometrySettings) -> Generator[Frames]:
    """Every picture of the video in order, (H, W, 3), as large as it is; with resize "decoder" already scaled.

    A file that was cut short gives what is there.

    Raises:
        DecodeError: while reading, when a picture cannot be decoded or there are fewer than the container holds.
    """
    scaled: Scaled | None = None
    if geometry.resize == "decoder":
        size, fit = geometry.size, geometry.fit
        scaled = lambda height, width: scaled_sides(height, width, size, fit)  # noqa: E731 - two settings become one rule
    if decoder == "decord":
        return _decord_pictures(path, facts, scaled)
    return _pyav_pictures(path, facts, scaled)


def _decord_pictures(path: str, facts: VideoFacts, scaled: Scaled | None) -> Generator[Frames]:
    import decord
    from decord._ffi.base import DECORDError, DECORDLimitReachedError

    decord.logging.set_level(decord.logging.QUIET)
    if facts.container in _CONTAINERS_NOT_FOR_DECORD:
        raise DecodeError("damaged", f"{path}: decord returns wrong pictures from {facts.container} files")
    if facts.truncated:
        raise DecodeError("truncated", f"{path} is cut short: {facts.truncated}")
    try:
        # A fault tolerance of 1 makes decord raise when it replaces what it cannot decode by neighbouring pictures.
        reader = decord.VideoReader(path, num_threads=1, fault_tol=1)
        if scaled is not None:  # both sides must be given, and only a picture tells the sides after rotation
            first = reader.next().shape
            height, width = scaled(first[0], first[1])
            reader = decord.VideoReader(path, num_threads=1, width=width, height=height, fault_tol=1)
        if len(reader) < facts.num_frames:
            raise DecodeError("truncated", f"{path}: decord finds {len(reader)} of {facts.num_frames} frames")
        previous: Frames | None = None
        for index in range(facts.num_frames):
            picture = _without_padding(reader.next().asnumpy())
            # decord repeats the last picture for those it could not decode, so a repeat at the end is looked into.
            if index == facts.num_frames - 1 and previous is not None and np.array_equal(picture, previous):
                for _ in _pyav_pictures(path, facts, lambda height, width: (16, 16)):
                    pass
            yield picture
            previous = picture
    except (RuntimeError, DECORDError, DECORDLimitReachedError, StopIteration) as error:
        # Which type comes depends on the call. The message holds addresses and frame numbers that vary.
        raise DecodeError("damaged", f"{path}: decord cannot decode all {facts.num_frames} frames") from error


def _without_padding(picture: Frames) -> Frames:
    """The pixels of what decord returns: it gives the padding of narrow pictures' rows as channels beyond the third."""
    height, width, _ = picture.shape
    return picture.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _pyav_pictures(path: str, facts: VideoFacts, scaled: Scaled | None) -> Generator[Frames]:
    import av

    with _open_container(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        count = 0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt and facts.truncated:
                    return
                if frame.is_corrupt:
                    raise DecodeError("damaged", f"{path} holds damaged {facts.codec} data")
                if count < facts.num_frames:
                    yield _upright(frame, scaled)
                count += 1
        except av.DecoderNotFoundError as error:
            raise DecodeError("unsupported-codec", f"{path} is in {facts.codec}, which FFmpeg cannot decode") from error
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise DecodeError("out-of-memory", f"{path}: a decoder's buffers do not fit into memory") from error
            if facts.truncated:
                return
            raise DecodeError("damaged", f"{path} holds {facts.codec} data that cannot be decoded") from error
        if count < facts.num_frames and not facts.truncated:
            raise DecodeError("truncated", f"{path} holds {facts.num_frames} frames, only {count} of them decode")


def _upright(frame: VideoFrame, scaled: Scaled | None) -> Frames:
    """A decoded frame as RGB the way a player shows it, scaled if asked."""
    height, width = (frame.height, frame.width) if scaled is None else scaled(frame.height, frame.width)
    picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.rot90(picture, frame.rotation // 90 % 4)  # degrees counter-clockwise
