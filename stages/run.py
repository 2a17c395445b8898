"""lvt run: all stages. Reads a folder of videos or a pipeline file; writes a work directory."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.console import PATH, Console, closing_lines, device_option, json_option, run_pipeline


@click.command("run")
@click.argument("file", type=PATH, required=False, metavar="[PIPELINE.toml]")
@click.option("--videos", help="Folder of videos, a CSV that lists them, or what else `lvt manifest build` takes.")
@click.option("--media", help="Folder or URL of the videos that a list names. [beside the list]")
@click.option("--work-dir", type=PATH, help="Where everything goes. [the folder of the pipeline file]")
@click.option(
    "--preset",
    type=click.Choice(["tiny", "small", "paper"]),
    help="tiny: minutes on two cores. small: one GPU. paper: as published. [what file or work directory say, or tiny]",
)
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change one setting; may be repeated.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes. [one per core]")
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
    """From videos to a trained model, samples and a report. What is done and unchanged is not done again.

    Example: lvt run --videos my_videos --work-dir work --preset tiny
    """
    if file is None and work_dir is None:
        raise click.UsageError("give a pipeline file, or --videos and --work-dir")
    from lvt_pipeline.workspace.pipeline import load_settings

    settings = load_settings(
        file=file, videos=videos, media=media, work_dir=work_dir, preset=preset, overrides=overrides
    )
    facts = run_pipeline(settings, Console(), device=device, workers=workers)
    click.echo(json.dumps(facts, indent=2) if as_json else closing_lines(facts))
