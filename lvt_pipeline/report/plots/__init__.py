"""Plots: the figures of the paper on disk, each as PNG and SVG with its numbers as CSV, and charts inside a page."""

from lvt_pipeline.report.plots.codes import plot_code_frequencies, plot_code_usage
from lvt_pipeline.report.plots.engine import FigureFiles, Reference, Series
from lvt_pipeline.report.plots.lines import TrainingCurves, plot_horizon, plot_loss_curves
from lvt_pipeline.report.plots.videos import SampledVideo, plot_code_rows, plot_rollout, plot_samples

__all__ = [
    "FigureFiles",
    "Reference",
    "SampledVideo",
    "Series",
    "TrainingCurves",
    "plot_code_frequencies",
    "plot_code_rows",
    "plot_code_usage",
    "plot_horizon",
    "plot_loss_curves",
    "plot_rollout",
    "plot_samples",
]
