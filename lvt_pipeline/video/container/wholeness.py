"""Whether a video file was cut short: by its outermost structure and by the length that its header announces."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO, Literal

_FRAGMENTS = (b"moof", b"mdat")
_OGG_PAGE = 65_307  # bytes at most
_TS_PACKETS = (188, 192, 204)  # bytes

# cut: the file ends inside its outermost structure; lossy: moreover the missing bytes hold frames.
Ending = Literal["whole", "cut", "lossy"]


def ending_of(path: str, container: str) -> Ending:
    """How a file of a format whose outermost structure states its length ends; others count as whole.

    Args:
        container: FFmpeg's name of the file format.
    """
    if container not in _LOOKS:
        return "whole"
    with open(path, "rb") as stream:
        return _LOOKS[container](stream, os.path.getsize(path))


def _mp4(stream: BinaryIO, size: int) -> Ending:
    place, kind, kinds = 0, b"", set[bytes]()
    while place < size:
        stream.seek(place)
        head = stream.read(16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 and b"moof" in kinds:
            return "lossy"
        if length < 8 or not kind.isalnum():  # 0: to the end of the file; others: something after the last box
            return "whole"
        kinds.add(kind)
        place += length
    if place == size:
        return "whole"
    return "lossy" if b"moof" in kinds and kind in _FRAGMENTS else "cut"


def _avi(stream: BinaryIO, size: int) -> Ending:
    place = 0
    while place + 8 <= size:
        stream.seek(place)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or not length:
            return "whole"
        place += 8 + length
    return "cut" if place > size else "whole"


def _matroska(stream: BinaryIO, size: int) -> Ending:
    place = 0
    for _ in range(2):  # the header and the segment
        stream.seek(place + 4)
        head = stream.read(8)
        width = 9 - (head[0] if head else 0).bit_length()
        if not 1 <= width <= len(head):
            return "whole"
        bits = 7 * width
        length = int.from_bytes(head[:width], "big") & ((1 << bits) - 1)
        if length == (1 << bits) - 1:  # unknown: a live recording
            return "whole"
        place += 4 + width + length
    return "cut" if place > size else "whole"


def _mpegts(stream: BinaryIO, size: int) -> Ending:
    begin = stream.read(3 * _TS_PACKETS[-1])
    for length in _TS_PACKETS:
        first = length - 188 if length == 192 else 0  # a time code before each packet
        if len(begin) > 2 * length and all(begin[first + k * length] == 0x47 for k in range(3)):
            return "lossy" if size % length else "whole"
    return "whole"


def _ogg(stream: BinaryIO, size: int) -> Ending:
    stream.seek(max(0, size - 2 * _OGG_PAGE))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    is_last = len(page) > 27 and bool(page[5] & 4)
    is_whole = is_last and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return "whole" if is_whole else "lossy"


def _gif(stream: BinaryIO, size: int) -> Ending:
    stream.seek(max(0, size - 64))
    # The end of the last picture and the trailer.
    return "whole" if stream.read().rstrip(b"\0").endswith(b"\0;") else "lossy"


_LOOKS: dict[str, Callable[[BinaryIO, int], Ending]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "avi": _avi,
    "matroska,webm": _matroska,
    "mpegts": _mpegts,
    "ogg": _ogg,
    "gif": _gif,
}
