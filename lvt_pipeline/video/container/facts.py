"""What a video file holds, found out once and before anything else: every decoder is held to these facts.

PyAV reads the packets and decodes the first picture. Where the packets leave room for doubt (stamps that cannot be
true, packets that may hold no picture) the whole stream is decoded once, without conversion to RGB, and the facts are
those of the decoded frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.progress import count_of
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.container.packets import MP4, Look, Picture, read_packets
from lvt_pipeline.video.container.streams import choose_stream, decoded_frames, open_container, require_regular_file
from lvt_pipeline.video.container.timing import Stamp, Timing, gaps_of, timing_of
from lvt_pipeline.video.geometry import UPRIGHT, orientation_of

# A cut between two key frames leaves this much undecodable at most; more is a video whose beginning is missing.
_START_SECONDS = 12.0
_SQUARE = 0.01  # pixels whose sides differ by less are square
_EVERY_FRAME = ("theora",)  # codecs that store a packet, if an empty one, for every frame interval
_PLACEHOLDER_BYTES = 8  # a packet this small that decodes to nothing repeats the frame before
# decord's result is proven equal for these (`tests/test_exact_frames.py`).
_DECORD_CONTAINERS = (MP4, "matroska,webm", "avi", "flv")
_DECORD_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "h263")
_DECORD_PIXELS = ("yuv420p", "yuvj420p", "yuv444p")
_DECORD_TURNS = ("clock", "cclock", "hflip,vflip")  # of MP4 and MOV only


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a video file holds.

    Attributes:
        container: FFmpeg's name of the file format.
        codec: name of the video codec.
        stream: index of the chosen video stream.
        timing: when the frames that a player shows are shown.
        stamps: the same frames' stamps in the container's clock, as a decoder gives them.
        height, width: of the first picture as stored, before it is turned.
        pixel_format: FFmpeg's name of the stored pixels.
        orientation: how pictures are turned, a name of `geometry.turned`.
        is_plain: one video stream of square, uniform pictures that is whole, starts with a key frame and has sound
            time stamps. Only such a file is given to decord.
        notes: everything unusual.
        truncated: the parts found and the parts missing, when the file was cut short; empty for a whole one.
        no_start: the same for a file whose beginning is missing.
        holes: seconds (begin, end) in which frames are missing that the file once held.
        lost: when frames would be shown that were stored but give no picture, seconds from the first frame.
    """

    container: str
    codec: str
    stream: int
    timing: Timing
    stamps: tuple[Stamp, ...]
    height: int
    width: int
    pixel_format: str
    orientation: str = UPRIGHT
    is_plain: bool = True
    notes: tuple[Note, ...] = ()
    truncated: str = ""
    no_start: str = ""
    holes: tuple[tuple[float, float], ...] = ()
    lost: tuple[float, ...] = ()

    @property
    def num_frames(self) -> int:
        """Frames that a player would show."""
        return len(self.stamps)


def inspect_video(path: str, *, thorough: bool = False) -> VideoFacts:
    """Look into a video file: its contents, and whether it is whole.

    Args:
        thorough: decode the whole stream, also where the packets are clear.

    Raises:
        DecodeError: missing, unreadable, no-video, unsupported-codec or, for a file without any frame that can be
            decoded, truncated or damaged.
    """
    require_regular_file(path)
    with open_container(path) as container:
        stream = choose_stream(container, path)
        look = read_packets(container, stream, path)
    if look.first is None and look.truncated:
        raise DecodeError("truncated", f"{path} is cut short: {look.truncated}")
    if not look.packets:
        raise DecodeError("no-video", f"{path} announces a video stream that holds no frame")
    if look.first is None:
        raise DecodeError("damaged", f"{path} holds {look.codec} data of which no frame can be decoded")
    stamps = None if thorough else look.predicted_stamps()
    if stamps is None:
        stamps = _stamps_of_decoded(path, look)
    return _facts(look, look.first, stamps)


def _stamps_of_decoded(path: str, look: Look) -> list[Stamp]:
    """Stamps of the frames that a decoder gives; where it fails, the packets' own stand for the rest."""
    assert look.first is not None
    found: list[Stamp] = []
    try:
        for frame in decoded_frames(path, look.stream):
            if found or frame.pts == look.first.stamp:
                found.append(frame.pts)
    except DecodeError as error:
        if error.reason != "damaged":
            raise
        last = max((stamp for stamp in found if stamp is not None), default=None)
        rest = sorted(item.stamp for item in look.shown() if item.stamp is not None)
        found += [stamp for stamp in rest if last is None or stamp > last]
    look.lost = tuple(_lost(look, found))
    return found


def _lost(look: Look, found: Sequence[Stamp]) -> list[int]:
    """Stamps of stored frames that give no picture although nothing else is shown in their place."""
    known = sorted({stamp for stamp in found if stamp is not None})
    stored = {item.stamp: item.size for item in look.shown() if item.stamp is not None}
    if len(known) < 2 or not {*known} <= {*stored}:
        return []
    ticks = np.array(known)
    step = float(np.median(np.diff(ticks)))
    lost = []
    for stamp in sorted({*stored} - {*known}):
        place = int(np.searchsorted(ticks, stamp))
        leaves_gap = place == len(ticks) or ticks[place] - ticks[place - 1] > 1.5 * step
        if leaves_gap and stored[stamp] > _PLACEHOLDER_BYTES:
            lost.append(stamp)
    return lost


def _facts(look: Look, first: Picture, stamps: Sequence[Stamp]) -> VideoFacts:
    packets = {item.stamp: item for item in look.packets if item.stamp is not None}
    last = packets.get(stamps[-1]) if stamps[-1] is not None else None
    is_broadcast = look.container in ("mpegts", "mpeg")
    duration = last.duration if last else 0
    timing, notes = timing_of(stamps, look.unit, duration, look.rate, is_broadcast=is_broadcast)
    moments = dict(zip(stamps, timing.times.tolist(), strict=True))
    torn = [moments[stamp] for stamp, item in packets.items() if item.after_hole and stamp in moments]
    slack = 16 / timing.fps
    origin = stamps[0] or 0
    repeats = [float((stamp - origin) * look.unit) for stamp in look.placeholders if stamp is not None]
    is_gapless = look.codec in _EVERY_FRAME
    holes = [
        (begin, end)
        for begin, end in gaps_of(timing.times, min_steps=1.5, min_seconds=0.0)
        if (is_gapless and sum(begin < moment < end for moment in repeats) < round((end - begin) * timing.fps) - 1)
        or any(begin - slack <= moment <= end + slack for moment in torn)
    ]
    orientation, is_followed = orientation_of(first.matrix) if len(first.matrix) == 9 else (UPRIGHT, True)
    notes += _notes(look, first, timing, holes, is_followed=is_followed)
    begin = float(stamps[0] or 0) * float(look.unit)
    return VideoFacts(
        container=look.container,
        codec=look.codec,
        stream=look.stream,
        timing=timing,
        stamps=tuple(stamps),
        height=first.height,
        width=first.width,
        pixel_format=first.pixel_format,
        orientation=orientation,
        is_plain=_is_plain(look, first, orientation, notes),
        notes=notes,
        truncated=look.truncated,
        no_start=_no_start(look),
        holes=tuple(holes),
        lost=tuple(float(stamp) * float(look.unit) - begin for stamp in look.lost),
    )


def _notes(
    look: Look, first: Picture, timing: Timing, holes: Sequence[tuple[float, float]], *, is_followed: bool
) -> tuple[Note, ...]:
    """Notes on unusual pictures, and on pictures that are not there."""
    notes = []
    if look.aspect and abs(look.aspect - 1) > _SQUARE:
        notes.append(Note("non-square-pixels", f"pixels are {look.aspect} as wide as high and are taken as square"))
    if first.hdr:
        notes.append(Note("hdr", f"{first.hdr} colours are stored without tone mapping"))
    if not is_followed:
        notes.append(Note("odd-angle", "the picture should be turned by an angle that is not a multiple of 90 degrees"))
    if look.num_streams > 1:
        notes.append(Note("several-streams", f"stream {look.stream} is read, one of {look.num_streams} video streams"))
    if look.missing:
        notes.append(Note("gaps", f"the header counts {count_of(look.missing, 'frame')} more than there are"))
    leading = len(look.leading())
    if leading:
        notes.append(Note("undecodable-start", f"{leading} pictures before the first that can be decoded are left out"))
    gaps = [gap for gap in gaps_of(timing.times) if gap not in holes]
    if gaps:
        begin, end = max(gaps, key=lambda gap: gap[1] - gap[0])
        times = count_of(len(gaps), "time")
        notes.append(Note("gaps", f"{times} no new frame comes, the longest from {begin:.2f} to {end:.2f} s"))
    return tuple(notes)


def _no_start(look: Look) -> str:
    """The part that is missing at the beginning, when a cut between two key frames does not explain it."""
    assert look.first is not None
    leading = look.leading()
    if not leading or look.first.stamp is None or look.has_failed:
        return ""
    excused = [item for item in leading if not item.follows_key or (look.key is None or (item.stamp or 0) < look.key)]
    seconds = float((look.first.stamp - min(item.stamp or 0 for item in leading)) * look.unit)
    if len(excused) == len(leading) and seconds <= _START_SECONDS:
        return ""
    return f"its first {len(leading)} frames, {seconds:.2f} s, cannot be decoded"


def _is_plain(look: Look, first: Picture, orientation: str, notes: Sequence[Note]) -> bool:
    is_turned_right = orientation == UPRIGHT or (
        orientation in _DECORD_TURNS and look.container == _DECORD_CONTAINERS[0]
    )
    unusual = {note.kind for note in notes} - {"non-square-pixels", "hdr", "rate"}
    return (
        look.container in _DECORD_CONTAINERS
        and look.codec in _DECORD_CODECS
        and first.pixel_format in _DECORD_PIXELS
        and is_turned_right
        and not first.is_interlaced
        and not unusual
        and not look.lost
        and not look.truncated
        and look.packets[0].follows_key
    )
