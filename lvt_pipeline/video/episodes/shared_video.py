"""A video file that holds several recordings one after another: each is cut out by the numbers of its frames.

One pass over the file serves all of them in turn: the packets of other recordings are passed over without decoding.
A recording is decoded from the last key frame at or before its first frame, so nothing depends on a decoder's jumps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.container.facts import VideoFacts, inspect_video
from lvt_pipeline.video.container.streams import failure_of, in_one_thread, open_container, packets_of

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.stream import Stream


class SharedVideo:
    """A video file that is read in parts.

    Attributes:
        facts: what the file holds.
    """

    def __init__(self, path: str) -> None:
        """Read its packets, and decode nothing but the first picture.

        Raises:
            DecodeError: it is not a video, or its frames cannot be told apart by their time stamps.
        """
        self.path = path
        self.facts = inspect_video(path)
        place = {stamp: number for number, stamp in enumerate(self.facts.stamps)}
        if len(place) != self.facts.num_frames or None in place:
            raise DecodeError("damaged", f"{path} has frames without a time stamp of their own")
        self._digests: dict[int, bytes] = {}  # of packets, by frame
        order, keys = [], []
        with open_container(path) as container:
            for packet in packets_of(container, _stream(container, self.facts)):
                order.append(place.get(packet.pts, -1))
                keys.append(packet.is_keyframe)
                self._digests[order[-1]] = hashlib.sha256(bytes(packet)).digest()
        self._order = np.array(order)  # the frame of each packet in the file, -1 for none
        self._is_key = np.array(keys)
        self._stream: VideoStream | None = None
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._next = 0  # number of the packet that comes next

    def digest(self, first: int, stop: int) -> str:
        """SHA-256 of the packets of frames [first, stop), as far as the file has them."""
        found = [self._digests[frame] for frame in range(first, stop) if frame in self._digests]
        return hashlib.sha256(b"".join(found)).hexdigest()

    def frames(self, first: int, stop: int) -> Generator[VideoFrame]:
        """Decode frames [first, stop).

        Raises:
            DecodeError: "row-count" or "truncated": the file ends earlier; "damaged".
        """
        if stop > self.facts.num_frames:
            reason = "truncated" if self.facts.truncated else "row-count"
            message = f"{self.path} has {self.facts.num_frames:,} frames, this recording ends with frame {stop:,}"
            raise DecodeError(reason, message)
        wanted = first
        held: list[VideoFrame] = []  # the last frame waits until the pass is ready for the next recording
        for frame in self._decoded(first, stop):
            if wanted < stop and frame.pts == self.facts.stamps[wanted] and not frame.is_corrupt:
                yield from held
                held = [frame]
                wanted += 1
        if wanted < stop:
            raise DecodeError("damaged", f"{self.path}: frame {wanted + 1:,} is damaged")
        yield from held

    def _decoded(self, first: int, stop: int) -> Generator[VideoFrame]:
        """What a decoder gives from the key frame at or before `first` to the last packet of the recording."""
        import av

        packets = np.flatnonzero((self._order >= first) & (self._order < stop))
        keys = np.flatnonzero(self._is_key[: packets[0] + 1] & (self._order[: packets[0] + 1] <= first))
        begin, end = int(keys[-1]) if len(keys) else 0, int(packets[-1])
        stream, self._stream = self._stream, None  # it is put back when the recording is complete
        if stream is None or self._next > begin:
            container = open_container(self.path)
            stream = _stream(container, self.facts)
            self._packets, self._next = packets_of(container, stream), 0
        try:
            for packet in islice(self._packets, end + 1 - self._next):
                self._next += 1
                if self._next > begin:
                    yield from packet.decode()  # type: ignore[misc]
            yield from stream.codec_context.decode(None)
            stream.codec_context.flush_buffers()
        except (av.FFmpegError, ValueError) as error:
            raise failure_of(error, self.path, self.facts.codec) from error
        self._stream = stream


def _stream(container: InputContainer, facts: VideoFacts) -> VideoStream:
    import av

    stream = container.streams[facts.stream]
    assert isinstance(stream, av.VideoStream)
    in_one_thread(stream)
    return stream


@lru_cache(maxsize=8)
def open_shared(path: str, status: tuple[int, int, int]) -> SharedVideo:
    """A video file; its many recordings share one pass."""
    return SharedVideo(path)
