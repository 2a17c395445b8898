"""What a video file holds, found out once and before anything else: every decoder is held to these facts.

PyAV reads the packets and decodes the first picture. Where the packets leave room for doubt (stamps that cannot be
true, packets that may hold no picture) the whole stream is decoded once, without conversion to RGB, and the facts are
those of the decoded frames.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.geometry import UPRIGHT, orientation_of
from lvt_pipeline.video.settings import MAX_FPS
from lvt_pipeline.video.timing import Stamp, Timing, gaps_of, is_plausible, timing_of
from lvt_pipeline.video.wholeness import Ending, ending_of

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.stream import Stream

# FFmpeg's demuxers of files that hold their video themselves. Those of playlists and scripts (concat, HLS, DASH, SDP,
# numbered pictures) open other files, whose content is in no digest.
DEMUXERS = (
    "3g2,3gp,amv,apng,asf,av1,avi,avs,bethsoftvid,bink,cavsvideo,cdxl,cine,dirac,dnxhd,dsicin,dv,ea,film_cpk,flic,flv,"
    "gdv,gif,gxf,h261,h263,h264,hevc,idcin,ipmovie,ivf,jpeg_pipe,jpegxl_anim,jv,kux,live_flv,lmlm4,lvf,lxf,m4v,matroska,"
    "mj2,mjpeg,mjpeg_2000,mlv,mm,mods,mov,mp4,mpeg,mpegts,mpegvideo,msf,mtv,mvi,mxf,mxg,nc,nsv,nut,nuv,obu,ogg,paf,pmp,"
    "png_pipe,psxstr,pva,r3d,rl2,rm,roq,rpl,sga,siff,smk,smush,svs,swf,thp,tiertexseq,tmv,ty,vc1,vc1test,vividas,vivo,"
    "vmd,vqf,vvc,wc3movie,webm,webp_pipe,wsvqa,wtv,wve,xmv,yop,yuv4mpegpipe"
)
# How text files begin that are taken for videos, and what they are.
_TEXT_FILES = {
    b"ffconcat": "an ffconcat script",
    b"#EXTM3U": "an HLS playlist",
    b"<?xml": "an XML file such as a DASH manifest",
    b"<MPD": "a DASH manifest",
    b"v=0": "an SDP description",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
}

# Decoders that mark the pictures in which they conceal damage.
_MARKING = (
    "h264",
    "hevc",
    "mpeg4",
    "mpeg1video",
    "mpeg2video",
    "h263",
    "flv",
    "vp8",
    "vp9",
    "av1",
    "libdav1d",
    "prores",
)
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
# A header may announce a little more than the packets fill, where nothing else proves that the file was cut.
_SHORTFALL_SECONDS = 0.25
_SHORTFALL_SHARE = 0.01
_USUAL_FRAME = 0.04  # seconds, where no rate is known
# A cut between two key frames leaves this much undecodable at most; more is a video whose beginning is missing.
_START_SECONDS = 12.0
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
_BT2020 = 9  # colour primaries
_SQUARE = 0.01  # pixels whose sides differ by less are square
_EVERY_FRAME = ("theora",)  # codecs that store a packet, if an empty one, for every frame interval
_PLACEHOLDER_BYTES = 8  # a packet this small that decodes to nothing says "as before"


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
        notes: what is unusual.
        truncated: what is there and what is missing, when the file was cut short; empty for a whole one.
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
    """Look into a video file: what is in it, and is it whole?

    Args:
        thorough: decode the whole stream, whatever the packets say.

    Raises:
        DecodeError: missing, unreadable, no-video, unsupported-codec or, for a file without any frame that can be
            decoded, truncated or damaged.
    """
    require_regular_file(path)
    with open_container(path) as container:
        stream = choose_stream(container, path)
        look = _read_packets(container, stream, path)
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


def require_regular_file(path: str) -> None:
    """Refuse what cannot hold a video whatever its content: FFmpeg cannot say what is wrong with it.

    Raises:
        DecodeError: missing or unreadable.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("missing", f"{path} does not exist") from None
    except OSError as error:
        raise DecodeError("unreadable", f"{path} cannot be read: {(error.strerror or 'unknown').lower()}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise DecodeError("unreadable", f"{path} cannot be read: permission denied")
    if status.st_size == 0:
        raise DecodeError("unreadable", f"{path} is empty: it has 0 bytes")


def open_container(path: str) -> InputContainer:
    """Open a media file with PyAV; playlists and other files that name files are refused.

    Raises:
        DecodeError: unreadable.
    """
    import av

    av.logging.set_level(None)  # FFmpeg's remarks would appear between the lines of the command
    # PyAV before 19 refuses titles that are not UTF-8, which phones write, unless it is asked to replace them.
    older: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    try:
        container: InputContainer = av.open(path, container_options=options, **older)
        return container
    except MemoryError as error:
        raise DecodeError("out-of-memory", f"{path}: its headers do not fit into memory") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError("unreadable", f"{path} {_what_it_is(path)}") from error


def _what_it_is(path: str) -> str:
    """What a file is that FFmpeg does not open, as far as its first bytes tell."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        head = b""
    kind = next((kind for begin, kind in _TEXT_FILES.items() if head.startswith(begin)), None)
    return "is not a video, or its index is missing or damaged" if kind is None else f"is not a video but {kind}"


def _pictures(container: InputContainer) -> list[VideoStream]:
    """The video streams that are not cover pictures."""
    from av.stream import Disposition

    return [item for item in container.streams.video if not item.disposition & Disposition.attached_pic]


def choose_stream(container: InputContainer, path: str) -> VideoStream:
    """The video stream that ffmpeg takes: the one marked as default, then the one with the largest pictures.

    Raises:
        DecodeError: no-video or unsupported-codec.
    """
    from av.stream import Disposition

    streams = _pictures(container)
    if not streams:
        covers = len(container.streams.video)
        kinds = [item.type for item in container.streams if item.type != "video"]
        only = sorted({*kinds, *(["a cover picture"] if covers else [])})
        raise DecodeError("no-video", f"{path} holds no video, only {' and '.join(only) or 'other data'}")
    known = [item for item in streams if item.codec_context is not None]
    if not known:
        raise DecodeError("unsupported-codec", f"{path} is in a video codec that FFmpeg cannot decode here")

    def score(item: VideoStream) -> int:  # that of the ffmpeg program
        is_default = bool(item.disposition & Disposition.default)
        return (item.codec_context.width or 0) * (item.codec_context.height or 0) + 5_000_000 * is_default

    return max(known, key=score)


def packets_of(container: InputContainer, *streams: VideoStream) -> Generator[Packet[Stream]]:
    """The packets of some streams, of all when none is given, in the order of the file."""
    try:
        for packet in container.demux(*streams):
            if packet.size or packet.pts is not None:  # others say that a stream is over, not always which
                yield packet
    except IndexError:
        # MPEG-TS, MPEG-PS and FLV: a stream that begins in the middle is not in PyAV's list, which it looks up
        # only after the last packet of the others.
        return


def decoded_frames(path: str, index: int, errors: list[str] | None = None) -> Generator[VideoFrame]:
    """Every frame that FFmpeg decodes from a stream, in order of display, without conversion.

    What cannot be decoded before the first key frame is passed over, as every player does.

    Args:
        errors: for a codec whose decoder conceals damage without marking pictures, its error messages are added here.

    Raises:
        DecodeError: damaged, unsupported-codec or out-of-memory.
    """
    import av

    with open_container(path) as container:
        stream = container.streams[index]
        assert isinstance(stream, av.VideoStream)
        codec = stream.codec_context.name
        _in_one_thread(stream)
        can_fail = True
        try:
            for packet in packets_of(container, stream):
                if not packet.size:
                    continue  # a placeholder: the frame before it is shown for longer
                can_fail = can_fail and not packet.is_keyframe
                try:
                    with _messages(codec, errors):
                        frames: Any = packet.decode()
                except av.InvalidDataError:
                    if not can_fail:
                        raise
                    continue
                yield from frames
            yield from stream.codec_context.decode(None)
        except (av.FFmpegError, ValueError) as error:
            raise failure_of(error, path, codec) from error


@contextmanager
def _messages(codec: str, errors: list[str] | None) -> Iterator[None]:
    """Collect the error messages of a decoder that does not mark damaged pictures."""
    import av

    if errors is None or codec in _MARKING:
        yield
        return
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines:
            yield
        errors.extend(message.strip() for _, _, message in lines)
    finally:
        av.logging.set_level(None)


def failure_of(error: Exception, path: str, codec: str) -> DecodeError:
    """What an error of FFmpeg while decoding means."""
    import av

    if isinstance(error, MemoryError):
        return DecodeError("out-of-memory", f"{path}: a decoder's buffers do not fit into memory")
    if isinstance(error, av.DecoderNotFoundError | av.PatchWelcomeError):
        return DecodeError("unsupported-codec", f"{path} is in {codec}, which FFmpeg cannot decode here")
    return DecodeError("damaged", f"{path} holds {codec} data that cannot be decoded")


def _in_one_thread(stream: VideoStream) -> None:
    stream.thread_type = "NONE"  # clips are decoded in parallel, not frames
    stream.codec_context.thread_count = 1


@dataclass(frozen=True)
class _Packet:
    """A packet of the chosen stream that shows a frame. Times in units of the stream's clock."""

    stamp: Stamp
    dts: Stamp
    duration: int
    size: int
    follows_key: bool  # it is, or comes after, the first key frame in the file
    after_hole: bool = False  # bytes before it belong to no packet


@dataclass(frozen=True)
class _Picture:
    """What the first decoded frame says about all."""

    stamp: Stamp
    height: int
    width: int
    pixel_format: str
    matrix: tuple[int, ...]
    is_interlaced: bool
    hdr: str


@dataclass
class _Look:
    """What the packets say, collected while the container is open."""

    container: str
    codec: str
    stream: int
    unit: Fraction
    rate: Fraction | None
    num_streams: int
    aspect: Fraction | None = None
    packets: list[_Packet] = field(default_factory=list)
    placeholders: list[Stamp] = field(default_factory=list)  # of packets that repeat the frame before
    first: _Picture | None = None
    key: Stamp = None  # of the first key frame
    has_failed: bool = False  # a packet after the first key frame could not be decoded before the first picture
    truncated: str = ""
    ends_corrupt: bool = False  # the last packet is not whole
    missing: int = 0  # frames that the header counts and that are not there
    lost: tuple[int, ...] = ()

    def leading(self) -> list[_Packet]:
        """Packets whose frames would be shown before the first one that can be decoded."""
        begin = self.first.stamp if self.first else None
        return [item for item in self.packets if begin is not None and item.stamp is not None and item.stamp < begin]

    def shown(self) -> list[_Packet]:
        """All others."""
        begin = self.first.stamp if self.first else None
        return [item for item in self.packets if begin is None or item.stamp is None or item.stamp >= begin]

    def predicted_stamps(self) -> list[Stamp] | None:
        """Stamps of all frames in order of display; None where only decoding can tell."""
        dts = [item.dts for item in self.packets if item.dts is not None]
        if any(later < earlier for earlier, later in pairwise(dts)):
            return None
        known = [item.stamp for item in self.shown() if item.stamp is not None]
        if len(known) < len(self.shown()) or not is_plausible(sorted(known), float(self.unit)):
            return None
        return [*sorted(known)]


def _read_packets(container: InputContainer, stream: VideoStream, path: str) -> _Look:
    """Read the packets of all streams: sound that outlasts the picture is normal, a file that ends early was cut."""
    import av

    _in_one_thread(stream)
    unit = Fraction(stream.time_base or Fraction(1, 1000))
    codec = stream.codec_context.name
    look = _Look(container.format.name, codec, stream.index, unit, stream.average_rate, len(_pictures(container)))
    coverage = _Coverage(container.format.name)
    whole = own = (0.0, 0.0)  # begin and end in seconds, of all streams and of the chosen one
    has_key = False
    try:
        for packet in packets_of(container):
            shown = packet.pts if packet.pts is not None else packet.dts
            ticks = (0, 0) if shown is None else (shown, shown + (packet.duration or 0))
            moments = [tick * float(packet.time_base or 0) for tick in ticks]
            whole = (min(whole[0], *moments), max(whole[1], *moments))
            coverage.add(packet)
            if packet.stream_index != stream.index:
                continue
            own = (min(own[0], *moments), max(own[1], *moments))
            look.ends_corrupt = packet.is_corrupt
            if packet.is_keyframe and not has_key:
                has_key, look.key = True, packet.pts
            if not packet.size:
                look.placeholders.append(packet.pts)
            elif _shows_a_frame(packet, codec):
                look.packets.append(
                    _Packet(packet.pts, packet.dts, packet.duration or 0, packet.size, has_key, coverage.has_hole)
                )
                coverage.has_hole = False
            if look.first is None and packet.size:
                look.first = _first_picture(stream, packet, look, has_key, path)
        if look.first is None:
            look.first = _first_picture(stream, None, look, has_key, path)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise DecodeError("out-of-memory", f"{path}: its packets do not fit into memory") from error
        look.truncated = f"it ends inside a packet, after {_counted(look, stream)}"
    spans = [(_announced(stream, look), own[1] - own[0]), ((container.duration or 0) / 1e6, whole[1] - whole[0])]
    look.truncated = look.truncated or _shortfall(stream, look, spans, ending_of(path, look.container))
    look.missing = _missing(stream, look, own[1] - own[0])
    look.aspect = stream.sample_aspect_ratio
    return look


def _first_picture(
    stream: VideoStream, packet: Packet[Stream] | None, look: _Look, has_key: bool, path: str
) -> _Picture | None:
    """The first picture worth showing, if decoding gets that far with this packet, or with None as the last."""
    import av

    try:
        frames = stream.codec_context.decode(packet)
    except av.InvalidDataError:
        look.has_failed |= has_key
        return None
    except (av.FFmpegError, ValueError) as error:
        raise failure_of(error, path, look.codec) from error
    for frame in frames:
        leads = not has_key or (look.key is not None and frame.pts is not None and frame.pts < look.key)
        if not (frame.is_corrupt and leads):
            return _picture(frame, stream)
    return None


def _picture(frame: VideoFrame, stream: VideoStream) -> _Picture:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    matrix = tuple(np.frombuffer(bytes(data), np.int32).tolist()) if data is not None else ()
    # Frames know their colours since PyAV 17; before, the decoder does.
    colours = frame if hasattr(frame, "color_trc") else stream.codec_context
    transfer, primaries = colours.color_trc, colours.color_primaries
    hdr = _HDR.get(int(transfer or 0), "BT.2020" if int(primaries or 0) == _BT2020 else "")
    return _Picture(frame.pts, frame.height, frame.width, frame.format.name, matrix, frame.interlaced_frame, hdr)


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


def _shows_a_frame(packet: Packet[Stream], codec: str) -> bool:
    """Whether a player would show something: edit lists hide packets, VP8 and VP9 keep hidden reference frames."""
    if packet.is_discard:
        return False
    if codec == "vp8":
        return bool(bytes(packet)[0] & 0x10)  # show_frame, RFC 6386 section 9.1
    return codec != "vp9" or any(map(_vp9_shows, _vp9_frames(bytes(packet))))


def _vp9_frames(data: bytes) -> list[bytes]:
    """The frames of a VP9 packet: several where it ends in the index of a superframe (VP9 bitstream, annex B)."""
    marker = data[-1]
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = data[-2 - count * width :]
        if len(index) == 2 + count * width and index[0] == marker:
            ends = np.cumsum([int.from_bytes(index[1 + k * width :][:width], "little") for k in range(count)]).tolist()
            return [data[first:stop] for first, stop in zip([0, *ends], ends, strict=False)]
    return [data]


def _vp9_shows(frame: bytes) -> bool:
    """show_existing_frame or show_frame of the uncompressed header (VP9 bitstream, section 7.2)."""
    if not frame or frame[0] >> 6 != 2:
        return bool(frame)
    bits = frame[0] << 8 | (frame[1] if len(frame) > 1 else 0)
    place = 11 - (frame[0] >> 4 & 3 == 3)  # profile 3 has a reserved bit
    return bool(bits >> place & 1) or bool(bits >> (place - 2) & 1)


def _shortfall(stream: VideoStream, look: _Look, spans: Sequence[tuple[float, float]], ending: Ending) -> str:
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


def _counted(look: _Look, stream: VideoStream) -> str:
    """Frames found, next to the header's count if it counts."""
    found = len(look.packets)
    return f"{found} of {stream.frames} frames" if stream.frames > found else f"{found} frames"


def _announced(stream: VideoStream, look: _Look) -> float:
    """Seconds of the stream itself by its header; 0 when it states none.

    MP4 states a length from which edit lists are already taken off. AVI files, whose duration FFmpeg estimates from
    the bytes that are left, count frames.
    """
    if look.container == _MP4:
        return float((stream.duration or 0) * look.unit)
    rate = float(look.rate or 0)
    return stream.frames / rate if 0 < rate <= MAX_FPS else 0.0


def _missing(stream: VideoStream, look: _Look, seconds: float) -> int:
    """Frames that an AVI header counts and that are neither there nor replaced by placeholders, one excepted."""
    if look.container != "avi" or look.truncated:
        return 0
    rate = float(look.rate or 0)
    ticks = stream.frames - round(seconds * rate) if 0 < rate <= MAX_FPS else 0
    stored = [item.dts for item in look.packets if item.dts is not None]
    usual = float(np.median(np.diff(stored))) if len(stored) > 2 else 1.0  # a clock may be finer than the frames
    missing = int(ticks / max(1.0, usual))
    return missing if missing > 1 else 0


def _stamps_of_decoded(path: str, look: _Look) -> list[Stamp]:
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


def _lost(look: _Look, found: Sequence[Stamp]) -> list[int]:
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


def _facts(look: _Look, first: _Picture, stamps: Sequence[Stamp]) -> VideoFacts:
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
    look: _Look, first: _Picture, timing: Timing, holes: Sequence[tuple[float, float]], *, is_followed: bool
) -> tuple[Note, ...]:
    """What is unusual about the pictures and about which of them there are."""
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
        notes.append(Note("gaps", f"the header counts {look.missing} frames more than there are"))
    leading = len(look.leading())
    if leading:
        notes.append(Note("undecodable-start", f"{leading} pictures before the first that can be decoded are left out"))
    gaps = [gap for gap in gaps_of(timing.times) if gap not in holes]
    if gaps:
        begin, end = max(gaps, key=lambda gap: gap[1] - gap[0])
        notes.append(Note("gaps", f"{len(gaps)} times no new frame comes, the longest from {begin:.2f} to {end:.2f} s"))
    return tuple(notes)


def _no_start(look: _Look) -> str:
    """What is missing at the beginning, when that is more than a cut between two key frames leaves undecodable."""
    assert look.first is not None
    leading = look.leading()
    if not leading or look.first.stamp is None or look.has_failed:
        return ""
    excused = [item for item in leading if not item.follows_key or (look.key is None or (item.stamp or 0) < look.key)]
    seconds = float((look.first.stamp - min(item.stamp or 0 for item in leading)) * look.unit)
    if len(excused) == len(leading) and seconds <= _START_SECONDS:
        return ""
    return f"its first {len(leading)} frames, {seconds:.2f} s, cannot be decoded"


# decord's result is proven equal for these (`tests/test_exact_frames.py`).
_DECORD_CONTAINERS = (_MP4, "matroska,webm", "avi", "flv")
_DECORD_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "h263")
_DECORD_PIXELS = ("yuv420p", "yuvj420p", "yuv444p")
_DECORD_TURNS = ("clock", "cclock", "hflip,vflip")  # of MP4 and MOV only


def _is_plain(look: _Look, first: _Picture, orientation: str, notes: Sequence[Note]) -> bool:
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
