"""Lines: losses over training, and errors over the frames of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.report.charts import Reference, Series, spoken_number
from lvt_pipeline.report.figures.canvas import (
    FAINT,
    GIVEN_COLOUR,
    PAGE_WIDTH,
    FigureFiles,
    figure_look,
    line_style,
    new_figure,
    plain_numbers,
    save_figure,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.0
MOST_MARKERS = 25
LOG_RATIO = 10.0  # values spanning more than this ratio get a logarithmic axis
LEGEND_LINE = 0.6  # inches that the sample of a line and the space around an entry take


@dataclass(frozen=True)
class TrainingCurves:
    """How one run went: its name and pairs of step and value, from training batches and from validation."""

    name: str
    training: Series
    validation: Series


def draw_loss_curves(
    runs: Sequence[TrainingCurves],
    out: Path,
    *,
    y_label: str,
    references: Sequence[Reference] = (),
    title: str = "",
) -> FigureFiles:
    """Draw the curves of one or several runs; a run has one colour, thin for training and thick for validation.

    The CSV has a line per point: `run`, `split` (train or val), `step`, `value`; a reference has the split "reference"
    and no step. The vertical axis is logarithmic where values span more than a factor of 10.

    Args:
        out: path of the files without an ending.
        references: levels to compare with, such as a baseline.

    Raises:
        ShapeError: no run has a finite value.
        LVTError: matplotlib is not installed.
    """
    curves = [
        (number, run, split, line)
        for number, run in enumerate(runs)
        for split, line in (("train", _finite(run.training)), ("val", _finite(run.validation)))
    ]
    if not any(line.x for *_, line in curves):
        raise ShapeError("no curve has a finite value; there is nothing to draw")
    with figure_look():
        figure = new_figure(PAGE_WIDTH, HEIGHT)
        axes = figure.subplots()
        axes.set_title(title)  # below the legend
        for number, run, split, line in curves:
            if not line.x:
                continue
            style = line_style(number)
            kind = "training" if split == "train" else "validation"
            if split == "train":
                style |= {"marker": "" if len(line.x) > 1 else style["marker"], "linewidth": 0.9, "alpha": 0.6}
            else:
                style |= {"linewidth": 1.6, "markevery": max(1, len(line.x) // MOST_MARKERS)}
            axes.plot(line.x, line.y, label=f"{run.name}, {kind}" if len(runs) > 1 else kind, **style)
        _draw_references(axes, references)
        values = [value for *_, line in curves for value in line.y] + [item.value for item in references]
        _finish(axes, values, "step", y_label)
        lines = [(run.name, split, x, y) for _, run, split, line in curves for x, y in zip(line.x, line.y, strict=True)]
        levels = [(item.name, "reference", None, item.value) for item in references]
        return save_figure(figure, out, ("run", "split", "step", "value"), [*lines, *levels])


def draw_horizon(
    series: Sequence[Series],
    priming_frames: int,
    out: Path,
    *,
    y_label: str = "PSNR, dB",
    title: str = "",
) -> FigureFiles:
    """Draw an error of each frame, as of samples, reconstruction and the last given frame repeated.

    The CSV has a line per point: `name`, `frame` (from 1), `kind` (given or generated), `value`.

    Args:
        series: x are frame numbers from 1; values that are not finite leave a gap.
        priming_frames: frames 1 to this are shaded as given.
        out: path of the files without an ending.

    Raises:
        ShapeError: there is no finite value.
        LVTError: matplotlib is not installed.
    """
    values = [value for item in series for value in item.y if math.isfinite(value)]
    if not values:
        raise ShapeError("no frame has a finite value; there is nothing to draw")
    with figure_look():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(PAGE_WIDTH, HEIGHT)
        axes = figure.subplots()
        axes.set_title(title)  # below the legend
        last = max(x for item in series for x in item.x)
        axes.set_xlim(0.5, last + 0.5)
        if priming_frames:
            axes.axvspan(0.5, priming_frames + 0.5, color=GIVEN_COLOUR, alpha=0.1, linewidth=0)
            axes.text(
                0.5 + priming_frames / 2,
                0.03,
                "given",
                transform=axes.get_xaxis_transform(),
                ha="center",
                color=GIVEN_COLOUR,
                weight="bold",
            )
        for number, item in enumerate(series):
            heights = [value if math.isfinite(value) else np.nan for value in item.y]
            axes.plot(item.x, heights, label=item.name, linewidth=1.6, **line_style(number))
        _finish(axes, values, "frame", y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
        lines = [
            (item.name, int(x), "given" if x <= priming_frames else "generated", y if math.isfinite(y) else None)
            for item in series
            for x, y in zip(item.x, item.y, strict=True)
        ]
        return save_figure(figure, out, ("name", "frame", "kind", "value"), lines)


def _draw_references(axes: Axes, references: Sequence[Reference]) -> None:
    for number, item in enumerate(references):
        dashes = ((0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))[number % 3]
        label = f"{item.name}, {spoken_number(item.value)}"
        axes.axhline(item.value, color=FAINT, linewidth=1.2, linestyle=dashes, label=label)


def _finish(axes: Axes, values: Sequence[float], x_label: str, y_label: str) -> None:
    """Scale, names of the axes, and a legend above the lines, where it hides none."""
    from matplotlib.ticker import LogLocator

    ratio = max(values) / min(values) if min(values) > 0 else 0.0
    if ratio > LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 1000 else (1.0,)))
        y_label += ", log scale"
    plain_numbers(axes, "x", "y")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    entries = [text_width(text) + LEGEND_LINE for text in axes.get_legend_handles_labels()[1]]
    columns = len(entries) if sum(entries) < PAGE_WIDTH else max(1, int(PAGE_WIDTH / max(entries)))
    axes.figure.legend(loc="outside upper center", ncols=columns)


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, [x for x, _ in points], [y for _, y in points])
