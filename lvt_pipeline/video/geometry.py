"""Which frames are taken and how a picture becomes a square: its centre, as in the paper, or all of it on black.

The geometry is that of the paper's Kinetics experiments: centre crop to the smaller side, Lanczos by Pillow, 64 x 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.errors import ShapeError

Frames = NDArray[np.uint8]
Fit = Literal["crop", "letterbox"]  # crop: the middle of the picture. letterbox: all of it, on black


def require_frames(frames: Frames) -> None:
    """Refuse arrays other than uint8 (T, H, W, 3) with T > 0.

    Raises:
        ShapeError: naming the shape and dtype found.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ShapeError(f"frames are uint8 (T, H, W, 3) with T > 0, found {frames.dtype} {frames.shape}")


def lanczos_square(frame: Frames, size: int, fit: Fit = "crop") -> Frames:
    """Fit and scale a picture, Lanczos with antialiasing by Pillow: uint8 (H, W, 3) -> (size, size, 3)."""
    if fit == "letterbox":
        height, width = scaled_sides(frame.shape[0], frame.shape[1], size, fit)
        return on_black(_lanczos(frame, height, width), size)
    return _lanczos(centre_square(frame), size, size)


def square_of_scaled(frame: Frames, size: int, fit: Fit = "crop") -> Frames:
    """The square of a picture whose sides are those of `scaled_sides`: (H, W, 3) -> (size, size, 3)."""
    if fit == "letterbox":
        return on_black(frame, size)
    # Halves are rounded to even, as in `centre_square`, but the square is `size` wide whatever the margin.
    top, left = round((frame.shape[0] - size) / 2), round((frame.shape[1] - size) / 2)
    return frame[top : top + size, left : left + size]


def scaled_sides(height: int, width: int, size: int, fit: Fit = "crop") -> tuple[int, int]:
    """Height and width of the whole picture once it is scaled for `fit`, in proportion as near as pixels allow.

    The smaller side becomes `size` for a crop, the larger one for a letterbox.
    """
    side = min(height, width) if fit == "crop" else max(height, width)
    return max(1, round(height * size / side)), max(1, round(width * size / side))


def centre_square(frame: Frames) -> Frames:
    """The middle of a picture, as wide as its smaller side: (H, W, 3) -> (S, S, 3).

    Where the margin is odd, the released code of the paper hands Pillow a box of half pixels, and Pillow rounds each
    edge half to even. When the smaller side is odd too, the crop is then one pixel wider or narrower than high.
    """
    height, width, _ = frame.shape
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return frame[round(top) : round(top + side), round(left) : round(left + side)]


def on_black(frame: Frames, size: int) -> Frames:
    """A picture no larger than the square, in its middle; the rest is black."""
    height, width, _ = frame.shape
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = frame
    return square


def _lanczos(frame: Frames, height: int, width: int) -> Frames:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


# Orientation -------------------------------------------------------------------------------------------------------

UPRIGHT = "upright"
# How a picture (H, W, 3) is turned, by the name of FFmpeg's filters that do the same.
_TURNS: dict[str, Callable[[Frames], Frames]] = {
    UPRIGHT: lambda picture: picture,
    "hflip": lambda picture: picture[:, ::-1],
    "vflip": lambda picture: picture[::-1],
    "hflip,vflip": lambda picture: picture[::-1, ::-1],
    "clock": lambda picture: np.rot90(picture, -1),
    "cclock": lambda picture: np.rot90(picture),
    "clock_flip": lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    "cclock_flip": lambda picture: picture.swapaxes(0, 1),
}


def orientation_of(matrix: Sequence[int]) -> tuple[str, bool]:
    """How a player turns pictures with this display matrix, and whether that is all it asks for.

    The rule is that of FFmpeg's `-autorotate`: turns by 90 degrees and reflections. A matrix that has no direction
    means none. False: the matrix asks for another angle, which is ignored.

    Args:
        matrix: the nine numbers of a display matrix, row by row.
    """
    across, down = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if not across or not down:
        return UPRIGHT, True
    angle = round(math.degrees(math.atan2(matrix[1] / down, matrix[0] / across))) % 360
    if abs(angle - 90) < 1:
        return ("cclock_flip" if matrix[3] > 0 else "clock"), True
    if abs(angle - 180) < 1:
        flips = ["hflip"] * (matrix[0] < 0) + ["vflip"] * (matrix[4] < 0)
        return ",".join(flips) or UPRIGHT, True
    if abs(angle - 270) < 1:
        return ("clock_flip" if matrix[3] < 0 else "cclock"), True
    if angle in (0, 359, 360):
        return ("vflip" if matrix[4] < 0 else UPRIGHT), True
    return UPRIGHT, False


def turned(picture: Frames, orientation: str) -> Frames:
    """A picture the way a player shows it, by a name that `orientation_of` gave."""
    return _TURNS[orientation](picture)


def swaps_sides(orientation: str) -> bool:
    """Whether turning exchanges height and width."""
    return "clock" in orientation
