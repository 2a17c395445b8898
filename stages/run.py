"""lvt run: all stages. Reads a folder of videos or a pipeline file; writes a work directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stages.console import Console, echo_facts
from stages.options import (
    device_option,
    json_option,
    media_option,
    set_option,
    setting_rows,
    stage_command,
    workers_option,
)
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline
from stages.values import PATH, TEXT


def _list_settings(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all keys and end."""
    if not value or ctx.resilient_parsing:
        return
    from lvt_pipeline.workspace.pipeline import PipelineSettings

    formatter = ctx.make_formatter()
    formatter.write_dl(setting_rows(PipelineSettings))
    click.echo(formatter.getvalue().rstrip())
    ctx.exit()


@stage_command("run", settings_home=SETTINGS_HOME)
@click.argument("file", type=PATH, required=False, metavar="[PIPELINE.toml]")
@click.option("--videos", type=TEXT, help="Folder of videos, or any source that `lvt manifest build` accepts.")
@media_option
@click.option(
    "--work-dir", type=PATH, show_default="the folder of the pipeline file", help="Work directory for all outputs."
)
@click.option(
    "--preset",
    type=click.Choice(["tiny", "small", "paper"]),
    show_default="that of the file or work directory, or tiny",
    help="Preset. tiny: minutes on two cores. small: one GPU. paper: as published.",
)
@set_option("Change one setting, such as --set ingest.geometry.size=128; may be repeated.")
@click.option(
    "--list-settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_settings,
    help="Print all settings for --set and PIPELINE.toml with their defaults, and exit.",
)
@workers_option
@device_option
@json_option
def command(
    file: Path | None,
    videos: str | None,
    media: str | None,
    work_dir: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Run all stages, from videos to a trained model, samples and a report. Finished, unchanged stages are skipped.

    Example: lvt run --videos my_videos --work-dir work --preset tiny
    """
    if file is None and work_dir is None:
        raise click.UsageError("give a pipeline file, or --videos and --work-dir")
    from lvt_pipeline.workspace.pipeline import load_settings

    settings = load_settings(
        file=file, videos=videos, media=media, work_dir=work_dir, preset=preset, overrides=overrides
    )
    facts: dict[str, Any] = run_pipeline(settings, Console(), device=device, workers=workers)
    echo_facts(facts, as_json, closing_lines(facts))
