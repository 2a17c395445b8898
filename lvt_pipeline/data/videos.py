"""One clip to frames: the only place that opens a video. It runs inside a worker process that can be killed.

decord reads the frames, always in order from the first one, because its jumps return wrong pictures on some files.
PyAV reads the container: how many frames there really are and when each is shown. The two are compared, so a file
that decodes to less than it promises is a failure with a reason, never a short clip. PyAV also decodes what decord
cannot (AV1, GIF, containers without a length).

Geometry is that of the paper's Kinetics experiments: centre crop to the smaller side, Lanczos by Pillow, 64 x 64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.data.frames import Frames
from lvt_pipeline.errors import ConfigError, DecodeError

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
    "too-short",
    "unknown",
)
DECODERS = ("decord", "pyav")

MAX_FPS = 480.0  # a header that says more is wrong: FLV files say 1000
UNKNOWN_FPS = 25.0  # for a single frame without a rate
# From MPEG-TS decord 0.6.0 returns the right number of pictures, but stale and shifted ones, without an error.
_CONTAINERS_NOT_FOR_DECORD = frozenset({"mpegts"})
_TIME_TOLERANCE = 1e-6  # seconds
# A container may announce a little more than its packets fill; more than this is a file cut short.
_SHORTFALL_SECONDS = 0.25
_SHORTFALL_SHARE = 0.01

Times = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GeometrySettings:
    """Which frames are taken from a clip, and how each becomes a square."""

    size: int = 64  # height and width of a frame
    resize: Literal["lanczos", "decoder"] = "lanczos"  # decoder: FFmpeg's scaler, about 3 times faster, other pixels
    fps: float | None = None  # resample by presentation time; none keeps the native rate
    decoder: Literal["auto", "decord", "pyav"] = "auto"  # auto: decord, PyAV for what it cannot read
    max_frames: int | None = None  # keep the first frames only

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size={self.size} is not a positive number of pixels")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ConfigError(f"fps={self.fps} lies outside 0 to {MAX_FPS:g}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames={self.max_frames} keeps no frame")


@dataclass(frozen=True)
class DecodedClip:
    """The frames of one clip.

    Attributes:
        frames: uint8 (T, size, size, 3), RGB.
        fps: frames per second of what is in `frames`.
        decoder: "decord" or "pyav".
        notes: what was odd about the file, for people.
    """

    frames: Frames
    fps: float
    decoder: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VideoFacts:
    """What the container says, without decoding.

    Attributes:
        container: FFmpeg's name of the file format.
        codec: name of the video codec.
        times: when each frame is shown, seconds from the first one, ascending, float64 (frames,).
        fps: native frame rate.
        notes: what was odd.
    """

    container: str
    codec: str
    times: Times
    fps: float
    notes: list[str] = field(default_factory=list)

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
    wanted = choose_frames(facts, start, end, geometry)
    errors: list[DecodeError] = []
    for decoder in DECODERS if geometry.decoder == "auto" else (geometry.decoder,):
        try:
            with closing(_pictures(decoder, path, facts, geometry)) as pictures:
                frames = _take(pictures, wanted, geometry)
        except DecodeError as error:
            errors.append(error)
            continue
        notes = [*facts.notes, *(f"not read by decord: {error}" for error in errors)]
        return DecodedClip(frames, geometry.fps or facts.fps, decoder, notes)
    # The decoder tried last knows most about the file: PyAV has the newer FFmpeg.
    raise errors[-1]


def choose_frames(facts: VideoFacts, start: float | None, end: float | None, geometry: GeometrySettings) -> Indices:
    """Which frames of the video make the clip, int64, ascending; a frame repeats where the rate is raised.

    At rate `fps`, frame k is what a player shows at `start` + k / fps.

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
    return wanted[: geometry.max_frames]


def centre_square(frame: Frames) -> Frames:
    """The middle of a picture, as wide as its smaller side: (H, W, 3) -> (S, S, 3).

    Where the margin is odd, the released code of the paper hands Pillow a box of half pixels, and Pillow rounds each
    edge half to even. When the smaller side is odd too, the crop is then one pixel wider or narrower than high.
    """
    height, width, _ = frame.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return frame[round(top) : round(top + side), round(left) : round(left + side)]


def lanczos_square(frame: Frames, size: int) -> Frames:
    """Centre crop, then Lanczos with antialiasing by Pillow: uint8 (H, W, 3) -> (size, size, 3)."""
    square = Image.fromarray(np.ascontiguousarray(centre_square(frame)))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


# The container -----------------------------------------------------------------------------------------------------


def inspect_video(path: str) -> VideoFacts:
    """Read every packet of a video file without decoding: what is in it, and is it whole?

    Raises:
        DecodeError: missing, unreadable, no-video or truncated.
    """
    _check_file(path)
    with _open_container(path) as container:
        stream = _video_stream(container, path)
        moments, shortfall = _read_packets(container, stream, path)
        if shortfall > 0:
            lost = f"the last {shortfall:.2f} s that its header announces are missing"
            raise DecodeError("truncated", f"{path} is cut short: {lost}")
        if not moments:
            raise DecodeError("no-video", f"{path} announces a video stream that holds no frame")
        fps, notes = _native_fps(moments, stream.average_rate)
        return VideoFacts(container.format.name, stream.codec_context.name, _ascending(moments, fps), fps, notes)


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


def _read_packets(container: InputContainer, stream: VideoStream, path: str) -> tuple[list[float | None], float]:
    """When each frame is shown (seconds, in file order, None where unknown), and how many seconds are missing.

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
    except av.FFmpegError as error:
        raise DecodeError("truncated", f"{path} is cut short or damaged: it ends inside a packet") from error
    announced = max((container.duration or 0) / 1_000_000, _counted_seconds(stream))
    missing = announced - (last - first)
    return moments, missing if missing > _SHORTFALL_SECONDS + _SHORTFALL_SHARE * announced else 0.0


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


def _native_fps(moments: list[float | None], header: Fraction | None) -> tuple[float, list[str]]:
    """Frames per second: the header's when the frames agree with it, else what the frames say; and a note if not."""
    known = [moment for moment in moments if moment is not None]
    span = max(known) - min(known) if known else 0.0
    measured = (len(known) - 1) / span if span > 0 else None
    stated = float(header) if header and header <= MAX_FPS else None
    if stated and (measured is None or 0.8 < stated / measured < 1.25):
        return round(stated, 6), []
    fps = round(min(measured or stated or UNKNOWN_FPS, MAX_FPS), 6)
    return fps, [f"the header says {float(header or 0):g} frames per second, the frames {fps:g}"]


def _ascending(moments: list[float | None], fps: float) -> Times:
    """Presentation times from the first frame on; evenly spaced where the file's own are missing or repeat."""
    known = [moment for moment in moments if moment is not None]
    times: Times = np.sort(np.array(known, np.float64))
    if len(known) < len(moments) or (np.diff(times) <= 0).any():
        return np.arange(len(moments), dtype=np.float64) / fps
    times -= times[0]
    return times


# The pictures ------------------------------------------------------------------------------------------------------


def _take(pictures: Iterator[Frames], wanted: Indices, geometry: GeometrySettings) -> Frames:
    """Gather the wanted frames as squares, (T, size, size, 3), from all pictures in order."""
    frames = np.empty((len(wanted), geometry.size, geometry.size, 3), np.uint8)
    for index, picture in enumerate(islice(pictures, int(wanted[-1]) + 1)):
        first, last = np.searchsorted(wanted, (index, index + 1))
        if first < last:
            is_scaled = geometry.resize == "decoder"
            frames[first:last] = centre_square(picture) if is_scaled else lanczos_square(picture, geometry.size)
    return frames


def _pictures(decoder: str, path: str, facts: VideoFacts, geometry: GeometrySettings) -> Generator[Frames]:
    """Every picture of the video in order, (H, W, 3); with resize "decoder" the smaller side is already `size`.

    Raises:
        DecodeError: while reading, when a picture cannot be decoded or there are fewer than the container holds.
    """
    size = geometry.size if geometry.resize == "decoder" else None
    return _decord_pictures(path, facts, size) if decoder == "decord" else _pyav_pictures(path, facts, size)


def _decord_pictures(path: str, facts: VideoFacts, size: int | None) -> Generator[Frames]:
    import decord
    from decord._ffi.base import DECORDError, DECORDLimitReachedError

    decord.logging.set_level(decord.logging.QUIET)
    if facts.container in _CONTAINERS_NOT_FOR_DECORD:
        raise DecodeError("damaged", f"{path}: decord returns wrong pictures from {facts.container} files")
    try:
        # A fault tolerance of 1 makes decord raise when it replaces what it cannot decode by neighbouring pictures.
        reader = decord.VideoReader(path, num_threads=1, fault_tol=1)
        if size is not None:  # both sides must be given, and only a picture tells the sides after rotation
            first = reader.next().shape
            height, width = _scaled(first[0], first[1], size)
            reader = decord.VideoReader(path, num_threads=1, width=width, height=height, fault_tol=1)
        if len(reader) < facts.num_frames:
            raise DecodeError("truncated", f"{path}: decord finds {len(reader)} of {facts.num_frames} frames")
        previous: Frames | None = None
        for index in range(facts.num_frames):
            picture = _without_padding(reader.next().asnumpy())
            # decord repeats the last picture for those it could not decode, so a repeat at the end is looked into.
            if index == facts.num_frames - 1 and previous is not None and np.array_equal(picture, previous):
                for _ in _pyav_pictures(path, facts, size=16):
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


def _pyav_pictures(path: str, facts: VideoFacts, size: int | None) -> Generator[Frames]:
    import av

    with _open_container(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        count = 0
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise DecodeError("damaged", f"{path} holds damaged {facts.codec} data")
                if count < facts.num_frames:
                    yield _upright(frame, size)
                count += 1
        except av.DecoderNotFoundError as error:
            raise DecodeError("unsupported-codec", f"{path} is in {facts.codec}, which FFmpeg cannot decode") from error
        except av.FFmpegError as error:
            raise DecodeError("damaged", f"{path} holds {facts.codec} data that cannot be decoded") from error
        if count < facts.num_frames:
            raise DecodeError("truncated", f"{path} holds {facts.num_frames} frames, only {count} of them decode")


def _upright(frame: VideoFrame, size: int | None) -> Frames:
    """A decoded frame as RGB the way a player shows it, its smaller side scaled to `size` if given."""
    height, width = (frame.height, frame.width) if size is None else _scaled(frame.height, frame.width, size)
    picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.rot90(picture, frame.rotation // 90 % 4)  # degrees counter-clockwise


def _scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the smaller side scaled to `size` and the same proportions, as near as pixels allow."""
    side = min(height, width)
    return round(height * size / side), round(width * size / side)
