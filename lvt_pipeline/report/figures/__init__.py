"""Figures as the paper draws them, each as PNG and SVG with its numbers as CSV. Drawing needs matplotlib, an extra.

`strips` holds the pictures of codes and of their changes alone, at one pixel per code, and needs nothing.
"""

from lvt_pipeline.report.figures.canvas import FigureFiles, require_matplotlib
from lvt_pipeline.report.figures.code_rows import draw_code_rows
from lvt_pipeline.report.figures.curves import TrainingCurves, draw_horizon, draw_loss_curves
from lvt_pipeline.report.figures.frequencies import draw_code_frequencies, draw_code_usage
from lvt_pipeline.report.figures.samples import SampledVideo, draw_samples
from lvt_pipeline.report.figures.strips import CHANGED, UNCHANGED, Strip, code_strips, draw_changes, draw_codes, strip

__all__ = [
    "CHANGED",
    "UNCHANGED",
    "FigureFiles",
    "SampledVideo",
    "Strip",
    "TrainingCurves",
    "code_strips",
    "draw_changes",
    "draw_code_frequencies",
    "draw_code_rows",
    "draw_code_usage",
    "draw_codes",
    "draw_horizon",
    "draw_loss_curves",
    "draw_samples",
    "require_matplotlib",
    "strip",
]
