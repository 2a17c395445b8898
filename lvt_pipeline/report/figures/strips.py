"""Pictures of codes (paper figures 6 to 8): strips with one tile per frame, drawn at one pixel per code.

A figure is a stack of strips: the video, each codebook's codes in fixed colours, and masks of the codes that
changed since the previous frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.video.pictures import colour_codes

CHANGED = (253, 231, 37)  # yellow, as in the paper
UNCHANGED = (44, 32, 66)  # dark


def draw_codes(codes: NDArray[Any], codebook_size: int) -> NDArray[np.uint8]:
    """Codes of one codebook in their fixed colours.

    Args:
        codes: integers (T, h, w) in [0, K).

    Returns:
        uint8 (T, h, w, 3).
    """
    return colour_codes(codes, codebook_size)


def draw_changes(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Where a code differs from the previous frame's: yellow, elsewhere dark.

    Args:
        codes: integers (T, h, w).

    Returns:
        uint8 (T, h, w, 4) with an alpha channel; frame 0, which has no previous frame, is wholly transparent.
    """
    result = np.zeros((*codes.shape, 4), np.uint8)
    changed = codes[1:] != codes[:-1]
    result[1:] = np.where(changed[..., None], (*CHANGED, 255), (*UNCHANGED, 255))
    return result


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
    padded = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, 0)))
    joined: NDArray[np.uint8] = rearrange(padded, "t h w c -> h (t w) c")
    return joined[:, : joined.shape[1] - gap]


@dataclass(frozen=True)
class Strip:
    """One labelled row of a code figure; `image` is uint8 RGBA, `tile_width` its pixels per frame."""

    label: str
    image: NDArray[np.uint8]
    tile_width: int


def code_strips(codes: NDArray[Any], codebook_size: int) -> list[Strip]:
    """The code and change rows of one clip, as in figures 6 to 8: n_c rows of codes, then n_c rows of changes.

    Args:
        codes: integers (T, h, w, n_c).
    """
    width = codes.shape[2]
    books = range(codes.shape[-1])
    names = [f"codebook {book}" for book in books] if len(books) > 1 else ["codes"]
    drawn = [Strip(names[book], strip(draw_codes(codes[..., book], codebook_size)), width) for book in books]
    changes = [
        Strip("changed" if len(books) == 1 else f"changed {book}", strip(draw_changes(codes[..., book])), width)
        for book in books
    ]
    return drawn + changes
