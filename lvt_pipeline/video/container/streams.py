"""Opening a video file with PyAV: the formats that are allowed, the stream that is read, its packets and frames."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lvt_pipeline.errors import DecodeError

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
# How text files begin that are taken for videos, with the kind of file.
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
    *("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "h263"),
    *("flv", "vp8", "vp9", "av1", "libdav1d", "prores"),
)


def require_regular_file(path: str) -> None:
    """Refuse a path that is not a readable file: FFmpeg would not name the problem.

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
    """The kind of a file that FFmpeg does not open, as far as its first bytes show it."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        head = b""
    kind = next((kind for begin, kind in _TEXT_FILES.items() if head.startswith(begin)), None)
    return "is not a video, or its index is missing or damaged" if kind is None else f"is not a video but {kind}"


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams that are not cover pictures."""
    from av.stream import Disposition

    return [item for item in container.streams.video if not item.disposition & Disposition.attached_pic]


def choose_stream(container: InputContainer, path: str) -> VideoStream:
    """The video stream that ffmpeg takes: the one marked as default, then the one with the largest pictures.

    Raises:
        DecodeError: no-video or unsupported-codec.
    """
    from av.stream import Disposition

    streams = video_streams(container)
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
            if packet.size or packet.pts is not None:  # others mark the end of a stream, not always of which
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
        in_one_thread(stream)
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
    """The reason that stands behind an error of FFmpeg while decoding."""
    import av

    if isinstance(error, MemoryError):
        return DecodeError("out-of-memory", f"{path}: a decoder's buffers do not fit into memory")
    if isinstance(error, av.DecoderNotFoundError | av.PatchWelcomeError):
        return DecodeError("unsupported-codec", f"{path} is in {codec}, which FFmpeg cannot decode here")
    return DecodeError("damaged", f"{path} holds {codec} data that cannot be decoded")


def in_one_thread(stream: VideoStream) -> None:
    stream.thread_type = "NONE"  # clips are decoded in parallel, not frames
    stream.codec_context.thread_count = 1
