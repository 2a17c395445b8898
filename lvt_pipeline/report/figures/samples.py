"""Samples in rows, the given frames marked (paper figures 3 and 4: each row is a single video)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.metrics import squared_errors
from lvt_pipeline.report.figures.canvas import FigureFiles, figure_look, save_figure
from lvt_pipeline.report.figures.picture_rows import PictureRow, draw_picture_rows

PAIR_SPACE = 0.09  # inches between samples that stand below their real video


@dataclass(frozen=True)
class SampledVideo:
    """One sample to show.

    Attributes:
        name: id of the clip.
        frames: uint8 (T, H, W, 3), the given ones first.
        real: what really happened, drawn above it; as many frames, or the first of them.
    """

    name: str
    frames: NDArray[np.uint8]
    real: NDArray[np.uint8] | None = None


def draw_samples(videos: Sequence[SampledVideo], priming_frames: int, out: Path, *, title: str = "") -> FigureFiles:
    """Draw every video as a row, with its first `priming_frames` framed, under frame numbers from 1.

    The CSV has a line per video and frame: `clip`, `frame`, `kind` (given or generated), `difference_to_previous`
    (mean absolute difference to the frame before, in [0, 1]) and `mse_to_real` (in [0, 1], where `real` is given).

    Args:
        out: path of the files without an ending.

    Raises:
        ShapeError: there is no video, or a real one has another frame size.
        LVTError: matplotlib is not installed.
    """
    with figure_look():
        rows = []
        for number, video in enumerate(videos):
            space = PAIR_SPACE if number and (video.real is not None or videos[number - 1].real is not None) else 0.0
            if video.real is not None:
                if video.real.shape[1:] != video.frames.shape[1:]:
                    raise ShapeError(
                        f"{video.name} has frames of {video.frames.shape[1:]} but its real video of "
                        f"{video.real.shape[1:]}; give both at one size"
                    )
                real = video.real[: len(video.frames)]
                rows.append(PictureRow(f"{video.name}\nreal", real, space_above=space))
                space = 0.0
            label = video.name if video.real is None else "sample"
            rows.append(PictureRow(label, video.frames, num_given=priming_frames, space_above=space))
        drawn = draw_picture_rows(rows, priming_frames, title=title)
        header = ("clip", "frame", "kind", "difference_to_previous", "mse_to_real")
        lines = [line for video in videos for line in _numbers(video, priming_frames)]
        return save_figure(drawn.figure, out, header, lines, drawn.dots_per_inch)


def _numbers(video: SampledVideo, priming_frames: int) -> Iterator[tuple[str, int, str, float | None, float | None]]:
    scaled = video.frames / 255.0
    errors: list[float] = []
    if video.real is not None:
        length = min(len(video.real), len(video.frames))
        errors = squared_errors(video.real[:length], video.frames[:length]).mean((1, 2, 3)).tolist()
    for frame in range(len(scaled)):
        difference = float(np.abs(scaled[frame] - scaled[frame - 1]).mean()) if frame else None
        kind = "given" if frame < priming_frames else "generated"
        yield video.name, frame + 1, kind, difference, errors[frame] if frame < len(errors) else None
