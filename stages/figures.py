"""lvt figures: plot the paper's figures of a work directory. Reads its artefacts; writes PNG, SVG and CSV files."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.progress import count_of
from lvt_pipeline.report.settings import FigureSettings
from lvt_pipeline.settings import setting
from stages.command import stage_command
from stages.console import Console, Result


@stage_command("figures")
def command(
    work_dir: Path,
    *,
    out: Path | None = setting(None, "Folder for the figures.", unset="WORK_DIR/figures"),
    settings: FigureSettings,
) -> Result:
    """Plot figures 3 to 8 of the paper, loss curves, code usage and errors over the horizon, with CSV files.

    Example: lvt figures work -o figures
    """
    from lvt_pipeline.report.figures import plot_work_figures

    target = out or work_dir / "figures"
    figures = plot_work_figures(work_dir, target, settings, progress=Console())
    lines = [f"not plotted: {name}: {reason}" for name, reason in figures.missing.items()]
    summary = f"{count_of(len(figures.drawn), 'figure')} as PNG, SVG and CSV -> {target}: {', '.join(figures.drawn)}"
    return Result(figures.to_json(), "\n".join([*lines, summary]))
