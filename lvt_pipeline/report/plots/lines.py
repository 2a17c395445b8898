"""Figures of lines: losses over training, and errors over the frames of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lvt_pipeline.report.plots.engine import FigureFiles, Reference, Series, figure_look, line_figure, save_figure


def plot_loss_curves(
    runs: Mapping[str, tuple[Series, Series]],
    out: Path,
    *,
    y_label: str,
    references: Sequence[Reference] = (),
    title: str = "",
) -> FigureFiles:
    """Plot the curves of one or several runs; a run has one colour, thin for training and thick for validation.

    The CSV has a line per point: `run`, `split` (train or val), `step`, `value`; a reference has the split "reference"
    and no step.

    Args:
        runs: values by step, of training batches and of validation, by name of the run.
        out: path of the files without an ending.
        references: levels to compare with, such as a baseline.

    Raises:
        ShapeError: no run has a finite value.
    """
    shown, rows = [], []
    for number, (run, (training, validation)) in enumerate(runs.items()):
        for split, kind, line in (("train", "training", training), ("val", "validation", validation)):
            name = f"{run}, {kind}" if len(runs) > 1 else kind
            line = replace(line.finite, name=name, style=number, is_thin=split == "train")
            shown.append(line)
            rows += [(run, split, x, y) for x, y in zip(line.x, line.y, strict=True)]
    levels = [(item.name, "reference", None, item.value) for item in references]
    with figure_look():
        figure = line_figure(shown, x_label="step", y_label=y_label, title=title, references=references)
        return save_figure(figure, out, ("run", "split", "step", "value"), [*rows, *levels])


def plot_horizon(series: Sequence[Series], priming_frames: int, out: Path, *, y_label: str = "PSNR, dB") -> FigureFiles:
    """Plot an error of each frame, as of samples, reconstruction and the last priming frame repeated.

    The CSV has a line per point: `name`, `frame` (from 1), `kind` (priming or sampled), `value`.

    Args:
        series: x are frame numbers from 1.
        priming_frames: frames 1 to this are shaded.
        out: path of the files without an ending.

    Raises:
        ShapeError: there is no finite value.
    """
    rows = [
        (item.name, int(x), "priming" if x <= priming_frames else "sampled", y if math.isfinite(y) else None)
        for item in series
        for x, y in zip(item.x, item.y, strict=True)
    ]
    with figure_look():
        figure = line_figure(series, x_label="frame", y_label=y_label, priming_frames=priming_frames)
        return save_figure(figure, out, ("name", "frame", "kind", "value"), rows)
