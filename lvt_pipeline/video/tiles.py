"""Small pictures that a training run leaves behind: frames over frames, code maps over code maps."""

from __future__ import annotations

import numpy as np
from einops import rearrange, repeat
from numpy.typing import NDArray

GAP = 2  # pixels between two pictures
GAP_COLOUR = 255


def picture_grid(rows: NDArray[np.uint8], scale: int = 1) -> NDArray[np.uint8]:
    """Put pictures beside and above each other.

    Args:
        rows: uint8 (rows, columns, H, W, 3).
        scale: whole-number magnification, by nearest neighbour.

    Returns:
        uint8 (height, width, 3) with white gaps between the pictures.
    """
    enlarged = repeat(rows, "r c h w rgb -> r c (h a) (w b) rgb", a=scale, b=scale)
    padding = ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0))
    padded = np.pad(enlarged, padding, constant_values=GAP_COLOUR)
    joined: NDArray[np.uint8] = rearrange(padded, "r c h w rgb -> (r h) (c w) rgb")
    return joined[:-GAP, :-GAP]
