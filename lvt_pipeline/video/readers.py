"""The pictures of a video, by PyAV or by decord: the same frames, because both are held to the container's facts.

PyAV reads by default. FFmpeg conceals damage and marks the picture; PyAV shows the mark, decord does not, so with
decord the stream is decoded a second time to look for marks. That makes decord the slower of the two
(docs/benchmarks.md). It reads in order from the first frame, because its jumps give wrong pictures on some files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.container.facts import VideoFacts
from lvt_pipeline.video.container.streams import decoded_frames
from lvt_pipeline.video.geometry import Frames, scaled_sides, swaps_sides, turned
from lvt_pipeline.video.settings import GeometrySettings

if TYPE_CHECKING:
    from av import VideoFrame

Scaled = Callable[[int, int], tuple[int, int]]  # height and width of a picture to those it is scaled to


class UnexpectedFrameError(Exception):
    """A decoder gives other frames than the packets promised, so the packets cannot be believed."""


def readers_for(path: str, facts: VideoFacts, geometry: GeometrySettings, last: int, *, keep: bool) -> Sequence[str]:
    """Which decoders read a video, in the order they are tried; PyAV is the last.

    decord reads when it is asked for, the file is one of those whose pictures are proven equal, and decoding as far
    as frame `last` meets no damage.

    Raises:
        DecodeError: "damaged".
        UnexpectedFrameError: the frames are others than in `facts`.
    """
    if geometry.decoder != "decord" or not facts.is_plain or keep:
        return ("pyav",)
    if geometry.trust_bitstream:
        return ("decord", "pyav")
    sizes = set()
    for index, frame in enumerate(checked_frames(path, facts)):
        sizes.add((frame.height, frame.width))
        if index == last:
            break
    return ("decord", "pyav") if len(sizes) == 1 else ("pyav",)


def pictures_of(
    decoder: str,
    path: str,
    facts: VideoFacts,
    geometry: GeometrySettings,
    remarks: list[Note] | None = None,
    *,
    keep: bool = False,
) -> Generator[Frames]:
    """Every picture of the video in order, (H, W, 3), as large as it is; with resize "decoder" already scaled.

    Args:
        remarks: notes made while reading are added here.
        keep: the file is not whole; give the pictures before the first that cannot be decoded.

    Raises:
        DecodeError: while reading, when a picture cannot be decoded.
        UnexpectedFrameError: the frames are others than in `facts`.
    """
    scaled: Scaled | None = None
    if geometry.resize == "decoder":
        scaled = partial(scaled_sides, size=geometry.size, fit=geometry.fit)
    if decoder == "decord":
        return _decord_pictures(path, facts, scaled)
    remarks = [] if remarks is None else remarks
    frames = checked_frames(path, facts, remarks, trust=geometry.trust_bitstream, keep=keep)
    return rgb_pictures(frames, facts, path, remarks, scaled)


def checked_frames(
    path: str, facts: VideoFacts, remarks: list[Note] | None = None, *, trust: bool = False, keep: bool = False
) -> Generator[VideoFrame]:
    """The frames of `facts`, one for one, decoded and not yet converted.

    Args:
        remarks: a note is added here when the decoder reports errors without marking pictures.
        trust: take pictures that FFmpeg marks as damaged.
        keep: end before the first picture that cannot be decoded, without an error.

    Raises:
        DecodeError: "damaged".
        UnexpectedFrameError: there are more, fewer or other frames.
    """
    count = 0
    errors: list[str] = []
    try:
        for frame in decoded_frames(path, facts.stream, errors):
            if errors and remarks is not None and not any(note.kind == "decoder-errors" for note in remarks):
                moment = facts.timing.times[min(count, facts.num_frames - 1)]
                text = f"{facts.codec} data near {moment:.2f} s is damaged; pictures from there on may be wrong"
                remarks.append(Note("decoder-errors", text))
            if count == 0 and frame.pts != facts.stamps[0] and _comes_before(frame.pts, facts.stamps[0]):
                continue  # left out: the beginning of an open group of pictures
            if frame.is_corrupt and not trust:
                moment = facts.timing.times[min(count, facts.num_frames - 1)]
                raise DecodeError("damaged", f"{path} holds damaged {facts.codec} data at {moment:.2f} s")
            if count == facts.num_frames or frame.pts != facts.stamps[count]:
                raise UnexpectedFrameError
            count += 1
            yield frame
    except DecodeError as error:
        if not keep or error.reason != "damaged":
            raise
        return
    if count < facts.num_frames:
        raise UnexpectedFrameError


def _comes_before(one: int | None, other: int | None) -> bool:
    return one is None or (other is not None and one < other)


def rgb_pictures(
    frames: Generator[VideoFrame], facts: VideoFacts, path: str, remarks: list[Note], scaled: Scaled | None = None
) -> Generator[Frames]:
    """Frames as RGB the way a player shows them, all as large as the first.

    Raises:
        DecodeError: "unsupported-codec": FFmpeg cannot turn the pixels into RGB.
    """
    height, width = facts.height, facts.width
    if scaled is not None:
        sides = (width, height) if swaps_sides(facts.orientation) else (height, width)
        height, width = scaled(*sides)
        height, width = (width, height) if swaps_sides(facts.orientation) else (height, width)
    # Without a change of size bicubic gives the pixels that the ffmpeg program gives.
    filter = "BICUBIC" if scaled is None else "BILINEAR"
    has_changed = False
    for frame in frames:
        if (frame.height, frame.width) != (facts.height, facts.width) and not has_changed:
            has_changed = True
            sizes = f"{facts.width}x{facts.height} become {frame.width}x{frame.height}"
            remarks.append(Note("size-change", f"frames of {sizes}; all are scaled to the first size"))
        try:
            rgb = _without_hints(frame).reformat(width=width, height=height, format="rgb24", interpolation=filter)
            picture: Any = rgb.to_ndarray()
        except (OSError, ValueError) as error:
            pixels = f"{frame.format.name} pixels, colour space {int(frame.colorspace)}"
            raise DecodeError(
                "unsupported-codec", f"{path} has {pixels}, which FFmpeg cannot turn into RGB here"
            ) from error
        yield turned(picture, facts.orientation)


def _without_hints(frame: VideoFrame) -> VideoFrame:
    """The same pixels without what only PyAV's scaler heeds, and neither the ffmpeg program nor decord.

    These are the field order of interlaced pictures and, for more than 8 bits, the place of the chroma samples.
    """
    import av

    if not frame.interlaced_frame and not frame.format.name.startswith(("yuv420p1", "yuv422p1", "yuv440p1")):
        return frame
    plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for target, source in zip(plain.planes, frame.planes, strict=True):
        data: Any = source
        lines = np.frombuffer(data, np.uint8).reshape(-1, source.line_size)
        copied = np.zeros((target.buffer_size // target.line_size, target.line_size), np.uint8)
        height, width = min(len(lines), len(copied)), min(source.line_size, target.line_size)
        copied[:height, :width] = lines[:height, :width]
        target.update(copied.tobytes())
    plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
    return plain


def _decord_pictures(path: str, facts: VideoFacts, scaled: Scaled | None) -> Generator[Frames]:
    import decord
    from decord._ffi.base import DECORDError, DECORDLimitReachedError

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # A fault tolerance of 1 makes decord raise when it replaces undecodable pictures by neighbouring pictures.
        if scaled is None:
            reader = decord.VideoReader(path, num_threads=1, fault_tol=1)
        else:
            sides = (facts.width, facts.height) if swaps_sides(facts.orientation) else (facts.height, facts.width)
            height, width = scaled(*sides)
            reader = decord.VideoReader(path, num_threads=1, width=width, height=height, fault_tol=1)
        if len(reader) < facts.num_frames:
            raise DecodeError("damaged", f"{path}: decord finds {len(reader)} of {facts.num_frames} frames")
        for _ in range(facts.num_frames):
            yield _without_padding(reader.next().asnumpy())
    except (RuntimeError, DECORDError, DECORDLimitReachedError, StopIteration) as error:
        # Which type comes depends on the call. The message holds addresses and frame numbers that vary.
        raise DecodeError("damaged", f"{path}: decord cannot decode all {facts.num_frames} frames") from error


def _without_padding(picture: Frames) -> Frames:
    """The pixels of what decord returns: it gives the padding of narrow pictures' rows as channels beyond the third."""
    height, width, _ = picture.shape
    return picture.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
