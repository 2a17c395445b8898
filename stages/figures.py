"""lvt figures: plot the paper's figures of a work directory. Reads its artefacts; writes PNG, SVG and CSV files."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.report.settings import FigureSettings
from stages.console import Console, echo_facts
from stages.options import json_option, out_option, settings_options, stage_command
from stages.values import PATH


@stage_command("figures")
@click.argument("work_dir", type=PATH)
@out_option("Folder for the figures.", required=False, shown_default="WORK_DIR/figures")
@settings_options(FigureSettings)
@json_option
def command(work_dir: Path, out: Path | None, settings: FigureSettings, as_json: bool) -> None:
    """Plot figures 3 to 8 of the paper, loss curves, code usage and errors over the horizon, with CSV files.

    Example: lvt figures work -o figures
    """
    from lvt_pipeline.report.figures import plot_work_figures

    target = out or work_dir / "figures"
    figures = plot_work_figures(work_dir, target, settings, progress=Console())
    lines = [f"not plotted: {name}: {reason}" for name, reason in figures.missing.items()]
    summary = f"{count_of(len(figures.drawn), 'figure')} as PNG, SVG and CSV -> {target}: {', '.join(figures.drawn)}"
    echo_facts(figures.to_json(), as_json, "\n".join([*lines, summary]))
