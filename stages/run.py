"""lvt run: all stages. Reads a folder of videos or a pipeline file; writes a work directory."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvt_pipeline.jobs.runner import Runner
from lvt_pipeline.pipeline.settings import RunOptions
from lvt_pipeline.workspace.layout import ARTEFACTS
from stages.console import Console, echo_facts
from stages.options import (
    device_option,
    json_option,
    media_option,
    set_option,
    setting_rows,
    settings_options,
    stage_command,
)
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline
from stages.running import runner_options
from stages.values import PATH, TEXT

if TYPE_CHECKING:
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.workspace.settings import PipelineSettings


def _list_settings(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print all keys and end."""
    if not value or ctx.resilient_parsing:
        return
    from lvt_pipeline.workspace.settings import PipelineSettings

    formatter = ctx.make_formatter()
    formatter.write_dl(setting_rows(PipelineSettings))
    click.echo(formatter.getvalue().rstrip())
    ctx.exit()


@stage_command("run", settings_home=SETTINGS_HOME)
@click.argument("file", type=PATH, required=False, metavar="[PIPELINE.toml|WORK_DIR]")
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
@click.option("--until", type=click.Choice([artefact.stage for artefact in ARTEFACTS]), help="Last stage to run. [all]")
@settings_options(RunOptions, argument="options")
@click.option("--dry-run", is_flag=True, help="Print for each stage what would be done and why; write nothing.")
@runner_options(decodes_videos=True)
@device_option
@json_option
def command(
    file: Path | None,
    videos: str | None,
    media: str | None,
    work_dir: Path | None,
    preset: str | None,
    overrides: tuple[str, ...],
    until: str | None,
    options: RunOptions,
    dry_run: bool,
    runner: Runner,
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Run all stages, from videos to a trained model, samples and a report. Finished, unchanged stages are skipped.

    A trained network is never discarded unasked: when only its data have changed, it is kept and used.

    Example: lvt run --videos my_videos --work-dir work --preset tiny
    """
    if file is None and work_dir is None:
        raise click.UsageError("give a pipeline file, or --videos and --work-dir")
    if options.refine in options.retrained:
        raise click.UsageError(f"--refine {options.refine} and --retrain {options.retrain} exclude each other")
    from lvt_pipeline.pipeline.running import Pipeline
    from lvt_pipeline.workspace.settings import load_settings

    if file is not None and file.is_dir():
        file, work_dir = None, work_dir or file
    settings = load_settings(
        file=file, videos=videos, media=media, work_dir=work_dir, preset=preset, overrides=overrides
    )
    console = Console()
    making = _making(options, settings, device, workers, runner, console)
    if dry_run:
        plan = Pipeline(settings, making).plan()
        echo_facts({"stages": list(map(asdict, plan))}, as_json, "\n".join(map(str, plan)))
        return
    facts = run_pipeline(settings, console, making, until)
    echo_facts(facts, as_json, closing_lines(facts))


def _making(
    options: RunOptions, settings: PipelineSettings, device: str, workers: int | None, runner: Runner, console: Console
) -> Making:
    from lvt_pipeline.pipeline.options import Making

    return Making(
        device=device,
        num_workers=workers,
        runner=runner,
        max_failures=settings.max_failures,
        cache=options.cache,
        track=options.track,
        deadline=None if options.max_seconds is None else time.monotonic() + options.max_seconds,
        retrain=options.retrained,
        refine=frozenset((options.refine,) if options.refine else ()),
        progress=console,
    )
