"""Figures of videos, one column per frame: samples (paper figures 3 and 4), and codes with their changes (6 to 8).

Codes have one row for each codebook, in *indexed colour*: every index has one fixed colour. Then come masks, one row
for each codebook, yellow where a code differs from the frame before. Figures 7 and 8 show these rows twice, of the real
video above those of the sampled one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.metrics import squared_errors
from lvt_pipeline.report.plots.engine import FigureFiles, figure_look, save_figure
from lvt_pipeline.report.plots.picture_rows import PictureRow, plot_picture_rows
from lvt_pipeline.video.pictures import CHANGED, UNCHANGED, code_rows

PAIR_SPACE = 0.09  # inches between samples that are below their real video
BLOCK_SPACE = 0.07  # inches above each block of code rows
SAMPLE_HEADER = ("clip", "frame", "kind", "difference_to_previous", "mse_to_real")


@dataclass(frozen=True)
class SampledVideo:
    """One sample to show.

    Attributes:
        name: id of the clip.
        frames: uint8 (T, H, W, 3), the priming frames first.
        real: what really happened, shown above it; as many frames, or the first of them.
    """

    name: str
    frames: NDArray[np.uint8]
    real: NDArray[np.uint8] | None = None

    def at(self, frames: NDArray[np.int64]) -> SampledVideo:
        """Only those of these frames that it has."""
        real = None if self.real is None else self.real[frames[frames < len(self.real)]]
        return replace(self, frames=self.frames[frames[frames < len(self.frames)]], real=real)


def plot_samples(
    videos: Sequence[SampledVideo],
    priming_frames: int,
    out: Path,
    *,
    title: str = "",
    most_columns: int | None = None,
) -> FigureFiles:
    """Plot every video as a row, with its first `priming_frames` framed, under frame numbers from 1.

    The CSV has a line per video and frame: `clip`, `frame`, `kind` (priming or sampled), `difference_to_previous`
    (mean absolute difference to the frame before, in [0, 1]) and `mse_to_real` (in [0, 1], where `real` is given).

    Args:
        out: path of the files without an ending.
        most_columns: of longer videos only this many frames are shown, evenly spread from the first to the last; the
            CSV has them all. By default all are shown.

    Raises:
        ShapeError: there is no video, or a real one has another frame size.
    """
    frames = np.arange(max((len(video.frames) for video in videos), default=0))
    if most_columns is not None and len(frames):
        frames = np.unique(np.linspace(0, frames[-1], most_columns).round().astype(np.int64))
    num_priming = int((frames < priming_frames).sum())
    rows = _video_rows([video.at(frames) for video in videos], num_priming)
    with figure_look():
        figure = plot_picture_rows(rows, num_priming, title=title, numbers=(frames + 1).tolist())
        lines = [line for video in videos for line in _sample_numbers(video, priming_frames)]
        return save_figure(figure, out, SAMPLE_HEADER, lines)


def plot_code_rows(
    frames: NDArray[np.uint8],
    codes: NDArray[Any],
    codebook_size: int,
    priming_frames: int,
    out: Path,
    *,
    real_codes: NDArray[Any] | None = None,
    title: str = "",
) -> FigureFiles:
    """Plot figure 6 (1 + 2 n_c rows), or with `real_codes` figures 7 and 8 (1 + 4 n_c rows).

    The CSV has a line per video (real, sampled), frame and codebook: `video`, `frame` (from 1), `kind` (priming,
    sampled or real), `codebook`, `changed_share` (of the codes against the frame before; empty in frame 1).

    Args:
        frames: the sampled video, uint8 (T, H, W, 3), its priming frames first.
        codes: of the same frames, integers (T, h, w, n_c) in [0, K).
        codebook_size: K.
        out: path of the files without an ending.
        real_codes: of the video that really happened, integers (T, h, w, n_c); it may end earlier.

    Raises:
        ShapeError: the arrays do not belong together.
    """
    _require_codes(len(frames), codes, real_codes, codebook_size)
    blocks = [("sampled", codes)] if real_codes is None else [("real", real_codes), ("sampled", codes)]
    rows = [PictureRow("video", frames, num_priming=priming_frames)]
    for name, some in blocks:
        num_priming = priming_frames if name == "sampled" else 0
        rows += _code_rows(some, codebook_size, num_priming, "" if real_codes is None else name)
    with figure_look():
        legend = ((CHANGED, "code differs from the frame before"), (UNCHANGED, "stays the same"))
        figure = plot_picture_rows(rows, priming_frames, title=title, legend=legend)
        header = ("video", "frame", "kind", "codebook", "changed_share")
        lines = [line for name, some in blocks for line in _code_numbers(name, some, priming_frames)]
        return save_figure(figure, out, header, lines)


def _require_codes(num_frames: int, codes: NDArray[Any], real_codes: NDArray[Any] | None, codebook_size: int) -> None:
    if codes.ndim != 4 or len(codes) != num_frames:
        raise ShapeError(f"codes of shape (T={num_frames}, h, w, n_c) are needed, found {codes.shape}")
    if real_codes is not None and (real_codes.shape[1:] != codes.shape[1:] or len(real_codes) > len(codes)):
        raise ShapeError(f"real codes have shape {real_codes.shape} but the sampled ones {codes.shape}")
    for name, some in (("codes", codes), ("real codes", real_codes)):
        if some is not None and some.size and not 0 <= int(some.min()) <= int(some.max()) < codebook_size:
            raise ShapeError(f"{name} from {some.min()} to {some.max()} do not fit a codebook of {codebook_size}")


def _video_rows(videos: Sequence[SampledVideo], num_priming: int) -> list[PictureRow]:
    """A row for every sample, below its real video where there is one."""
    rows: list[PictureRow] = []
    for number, video in enumerate(videos):
        space = PAIR_SPACE if number and (video.real is not None or videos[number - 1].real is not None) else 0.0
        if video.real is not None:
            if video.real.shape[1:] != video.frames.shape[1:]:
                raise ShapeError(
                    f"{video.name} has frames of {video.frames.shape[1:]} but its real video of "
                    f"{video.real.shape[1:]}; give both at one size"
                )
            rows.append(PictureRow(f"{video.name}\nreal", video.real[: len(video.frames)], space_above=space))
            space = 0.0
        label = video.name if video.real is None else "sample"
        rows.append(PictureRow(label, video.frames, num_priming=num_priming, space_above=space))
    return rows


def _code_rows(codes: NDArray[Any], codebook_size: int, num_priming: int, group: str) -> list[PictureRow]:
    """The rows of one video: n_c of codes, then n_c of changes, each with space above."""
    return [
        PictureRow(label, tiles, num_priming, group, space_above=0.0 if number % codes.shape[-1] else BLOCK_SPACE)
        for number, (label, tiles) in enumerate(code_rows(codes, codebook_size))
    ]


def _code_numbers(
    name: str, codes: NDArray[Any], priming_frames: int
) -> Iterator[tuple[str, int, str, int, float | None]]:
    changed = (codes[1:] != codes[:-1]).mean((1, 2))
    for frame in range(len(codes)):
        kind = "real" if name == "real" else "priming" if frame < priming_frames else "sampled"
        for book in range(codes.shape[-1]):
            yield name, frame + 1, kind, book, float(changed[frame - 1, book]) if frame else None


def _sample_numbers(
    video: SampledVideo, priming_frames: int
) -> Iterator[tuple[str, int, str, float | None, float | None]]:
    scaled = video.frames / 255.0
    errors: list[float] = []
    if video.real is not None:
        length = min(len(video.real), len(video.frames))
        errors = squared_errors(video.real[:length], video.frames[:length]).mean((1, 2, 3)).tolist()
    for frame in range(len(scaled)):
        difference = float(np.abs(scaled[frame] - scaled[frame - 1]).mean()) if frame else None
        kind = "priming" if frame < priming_frames else "sampled"
        yield video.name, frame + 1, kind, difference, errors[frame] if frame < len(errors) else None
