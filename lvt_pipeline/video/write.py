"""Frames to files people open: mp4 for browsers, GIF, a PNG strip, or the plain array.

Equal frames give equal bytes: one encoder thread, no time stamps, no encoder banner.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange, repeat
from PIL import Image

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.storage import write_bytes
from lvt_pipeline.video.geometry import Frames, require_frames
from lvt_pipeline.video.pictures import png_bytes

ENDINGS = (".mp4", ".gif", ".png", ".npy")
VISUALLY_LOSSLESS_CRF = 18  # x264's constant rate factor; 0 is lossless, 23 is x264's default

# Without it x264 chooses bits by arithmetic that depends on the processor and, at sizes that are no multiple of 16, on
# uninitialised memory: equal frames gave different files.
_SAME_EVERYWHERE = "cpu-independent=1"


def write_video(path: Path | str, frames: Frames, fps: float, scale: int = 1) -> None:
    """Write frames in the format of the file's ending: .mp4, .gif, .png (a strip of frames) or .npy.

    Args:
        frames: uint8 (T, H, W, 3), RGB.
        scale: factor by which pixels are enlarged; .npy keeps the size.

    Raises:
        ConfigError: the file has another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"{path} has the ending {ending or 'none'!r}; give one of {', '.join(ENDINGS)}")
    write_bytes(path, video_bytes(ending, frames, fps, scale))


def video_bytes(ending: str, frames: Frames, fps: float, scale: int = 1) -> bytes:
    """The file that `write_video` writes for one of `ENDINGS`. A strip has its first frame on the left."""
    if ending == ".mp4":
        return mp4_bytes(frames, fps, scale)
    if ending == ".gif":
        return gif_bytes(frames, fps, scale)
    if ending == ".png":
        return png_bytes(rearrange(enlarge(frames, scale), "t h w c -> h (t w) c"))
    return npy_bytes(frames)


def write_mp4(path: Path, frames: Frames, fps: float, scale: int = 1, *, crf: int = VISUALLY_LOSSLESS_CRF) -> None:
    """Write an H.264 mp4 that browsers play, whole or not at all.

    Args:
        frames: uint8 (T, H, W, 3).
        scale: every pixel becomes scale x scale pixels.
        crf: 0 (lossless) to 51 (worst).
    """
    write_bytes(path, mp4_bytes(frames, fps, scale, crf=crf))


def mp4_bytes(frames: Frames, fps: float, scale: int = 1, *, crf: int = VISUALLY_LOSSLESS_CRF) -> bytes:
    """The bytes of an mp4 (H.264, yuv420p, index in front), for a file or for embedding in a page.

    Odd sizes are padded by repeating the last row or column: 4:2:0 colour needs even ones.
    """
    frames = _to_even(enlarge(frames, scale))
    # Moving the index to the front makes FFmpeg read back its output, by name, so memory will not do.
    with tempfile.TemporaryDirectory(prefix="lvt-") as folder:
        path = Path(folder) / "clip.mp4"
        _encode_h264(path, frames, _rate(fps), crf)
        return path.read_bytes()


def _encode_h264(path: Path, frames: Frames, rate: Fraction, crf: int) -> None:
    import av  # here, because opening a code store needs no FFmpeg

    _, height, width, _ = frames.shape
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": str(crf), "threads": "1", "flags": "+bitexact", "x264-params": _SAME_EVERYWHERE}
        for picture in frames:
            for packet in video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
                container.mux(packet)
        for packet in video.encode(None):
            container.mux(packet)


def gif_bytes(frames: Frames, fps: float, scale: int = 1) -> bytes:
    """A looping GIF with one palette for the whole clip. Delays are whole hundredths of a second."""
    frames = enlarge(frames, scale)
    pictures = [Image.fromarray(frame) for frame in frames]
    # One palette computed from all frames, without dithering: a still background stays still.
    palette = Image.fromarray(rearrange(frames, "t h w c -> (t h) w c")).quantize(256, dither=Image.Dither.NONE)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    stream = io.BytesIO()
    delay_milliseconds = max(20, round(100 / _checked_fps(fps)) * 10)  # browsers slow down anything faster than 20 ms
    indexed[0].save(stream, "GIF", save_all=True, append_images=indexed[1:], duration=delay_milliseconds, loop=0)
    return stream.getvalue()


def with_note(data: bytes, suffix: str, note: bytes) -> bytes:
    """A .png, .mp4 or .gif file with a note near its end, where the format has a place for one.

    Args:
        suffix: which of the three it is.
        note: ASCII, at most 200 bytes.

    Raises:
        ValueError: there is no place for a note in this format.
    """
    match suffix:
        case ".png":
            chunk = b"tEXtSoftware\0" + note
            text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            return data[:-12] + text + data[-12:]  # the last chunk, IEND, has 12 bytes
        case ".mp4":
            return data + struct.pack(">I", len(note) + 8) + b"free" + note
        case ".gif":
            return data[:-1] + b"\x21\xfe" + bytes([len(note)]) + note + b"\0" + data[-1:]
        case _:
            raise ValueError(f"no place for a note in {suffix}")


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """The array itself as a `.npy` file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def enlarge(frames: Frames, scale: int) -> Frames:
    """Every pixel of (T, H, W, 3) becomes a square of scale x scale equal ones.

    Raises:
        ShapeError: the frames are not uint8 (T, H, W, 3), or the scale is not positive.
    """
    require_frames(frames)
    if scale < 1:
        raise ShapeError(f"the scale is a whole number of at least 1, found {scale}")
    return repeat(frames, "t h w c -> t (h a) (w b) c", a=scale, b=scale) if scale > 1 else frames


def _to_even(frames: Frames) -> Frames:
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _rate(fps: float) -> Fraction:
    """The exact rate: 29.97 becomes 30000/1001, which players expect."""
    broadcast = Fraction(round(_checked_fps(fps) * 1001 / 1000) * 1000, 1001)
    return broadcast if broadcast > 0 and abs(float(broadcast) - fps) < 0.002 else Fraction(fps).limit_denominator(1001)


def _checked_fps(fps: float) -> float:
    if not 0.01 <= fps <= 1000:
        raise ShapeError(f"frames per second lie between 0.01 and 1000, found {fps}")
    return fps
