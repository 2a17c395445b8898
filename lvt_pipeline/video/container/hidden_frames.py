"""Packets that hold no frame to show: hidden by an edit list, or kept by VP8 and VP9 for reference only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import Packet
    from av.stream import Stream


def shows_a_frame(packet: Packet[Stream], codec: str) -> bool:
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
