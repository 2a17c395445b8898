"""One video file to frames, and frames to a file."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_gif, write_mp4, write_npy, write_png_strip

ENDINGS = (".mp4", ".gif", ".png", ".npy")


def read_video(
    path: Path | str, size: int = 64, *, start: float | None = None, end: float | None = None, fps: float | None = None
) -> tuple[Frames, float]:
    """The frames of a video file as `lvt ingest` would store them, and their rate.

    Args:
        size: height and width of a frame, a multiple of 4.
        start, end: seconds from the first frame; None: the whole video.
        fps: rate to resample to; None: the native rate.

    Returns:
        uint8 (T, size, size, 3), RGB, and frames per second.

    Raises:
        DecodeError: the video cannot be decoded.
        ConfigError: the size or the rate cannot be used.
    """
    clip = decode_clip(str(path), start, end, GeometrySettings(size=size, fps=fps))
    return clip.frames, clip.fps


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
    if ending == ".mp4":
        write_mp4(path, frames, fps, scale)
    elif ending == ".gif":
        write_gif(path, frames, fps, scale)
    elif ending == ".png":
        write_png_strip(path, frames, scale)
    elif ending == ".npy":
        write_npy(path, frames)
    else:
        raise ConfigError(f"{path} has the ending {ending or 'none'!r}; give one of {', '.join(ENDINGS)}")
