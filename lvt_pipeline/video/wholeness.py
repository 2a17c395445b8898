"""Whether a video file was cut short: by its outermost structure and by the length that its header announces."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

# Without other evidence a header may announce a little more than the packets fill.
_SECONDS = 0.25
_SHARE = 0.01
_FRAMES = 0.75  # where there is other evidence
_FRAGMENTS = (b"moof", b"mdat")
_OGG_PAGE = 65_307  # bytes at most
_TS_PACKETS = (188, 192, 204)  # bytes


@dataclass(frozen=True)
class Ending:
    """How a file ends.

    Attributes:
        is_cut: it ends inside its outermost structure, so bytes are missing, which may hold frames or not.
        loses_frames: the bytes that are missing hold frames, whatever the header announces.
    """

    is_cut: bool = False
    loses_frames: bool = False


def ending_of(path: str, container: str) -> Ending:
    """How a file ends, for the formats whose outermost structure states its length; else as if it were whole.

    Args:
        container: FFmpeg's name of the file format.
    """
    look = _LOOKS.get(container)
    size = os.path.getsize(path)
    if look is None:
        return Ending()
    with open(path, "rb") as stream:
        return look(stream, size)


def is_short(announced: float, found: float, frame_seconds: float, *, is_cut: bool) -> bool:
    """Whether a file holds less than its header announces. All arguments are in seconds.

    Args:
        is_cut: the file certainly ends early. The difference is then less than a frame, and otherwise up to 0.25 s
            and 1 %, because real headers count a little too much.
    """
    allowed = _FRAMES * frame_seconds if is_cut else _SECONDS + _SHARE * announced
    return announced - found > allowed


def _mp4(stream: BinaryIO, size: int) -> Ending:
    place, kinds = 0, set()
    kind = b""
    while place < size:
        stream.seek(place)
        head = stream.read(16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 and b"moof" in kinds:
            return Ending(True, True)
        if length < 8 or not kind.isalnum():  # 0: to the end of the file; others: something after the last box
            return Ending()
        kinds.add(kind)
        place += length
    is_cut = place > size
    return Ending(is_cut, is_cut and b"moof" in kinds and kind in _FRAGMENTS)


def _avi(stream: BinaryIO, size: int) -> Ending:
    place = 0
    while place + 8 <= size:
        stream.seek(place)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or not length:
            return Ending()
        place += 8 + length
    return Ending(is_cut=place > size)


def _matroska(stream: BinaryIO, size: int) -> Ending:
    place = 0
    for _ in range(2):  # the header and the segment
        stream.seek(place + 4)
        head = stream.read(8)
        width = 9 - (head[0] if head else 0).bit_length()
        if not 1 <= width <= len(head):
            return Ending()
        bits = 7 * width
        length = int.from_bytes(head[:width], "big") & ((1 << bits) - 1)
        if length == (1 << bits) - 1:  # unknown: a live recording
            return Ending()
        place += 4 + width + length
    return Ending(is_cut=place > size)


def _mpegts(stream: BinaryIO, size: int) -> Ending:
    begin = stream.read(3 * _TS_PACKETS[-1])
    for length in _TS_PACKETS:
        first = length - 188 if length == 192 else 0  # a time code before each packet
        if len(begin) > 2 * length and all(begin[first + k * length] == 0x47 for k in range(3)):
            is_cut = bool(size % length)
            return Ending(is_cut, is_cut)
    return Ending()


def _ogg(stream: BinaryIO, size: int) -> Ending:
    stream.seek(max(0, size - 2 * _OGG_PAGE))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    is_last = len(page) > 27 and bool(page[5] & 4)
    is_cut = not is_last or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    return Ending(is_cut, is_cut)


def _gif(stream: BinaryIO, size: int) -> Ending:
    stream.seek(max(0, size - 64))
    is_cut = not stream.read().rstrip(b"\0").endswith(b"\0;")  # the end of the last picture and the trailer
    return Ending(is_cut, is_cut)


_LOOKS: dict[str, Callable[[BinaryIO, int], Ending]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "avi": _avi,
    "matroska,webm": _matroska,
    "mpegts": _mpegts,
    "ogg": _ogg,
    "gif": _gif,
}
