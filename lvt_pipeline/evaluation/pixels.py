"""Errors of videos in pixels, frame by frame: MSE, PSNR, SSIM and LPIPS (paper, tables 1 and 4).

MSE is in [0, 1]. PSNR is always that of a mean MSE, of one frame index or of everything; it is not a mean of PSNRs,
which would be infinite as soon as one frame is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip, codes_of_frames
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import ArtefactError, MismatchError
from lvt_pipeline.evaluation.distances.networks import PerceptualDistance
from lvt_pipeline.evaluation.metrics import fits_ssim_window, psnr, squared_errors, ssim_by_frame
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.progress import SILENT, Progress

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE


@dataclass(frozen=True)
class Pixels:
    """Clips of a code store as pixels: the frames that its codes were made from, and its codes decoded."""

    store: CodeStore
    shards: FrameShards
    tokenizer: VQVAE

    def real(self, clip: CodeClip, num_frames: int, start: int = 0) -> NDArray[np.uint8]:
        """Frames of a clip from `start` on, uint8 (T, H, W, 3); fewer when the clip ends earlier.

        Raises:
            MismatchError: its codes were made from other frames than those on disk now.
        """
        return real_frames(self.store, clip, self.shards, num_frames, start)

    def decoded(self, codes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
        """Codes (T, h, w, n_c) as uint8 (T, H, W, 3)."""
        pixels: NDArray[np.uint8] = self.tokenizer.decode(codes).numpy()
        return pixels

    def reconstructed(self, clip: CodeClip, num_frames: int) -> NDArray[np.uint8]:
        """The first frames of a clip's own codes, decoded."""
        return self.decoded(self.store.read(clip, 0, num_frames))


def errors_by_frame(
    real: NDArray[np.uint8], other: NDArray[np.uint8], lpips: PerceptualDistance | None = None
) -> dict[str, NDArray[np.float64]]:
    """ "mse", "ssim" (of frames large enough) and "lpips" (with a network that works), float64 (T,) each.

    Args:
        real, other: uint8 (T, H, W, 3).
    """
    found = {"mse": squared_errors(real, other).mean((1, 2, 3))}
    if fits_ssim_window(real):
        found["ssim"] = ssim_by_frame(real, other)
    if lpips is not None and (distances := lpips.try_by_frame(real, other)) is not None:
        found["lpips"] = distances
    return found


class Horizon:
    """Means per frame index over many clips, for several kinds of video and several metrics."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sums: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._counts: dict[tuple[str, str], NDArray[np.float64]] = {}

    def add(self, kind: str, found: dict[str, NDArray[np.float64]]) -> None:
        """Add a clip's numbers, each (T,) with at most `num_frames` frames."""
        for metric, values in found.items():
            sums = self._sums.setdefault((kind, metric), np.zeros(self._num_frames))
            counts = self._counts.setdefault((kind, metric), np.zeros(self._num_frames))
            sums[: len(values)] += values
            counts[: len(values)] += 1

    def results(self, kind: str, prefix: str = "", first_frame: int = 0) -> dict[str, Any]:
        """`..._by_frame` (nan where nothing was added) and the mean over the frames from `first_frame` on, per metric.

        Empty for a kind that was never added, or has no frame after `first_frame`.
        """
        results: dict[str, Any] = {}
        for found, metric in list(self._sums):
            if found != kind:
                continue
            sums, counts = self._sums[kind, metric], self._counts[kind, metric]
            by_frame = [float(s / c) if c else math.nan for s, c in zip(sums, counts, strict=True)]
            later = [value for value in by_frame[first_frame:] if not math.isnan(value)]
            if not later:
                continue
            results[f"{prefix}{metric}"] = float(np.mean(later))
            results[f"{prefix}{metric}_by_frame"] = by_frame
            if metric == "mse":
                results[f"{prefix}psnr"] = psnr(float(np.mean(later)))
                results[f"{prefix}psnr_by_frame"] = [psnr(v) if not math.isnan(v) else v for v in by_frame]
        return results


def measure_reconstruction(
    pixels: Pixels,
    clips: Sequence[CodeClip],
    num_frames: int,
    lpips: PerceptualDistance | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Decoded codes against the frames they were made from, both as bytes: the results, and the values of each clip.

    `psnr` is that of `mse`, which is one mean over all pixel values of all frames. `mean_picture_mse` is the error of
    the best single picture for all of these frames: their mean.

    Raises:
        MismatchError: the codes were made from other frames.
    """
    horizon = Horizon(num_frames)
    pixel_sum: NDArray[np.float64] | float = 0.0
    square_sum: NDArray[np.float64] | float = 0.0
    per_clip: dict[str, list[Any]] = {}
    with progress.bar("reconstruct", len(clips), "clips") as bar:
        for clip in clips:
            real = pixels.real(clip, num_frames)
            found = errors_by_frame(real, pixels.reconstructed(clip, num_frames), lpips)
            horizon.add("reconstruction", found)
            for metric, values in found.items():
                per_clip.setdefault(f"reconstruction_{metric}", []).append(float(values.mean()))
            per_clip.setdefault("frames", []).append(pixels.shards[clip.id].fingerprint)
            scaled = real / 255.0
            pixel_sum = pixel_sum + scaled.sum(0)
            square_sum = square_sum + (scaled**2).sum(0)
            bar.advance()
    num_pictures = len(clips) * num_frames
    variance = np.asarray(square_sum) / num_pictures - (np.asarray(pixel_sum) / num_pictures) ** 2
    results = {
        **horizon.results("reconstruction"),
        "clips": len(clips),
        "frames": num_pictures,
        "mean_picture_mse": max(float(variance.mean()), 0.0),
    }
    return results, per_clip


def real_frames(
    store: CodeStore, clip: CodeClip, shards: FrameShards, num_frames: int, start: int = 0
) -> NDArray[np.uint8]:
    """The frames that a clip's codes were made from, from `start` on, uint8 (T, H, W, 3); fewer when it ends earlier.

    Raises:
        MismatchError: the codes were made from other frames than those on disk now.
    """
    try:
        source = shards[clip.id]
    except ArtefactError as error:
        raise MismatchError(f"{store.path} does not belong to {shards.root}: {error}") from error
    if codes_of_frames(source, store.tokenizer) != clip.codes_fingerprint:
        raise MismatchError(
            f"clip {clip.id} of {store.path} was made from other frames than those in {shards.root}; "
            "encode the dataset again"
        )
    return shards.read(source, start, min(start + num_frames, source.num_frames))


def repeat_last(real: NDArray[np.uint8], priming_frames: int) -> NDArray[np.uint8]:
    """The copy baseline: the priming frames, then the last of them repeated; uint8 of the same shape.

    Args:
        real: uint8 (T, H, W, 3).
        priming_frames: from 1 to T.
    """
    last = np.broadcast_to(real[priming_frames - 1], real[priming_frames:].shape)
    return np.concatenate([real[:priming_frames], last])
