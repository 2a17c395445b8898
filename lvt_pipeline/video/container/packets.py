"""One pass over the packets of a video file: the frames they hold, and those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.progress import count_of
from lvt_pipeline.video.container.hidden_frames import shows_a_frame
from lvt_pipeline.video.container.streams import failure_of, in_one_thread, packets_of, video_streams
from lvt_pipeline.video.container.timing import Stamp, is_plausible
from lvt_pipeline.video.container.wholeness import Ending, ending_of
from lvt_pipeline.video.settings import MAX_FPS

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.stream import Stream

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
# A header may announce a little more than the packets fill, where nothing else proves that the file was cut.
_SHORTFALL_SECONDS = 0.25
_SHORTFALL_SHARE = 0.01
_USUAL_FRAME = 0.04  # seconds, where no rate is known
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
_BT2020 = 9  # colour primaries


@dataclass(frozen=True)
class ShownPacket:
    """A packet of the chosen stream that shows a frame. Times in units of the stream's clock."""

    stamp: Stamp
    dts: Stamp
    duration: int
    size: int
    follows_key: bool  # it is, or comes after, the first key frame in the file
    after_hole: bool = False  # bytes before it belong to no packet


@dataclass(frozen=True)
class Picture:
    """The first decoded frame: its properties hold for all."""

    stamp: Stamp
    height: int
    width: int
    pixel_format: str
    matrix: tuple[int, ...]
    is_interlaced: bool
    hdr: str


@dataclass
class Look:
    """The contents of the packets, collected while the container is open.

    Attributes:
        placeholders: stamps of packets that repeat the frame before.
        key: stamp of the first key frame.
        has_failed: a packet after the first key frame could not be decoded before the first picture.
        ends_corrupt: the last packet is not whole.
        missing: frames that the header counts and that are not there.
    """

    container: str
    codec: str
    stream: int
    unit: Fraction
    rate: Fraction | None
    num_streams: int
    aspect: Fraction | None = None
    packets: list[ShownPacket] = field(default_factory=list)
    placeholders: list[Stamp] = field(default_factory=list)
    first: Picture | None = None
    has_key: bool = False
    key: Stamp = None
    has_failed: bool = False
    truncated: str = ""
    ends_corrupt: bool = False
    missing: int = 0
    lost: tuple[int, ...] = ()

    def leading(self) -> list[ShownPacket]:
        """Packets whose frames would be shown before the first one that can be decoded."""
        begin = self.first.stamp if self.first else None
        return [item for item in self.packets if begin is not None and item.stamp is not None and item.stamp < begin]

    def shown(self) -> list[ShownPacket]:
        """All others."""
        begin = self.first.stamp if self.first else None
        return [item for item in self.packets if begin is None or item.stamp is None or item.stamp >= begin]

    def predicted_stamps(self) -> list[Stamp] | None:
        """Stamps of all frames in order of display; None where only decoding can find them out."""
        dts = [item.dts for item in self.packets if item.dts is not None]
        if any(later < earlier for earlier, later in pairwise(dts)):
            return None
        known = [item.stamp for item in self.shown() if item.stamp is not None]
        if len(known) < len(self.shown()) or not is_plausible(sorted(known), float(self.unit)):
            return None
        return [*sorted(known)]


def read_packets(container: InputContainer, stream: VideoStream, path: str) -> Look:
    """Read the packets of all streams: sound that outlasts the picture is normal, a file that ends early was cut.

    Raises:
        DecodeError: "out-of-memory".
    """
    import av

    in_one_thread(stream)
    unit, codec = Fraction(stream.time_base or Fraction(1, 1000)), stream.codec_context.name
    look = Look(container.format.name, codec, stream.index, unit, stream.average_rate, len(video_streams(container)))
    coverage = _Coverage(container.format.name)
    whole = own = (0.0, 0.0)  # begin and end in seconds, of all streams and of the chosen one
    try:
        for packet in packets_of(container):
            moments = _moments(packet)
            whole = (min(whole[0], *moments), max(whole[1], *moments))
            coverage.add(packet)
            if packet.stream_index == stream.index:
                own = (min(own[0], *moments), max(own[1], *moments))
                _add(packet, look, coverage)
                if look.first is None and packet.size:
                    look.first = _first_picture(stream, packet, look, path)
        if look.first is None:
            look.first = _first_picture(stream, None, look, path)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise DecodeError("out-of-memory", f"{path}: its packets do not fit into memory") from error
        look.truncated = f"it ends inside a packet, after {_counted(look, stream)}"
    spans = [(_announced(stream, look), own[1] - own[0]), ((container.duration or 0) / 1e6, whole[1] - whole[0])]
    look.truncated = look.truncated or _shortfall(stream, look, spans, ending_of(path, look.container))
    look.missing = _missing(stream, look, own[1] - own[0])
    look.aspect = stream.sample_aspect_ratio
    return look


def _moments(packet: Packet[Stream]) -> list[float]:
    """Begin and end of a packet in seconds."""
    shown = packet.pts if packet.pts is not None else packet.dts
    ticks = (0, 0) if shown is None else (shown, shown + (packet.duration or 0))
    return [tick * float(packet.time_base or 0) for tick in ticks]


def _add(packet: Packet[Stream], look: Look, coverage: _Coverage) -> None:
    """The next packet of the chosen stream."""
    look.ends_corrupt = packet.is_corrupt
    if packet.is_keyframe and not look.has_key:
        look.has_key, look.key = True, packet.pts
    if not packet.size:
        look.placeholders.append(packet.pts)
    elif shows_a_frame(packet, look.codec):
        duration = packet.duration or 0
        look.packets.append(ShownPacket(packet.pts, packet.dts, duration, packet.size, look.has_key, coverage.has_hole))
        coverage.has_hole = False


def _first_picture(stream: VideoStream, packet: Packet[Stream] | None, look: Look, path: str) -> Picture | None:
    """The first picture worth showing, if decoding gets that far with this packet, or with None as the last."""
    import av

    try:
        frames = stream.codec_context.decode(packet)
    except av.InvalidDataError:
        look.has_failed |= look.has_key
        return None
    except (av.FFmpegError, ValueError) as error:
        raise failure_of(error, path, look.codec) from error
    for frame in frames:
        leads = not look.has_key or (look.key is not None and frame.pts is not None and frame.pts < look.key)
        if not (frame.is_corrupt and leads):
            return _picture(frame, stream)
    return None


def _picture(frame: VideoFrame, stream: VideoStream) -> Picture:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    matrix = tuple(np.frombuffer(bytes(data), np.int32).tolist()) if data is not None else ()
    # Frames know their colours since PyAV 17; before, the decoder does.
    colours = frame if hasattr(frame, "color_trc") else stream.codec_context
    transfer, primaries = colours.color_trc, colours.color_primaries
    hdr = _HDR.get(int(transfer or 0), "BT.2020" if int(primaries or 0) == _BT2020 else "")
    return Picture(frame.pts, frame.height, frame.width, frame.format.name, matrix, frame.interlaced_frame, hdr)


class _Coverage:
    """Finds bytes that no packet covers, in containers that are read by looking for the next packet."""

    _SCANNED = ("mpeg", "mpegts", "matroska,webm", "flv", "live_flv", "asf", "ogg", "nut", "mxf", "rm", "wtv")
    _TIMES, _BYTES, _REMEMBERED = 4, 2048, 64

    def __init__(self, container: str) -> None:
        self._is_scanned = container in self._SCANNED
        self._end: int | None = None
        self._usual: list[int] = []  # of the last packets
        self.has_hole = False

    def add(self, packet: Packet[Stream]) -> None:
        """The next packet of the file, of any stream."""
        if not self._is_scanned or packet.pos is None or packet.pos < 0:
            return
        self.has_hole |= packet.is_corrupt
        if self._end is not None and packet.pos > self._end:
            between = packet.pos - self._end
            usual = max(self._usual, default=0)
            if between > self._TIMES * usual + self._BYTES and len(self._usual) > 4:
                self.has_hole = True
            else:
                self._usual = [*self._usual[1 - self._REMEMBERED :], between]
        self._end = max(self._end or 0, packet.pos + packet.size)


def _shortfall(stream: VideoStream, look: Look, spans: Sequence[tuple[float, float]], ending: Ending) -> str:
    """The part that is missing at the end, against the announcements of the header; empty for a whole file.

    Args:
        spans: seconds announced and found.
    """
    if ending == "lossy":
        return f"it ends inside a packet, after {_counted(look, stream)}"
    frame = 1 / float(look.rate) if look.rate and 0 < look.rate <= MAX_FPS else _USUAL_FRAME
    for announced, found in spans:
        allowed = 0.75 * frame if ending == "cut" else _SHORTFALL_SECONDS + _SHORTFALL_SHARE * announced
        if announced - found > allowed:
            part = f"there are {found:.2f} of the {announced:.2f} s that its header announces"
            return f"{part}, and {_counted(look, stream)}"
    if ending == "cut" and look.ends_corrupt:
        return f"its last frame is incomplete, {_counted(look, stream)}"
    return ""


def _counted(look: Look, stream: VideoStream) -> str:
    """Frames found, next to the header's count if it counts."""
    found = len(look.packets)
    return f"{found} of {stream.frames} frames" if stream.frames > found else count_of(found, "frame")


def _announced(stream: VideoStream, look: Look) -> float:
    """Seconds of the stream itself by its header; 0 when it states none.

    MP4 states a length from which edit lists are already taken off. AVI files, whose duration FFmpeg estimates from
    the bytes that are left, count frames.
    """
    if look.container == MP4:
        return float((stream.duration or 0) * look.unit)
    rate = float(look.rate or 0)
    return stream.frames / rate if 0 < rate <= MAX_FPS else 0.0


def _missing(stream: VideoStream, look: Look, seconds: float) -> int:
    """Frames that an AVI header counts and that are neither there nor replaced by placeholders, one excepted."""
    if look.container != "avi" or look.truncated:
        return 0
    rate = float(look.rate or 0)
    ticks = stream.frames - round(seconds * rate) if 0 < rate <= MAX_FPS else 0
    stored = [item.dts for item in look.packets if item.dts is not None]
    usual = float(np.median(np.diff(stored))) if len(stored) > 2 else 1.0  # a clock may be finer than the frames
    missing = int(ticks / max(1.0, usual))
    return missing if missing > 1 else 0
