"""Structural similarity (SSIM) of pictures: how alike they look in a small window, rather than pixel by pixel.

Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity": Gaussian window of 11x11
pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, biased variances, mean over every window that lies wholly in the picture,
each colour channel by itself. Other windows and colour treatments are common and give other numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError

WINDOW = 11  # pixels along each side
SIGMA = 1.5
PEAK = 255.0
STABILISER_OF_MEANS = (0.01 * PEAK) ** 2  # C1 of the paper
STABILISER_OF_VARIANCES = (0.03 * PEAK) ** 2  # C2


def ssim_by_frame(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """SSIM of every frame: 1 for equal pictures, about 0 for unrelated ones, at least -1.

    Args:
        real, other: uint8 (T, H, W, C) of one shape, H and W at least 11.

    Returns:
        float64 (T,).

    Raises:
        ShapeError: the shapes differ, the arrays are not uint8, or the pictures are smaller than a window.
    """
    if real.shape != other.shape or real.ndim != 4:
        raise ShapeError(f"cannot compare frames of shape {real.shape} with frames of shape {other.shape}")
    if real.dtype != np.uint8 or other.dtype != np.uint8:
        raise ShapeError(f"frames to compare are uint8, found {real.dtype} and {other.dtype}")
    if not fits_window(real):
        raise ShapeError(
            f"SSIM needs frames of {WINDOW}x{WINDOW} pixels or more, found {real.shape[1]}x{real.shape[2]}"
        )
    x, y = (np.moveaxis(frames.astype(np.float64), -1, 1) for frames in (real, other))  # (T, C, H, W)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    of_means = (2 * mean_x * mean_y + STABILISER_OF_MEANS) / (mean_x**2 + mean_y**2 + STABILISER_OF_MEANS)
    of_structure = (2 * covariance + STABILISER_OF_VARIANCES) / (variance_x + variance_y + STABILISER_OF_VARIANCES)
    result: NDArray[np.float64] = (of_means * of_structure).mean((1, 2, 3))
    return result


def fits_window(frames: NDArray[np.uint8]) -> bool:
    """Whether frames (T, H, W, C) are large enough for SSIM."""
    return int(min(frames.shape[1:3])) >= WINDOW


def _blurred(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means over every window that lies wholly in the picture: (..., H, W) to (..., H - 10, W - 10)."""
    height, width = pictures.shape[-2:]
    result: NDArray[np.float64] = _window_rows(height) @ pictures @ _window_rows(width).T
    return result


def _window_rows(length: int) -> NDArray[np.float64]:
    """(length - 10, length): one window per row. As a matrix product this is much faster than a loop over taps."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    window /= window.sum()
    rows = np.zeros((length - WINDOW + 1, length))
    for start, row in enumerate(rows):
        row[start : start + WINDOW] = window
    return rows
