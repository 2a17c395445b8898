"""Single pictures: PNG files in memory, and one fixed colour for every code (paper figures 6 to 8)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHANGED = (253, 231, 37)  # yellow, as in the paper
UNCHANGED = (44, 32, 66)  # dark


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """One picture, uint8 (H, W, 3 or 4), as the bytes of a PNG file. Same picture, same bytes."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def colour_codes(codes: NDArray[Any], codebook_size: int) -> NDArray[np.uint8]:
    """Every code in its colour: integers (...) in [0, K) -> uint8 (..., 3)."""
    return code_palette(codebook_size)[codes.astype(np.int64)]


def change_mask(codes: NDArray[Any]) -> NDArray[np.uint8]:
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


def code_rows(codes: NDArray[Any], codebook_size: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """The labelled rows of a code figure: n_c of codes in their colours, then n_c of changes.

    Args:
        codes: integers (T, h, w, n_c) in [0, K).

    Returns:
        label, and uint8 (T, h, w, 3 or 4).
    """
    numbers = [f" {book}" for book in range(codes.shape[-1])] if codes.shape[-1] > 1 else [""]
    books = np.moveaxis(codes, -1, 0)
    rows = [(f"codes{number}", colour_codes(some, codebook_size)) for number, some in zip(numbers, books, strict=True)]
    return rows + [(f"changed{number}", change_mask(some)) for number, some in zip(numbers, books, strict=True)]


def code_palette(codebook_size: int) -> NDArray[np.uint8]:
    """A fixed colour for every code, all different; uint8 (K, 3). The first colours do not depend on K.

    Hue turns by the golden angle and lightness and chroma wander on their own, so neighbouring indices look different.
    """
    colours: list[tuple[int, int, int]] = []
    seen: set[tuple[int, int, int]] = set()
    index = 0
    while len(colours) < codebook_size:
        hue = 2 * math.pi * (index * 0.6180339887 % 1)
        lightness = 0.42 + 0.5 * (index * 0.7548776662 % 1)
        chroma = 0.05 + 0.13 * (index * 0.5698402910 % 1)
        colour = _oklab_to_rgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))
        index += 1
        if colour not in seen:
            seen.add(colour)
            colours.append(colour)
    return np.array(colours, np.uint8).reshape(codebook_size, 3)


def _oklab_to_rgb(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """Björn Ottosson's perceptual space to sRGB, clipped; numbers from his definition."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (
        round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055))
        for c in (min(max(c, 0.0), 1.0) for c in linear)
    )
    return red, green, blue
