"""The numbers of an evaluation, as plain functions of arrays (paper sections 4.1 to 4.3, tables 1 to 4, figure 5).

Pixels: mean squared error in [0, 1], PSNR, and SSIM. Codes: how many are used, how often a code stays the same from one
frame to the next, and the two baselines that a prior has to beat:

- *unigram*: the entropy of each codebook over exactly the evaluated codes. No model that ignores context can do better
  on them, so it is the most favourable version of that baseline.
- *same as previous frame*: with probability alpha the code of the same place in the previous frame, otherwise a
  sample from the add-one smoothed unigram; one alpha per codebook, both fitted on training codes.

Everything about codes is computed from `CodeCounts`, which adds up clip by clip, so a dataset is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError

BISECTION_STEPS = 60  # halvings of [0, 1]: more digits than a float64 holds
SSIM_WINDOW = 11  # pixels along each side of the Gaussian window
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)  # C1 and C2 of the paper, which keep the quotients finite


def mean_squared_error(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean over pixels and colours of the squared difference, with pixels scaled to [0, 1] (tables 1 and 4).

    Args:
        real, other: uint8 of one shape, any number of axes.

    Raises:
        ShapeError: the shapes differ, the arrays are empty, or they are not uint8.
    """
    return float(squared_errors(real, other).mean())


def squared_errors(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Squared difference of every pixel value, scaled to [0, 1]; float64 of the arguments' shape.

    Raises:
        ShapeError: the shapes differ, the arrays are empty, or they are not uint8.
    """
    if real.shape != other.shape or real.size == 0:
        raise ShapeError(f"cannot compare pictures of shape {real.shape} with pictures of shape {other.shape}")
    if real.dtype != np.uint8 or other.dtype != np.uint8:
        raise ShapeError(f"pictures to compare are uint8, found {real.dtype} and {other.dtype}")
    return ((real.astype(np.float64) - other) / 255.0) ** 2


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in decibels of a mean squared error in [0, 1]; infinite when nothing differs."""
    return math.inf if mse == 0 else -10.0 * math.log10(mse)


def ssim_by_frame(real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of every frame: 1 for equal pictures, about 0 for unrelated ones, at least -1.

    Wang et al. 2004: Gaussian window of 11x11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, biased variances, mean over
    every window that is wholly in the picture, each colour channel separately. Other windows and colour treatments are
    common and give other numbers.

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
    if not fits_ssim_window(real):
        size = f"{real.shape[1]}x{real.shape[2]}"
        raise ShapeError(f"SSIM needs frames of {SSIM_WINDOW}x{SSIM_WINDOW} pixels or more, found {size}")
    x, y = (np.moveaxis(frames.astype(np.float64), -1, 1) for frames in (real, other))  # (T, C, H, W)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    of_means, of_variances = SSIM_CONSTANTS
    luminance = (2 * mean_x * mean_y + of_means) / (mean_x**2 + mean_y**2 + of_means)
    structure = (2 * covariance + of_variances) / (variance_x + variance_y + of_variances)
    result: NDArray[np.float64] = (luminance * structure).mean((1, 2, 3))
    return result


def fits_ssim_window(frames: NDArray[np.uint8]) -> bool:
    """Whether frames (T, H, W, C) are large enough for SSIM."""
    return int(min(frames.shape[1:3])) >= SSIM_WINDOW


def _blurred(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means over every window that is wholly in the picture: (..., H, W) to (..., H - 10, W - 10)."""
    height, width = pictures.shape[-2:]
    result: NDArray[np.float64] = _window_rows(height) @ pictures @ _window_rows(width).T
    return result


def _window_rows(length: int) -> NDArray[np.float64]:
    """(length - 10, length): one window per row. As a matrix product this is much faster than a loop over taps."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window /= window.sum()
    rows = np.zeros((length - SSIM_WINDOW + 1, length))
    for start, row in enumerate(rows):
        row[start : start + SSIM_WINDOW] = window
    return rows


def mean_pairwise_squared_error(videos: NDArray[np.uint8]) -> float:
    """Mean over all pairs of different videos of their mean squared difference, in [0, 1]: diversity in pixels.

    Args:
        videos: uint8 (N, ...) with N at least 2.

    Raises:
        ShapeError: fewer than two videos.
    """
    if len(videos) < 2:
        raise ShapeError(f"pairs need at least two videos, found {len(videos)}")
    # The squared differences of all ordered pairs of numbers add up to 2 n times their sum of squared deviations.
    scaled = videos / 255.0
    return float(2 * scaled.var(axis=0, ddof=1).mean())


def share_of_differing_pairs(codes: NDArray[Any]) -> float:
    """Mean over all pairs of different videos of the share of their codes that differ: diversity in codes.

    Args:
        codes: integers (N, ...) with N at least 2.

    Raises:
        ShapeError: fewer than two videos.
    """
    if len(codes) < 2:
        raise ShapeError(f"pairs need at least two videos, found {len(codes)}")
    differing = sum(int((codes[number + 1 :] != codes[number]).sum()) for number in range(len(codes) - 1))
    num_pairs = len(codes) * (len(codes) - 1) // 2
    return differing / (num_pairs * int(codes[0].size))


@dataclass(frozen=True)
class CodeCounts:
    """How often each code occurs, split by what the same place held one frame earlier.

    Attributes:
        same: int64 (n_c, K), occurrences that repeat the previous frame's code.
        changed: int64 (n_c, K), occurrences that differ from it.
        first: int64 (n_c, K), occurrences in a clip's frame 0, which has no previous frame.
    """

    same: NDArray[np.int64]
    changed: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def empty(cls, num_codebooks: int, codebook_size: int) -> CodeCounts:
        """Counts of no codes at all."""
        return cls(*(np.zeros((num_codebooks, codebook_size), np.int64) for _ in range(3)))

    @classmethod
    def of(cls, codes: NDArray[Any], codebook_size: int, first_frame: int = 0) -> CodeCounts:
        """Count one clip.

        Args:
            codes: integers (T, h, w, n_c) in [0, K).
            first_frame: frames before this one are not counted; the last of them still is the previous frame of the
                first one counted.

        Raises:
            ShapeError: not four axes, not integers, or a code outside [0, K).
        """
        if codes.ndim != 4 or not np.issubdtype(codes.dtype, np.integer):
            raise ShapeError(f"codes of a clip are integers (T, h, w, n_c), found {codes.dtype} {codes.shape}")
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
            raise ShapeError(f"codes reach {int(codes.max())}, but the codebooks have {codebook_size} entries")
        num_codebooks = codes.shape[-1]
        row = np.arange(num_codebooks) * codebook_size  # so that one bincount counts all codebooks

        def count(index: NDArray[np.int64]) -> NDArray[np.int64]:
            flat = np.bincount(index, minlength=num_codebooks * codebook_size)
            return flat.astype(np.int64).reshape(num_codebooks, codebook_size)

        now = codes[max(first_frame, 1) :].astype(np.int64)
        before = codes[max(first_frame, 1) - 1 : -1]
        repeats = now == before
        opening = codes[:1] if first_frame == 0 else codes[:0]
        return cls(
            count((now + row)[repeats]), count((now + row)[~repeats]), count((opening.astype(np.int64) + row).ravel())
        )

    def __add__(self, other: CodeCounts) -> CodeCounts:
        return CodeCounts(self.same + other.same, self.changed + other.changed, self.first + other.first)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """int64 (n_c, K): how often each code occurs."""
        return self.same + self.changed + self.first

    @property
    def num_codes(self) -> int:
        """How many codes were counted, over all codebooks."""
        return int(self.occurrences.sum())

    @property
    def dead_codes(self) -> list[int]:
        """Per codebook, how many of its K codes never occur."""
        return [int(count) for count in (self.occurrences == 0).sum(1)]

    @property
    def share_same_as_previous_frame(self) -> list[float]:
        """Per codebook, the share of codes equal to the previous frame's at the same place; nan without transitions."""
        same, changed = self.same.sum(1), self.changed.sum(1)
        return [float(s) / float(s + c) if s + c else math.nan for s, c in zip(same, changed, strict=True)]


def pool(counts: Iterable[CodeCounts], num_codebooks: int, codebook_size: int) -> CodeCounts:
    """The counts of many clips together."""
    return sum(counts, CodeCounts.empty(num_codebooks, codebook_size))


@dataclass(frozen=True)
class PreviousFrameBaseline:
    """p(code | previous) = alpha * [code is the previous one] + (1 - alpha) * unigram(code), per codebook.

    Attributes:
        alpha: float64 (n_c,), each in [0, 1).
        unigram: float64 (n_c, K), rows sum to 1 and hold no zero.
    """

    alpha: NDArray[np.float64]
    unigram: NDArray[np.float64]

    @classmethod
    def fit(cls, counts: CodeCounts) -> PreviousFrameBaseline:
        """The most likely alpha on training codes, given their add-one smoothed unigram.

        One imaginary change is added per codebook, so alpha stays below 1 and a code that changes for the first time in
        the evaluated clips costs finitely many bits.
        """
        occurrences = counts.occurrences
        unigram = (occurrences + 1.0) / (occurrences.sum(1, keepdims=True) + occurrences.shape[1])
        num_changed = counts.changed.sum(1) + 1.0
        alpha = [_most_likely_alpha(*row) for row in zip(counts.same, num_changed, unigram, strict=True)]
        return cls(np.array(alpha), unigram)

    def bits(self, counts: CodeCounts) -> NDArray[np.float64]:
        """Total bits that coding the counted codes takes, float64 (n_c,). Frame 0 is coded by the unigram alone."""
        alpha = self.alpha[:, None]
        of_same = counts.same * np.log2(alpha + (1 - alpha) * self.unigram)
        of_changed = counts.changed * np.log2((1 - alpha) * self.unigram)
        of_first = counts.first * np.log2(self.unigram)
        result: NDArray[np.float64] = -(of_same + of_changed + of_first).sum(1)
        return result


def _most_likely_alpha(same: NDArray[np.int64], num_changed: float, unigram: NDArray[np.float64]) -> float:
    """Root of the log-likelihood's slope, which falls in alpha:

    sum over codes of same * (1 - u) / (alpha + (1 - alpha) * u) = changed / (1 - alpha).
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        alpha = (low + high) / 2
        slope = float((same * (1 - unigram) / (alpha + (1 - alpha) * unigram)).sum()) - num_changed / (1 - alpha)
        low, high = (alpha, high) if slope > 0 else (low, alpha)
    return low
