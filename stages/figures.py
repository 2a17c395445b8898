"""lvt figures: plot the paper's figures of a work directory. Reads its artefacts; writes PNG, SVG and CSV files."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import Console, echo_facts
from stages.options import json_option, out_option, stage_command
from stages.values import PATH, TEXT, Whole

FIGURES = (
    "samples",
    "long-rollout",
    "code-frequencies",
    "codes",
    "good-sample",
    "bad-sample",
    "tokenizer-loss",
    "prior-loss",
    "code-usage",
    "horizon-psnr",
    "horizon-ssim",
    "horizon-lpips",
)


@stage_command("figures")
@click.argument("work_dir", type=PATH)
@out_option("Folder for the figures.", required=False, shown_default="WORK_DIR/figures")
@click.option(
    "--only",
    type=click.Choice(FIGURES),
    multiple=True,
    metavar="NAME",
    show_default="all",
    help=f"Figure to plot; may be repeated: {', '.join(FIGURES)}.",
)
@click.option(
    "--clip",
    "clips",
    type=TEXT,
    multiple=True,
    metavar="ID",
    show_default="the first ones",
    help="Id of a clip to show; may be repeated.",
)
@click.option(
    "--num-clips", type=Whole(1), default=8, show_default=True, help="Number of clips in the figure of samples."
)
@click.option("--num-frames", type=Whole(1), default=16, show_default=True, help="Number of frames of each sample.")
@click.option("--real", "with_real", is_flag=True, help="Show the real continuation above each sample.")
@json_option
def command(
    work_dir: Path,
    out: Path | None,
    only: tuple[str, ...],
    clips: tuple[str, ...],
    num_clips: int,
    num_frames: int,
    with_real: bool,
    as_json: bool,
) -> None:
    """Plot figures 3 to 8 of the paper, loss curves, code usage and errors over the horizon, with CSV files.

    Example: lvt figures work -o figures
    """
    from lvt_pipeline.evaluation.summary import count_of
    from lvt_pipeline.report.figures import FigureSettings, plot_work_figures

    settings = FigureSettings(only=only, clips=clips, num_clips=num_clips, num_frames=num_frames, with_real=with_real)
    target = out or work_dir / "figures"
    figures = plot_work_figures(work_dir, target, settings, progress=Console())
    lines = [f"not plotted: {name}: {reason}" for name, reason in figures.missing.items()]
    summary = f"{count_of(len(figures.drawn), 'figure')} as PNG, SVG and CSV -> {target}: {', '.join(figures.drawn)}"
    echo_facts(figures.to_json(), as_json, "\n".join([*lines, summary]))
