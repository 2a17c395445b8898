"""Pictures side by side and one above the other: the one tile grid of training pictures, strips, sheets and films."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange, reduce
from numpy.typing import NDArray
from PIL import Image

from lvt_pipeline.errors import ShapeError

GAP = 2  # pixels between two pictures
WHITE = (255, 255, 255)
PRIMING_EDGE, SAMPLED_EDGE = (11, 92, 173), (194, 87, 12)  # the report's colours of priming and sampled frames


def picture_grid(
    tiles: NDArray[np.uint8], scale: int = 1, *, gap: int = GAP, background: Sequence[int] = WHITE
) -> NDArray[np.uint8]:
    """Put pictures side by side and one above the other.

    Args:
        tiles: uint8 (rows, columns, H, W, channels).
        scale: whole-number magnification, by nearest neighbour.
        gap: pixels between two pictures, in the colour `background`.
        background: one number for each channel.

    Returns:
        uint8 (height, width, channels).

    Raises:
        ShapeError: there is no picture.
    """
    if tiles.ndim != 5 or not tiles.size:
        raise ShapeError(f"a grid needs tiles of shape (rows, columns, H, W, channels), found {tiles.shape}")
    tiles = tiles.repeat(scale, axis=-3).repeat(scale, axis=-2)
    padded = np.empty((*tiles.shape[:2], tiles.shape[2] + gap, tiles.shape[3] + gap, tiles.shape[4]), np.uint8)
    padded[...] = background
    padded[:, :, : tiles.shape[2], : tiles.shape[3]] = tiles
    joined: NDArray[np.uint8] = rearrange(padded, "r c h w k -> (r h) (c w) k")
    return joined[: joined.shape[0] - gap, : joined.shape[1] - gap]


def strip(tiles: NDArray[np.uint8], gap: int = 1) -> NDArray[np.uint8]:
    """Tiles side by side with transparent gaps.

    Args:
        tiles: uint8 (T, h, w, 3 or 4).

    Returns:
        uint8 (h, T*w + (T-1)*gap, 4).

    Raises:
        ShapeError: there is no tile, or it has neither 3 nor 4 channels.
    """
    if tiles.ndim != 4 or tiles.shape[-1] not in (3, 4) or not len(tiles):
        raise ShapeError(f"a strip needs tiles of shape (T, h, w, 3), found {tiles.shape}")
    if tiles.shape[-1] == 3:
        tiles = np.concatenate([tiles, np.full((*tiles.shape[:-1], 1), 255, np.uint8)], axis=-1)
    return picture_grid(tiles[None], gap=gap, background=(0, 0, 0, 0))


def codebook_tiles(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codebooks of each frame as a nearly square grid with dark lines: (N, h, w, n_c, 3) -> (N, H, W, 3)."""
    columns = math.ceil(math.sqrt(colours.shape[3]))
    padded = np.pad(colours, ((0, 0), (0, 0), (0, 0), (0, -colours.shape[3] % columns), (0, 0)))
    grids = rearrange(padded, "n h w (r c) k -> n r c h w k", c=columns)
    return np.stack([picture_grid(grid, gap=1, background=(0, 0, 0)) for grid in grids])


def shrunk(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames made smaller by whole steps until they are less than twice `size` high; uint8 (T, H, W, 3)."""
    factor = max(1, frames.shape[1] // size)
    height, width = frames.shape[1] // factor * factor, frames.shape[2] // factor * factor
    if factor == 1:
        return frames
    cropped = frames[:, :height, :width].astype(np.float32)
    return np.rint(reduce(cropped, "t (h a) (w b) c -> t h w c", "mean", a=factor, b=factor)).astype(np.uint8)


def fitted(tile: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture (H, W, channels) at another size: enlarged without smoothing, or averaged down."""
    if tile.shape[0] <= height and tile.shape[1] <= width:
        rows, columns = np.arange(height) * tile.shape[0] // height, np.arange(width) * tile.shape[1] // width
        result: NDArray[np.uint8] = tile[rows[:, None], columns]
        return result
    return np.asarray(Image.fromarray(tile).resize((width, height), Image.Resampling.BOX))


def framed(tile: NDArray[np.uint8], edge: int, colour: Sequence[int]) -> NDArray[np.uint8]:
    """A picture with an edge of one colour around it."""
    result: NDArray[Any] = np.empty((tile.shape[0] + 2 * edge, tile.shape[1] + 2 * edge, tile.shape[2]), np.uint8)
    result[...] = colour
    result[edge:-edge, edge:-edge] = tile
    return result
