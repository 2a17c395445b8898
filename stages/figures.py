"""lvt figures: draw the paper's figures of a work directory. Reads its artefacts; writes PNG, SVG and CSV files."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, echo_facts, json_option, out_option

FIGURES = (
    "samples",
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


@click.command("figures")
@click.argument("work_dir", type=PATH)
@out_option("Folder for the figures. [WORK_DIR/figures]", required=False)
@click.option(
    "--only",
    type=click.Choice(FIGURES),
    multiple=True,
    metavar="NAME",
    help=f"Only this figure; may be repeated: {', '.join(FIGURES)}.",
)
@click.option("--clip", "clips", multiple=True, metavar="ID", help="Show this clip; may be repeated. [the first ones]")
@click.option("--num-clips", type=click.IntRange(min=1), default=8, show_default=True, help="Rows of samples.")
@click.option("--num-frames", type=click.IntRange(min=1), default=16, show_default=True, help="Frames of each sample.")
@click.option("--real", "with_real", is_flag=True, help="Draw what really happened above each sample.")
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
    """Figures 3 to 8 of the paper, loss curves, code usage and errors over the horizon, with their numbers as CSV.

    Example: lvt figures work -o figures
    """
    from lvt_pipeline.report.figures.work_figures import FigureSettings, draw_work_figures

    settings = FigureSettings(only=only, clips=clips, num_clips=num_clips, num_frames=num_frames, with_real=with_real)
    target = out or work_dir / "figures"
    figures = draw_work_figures(work_dir, target, settings, progress=Console())
    lines = [f"not drawn: {name}: {reason}" for name, reason in figures.missing.items()]
    summary = f"{len(figures.drawn)} figures as PNG, SVG and CSV -> {target}: {', '.join(figures.drawn)}"
    echo_facts(figures.to_json(), as_json, "\n".join([*lines, summary]))
