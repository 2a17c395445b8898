"""lvt run: all stages. Reads a folder of videos or a pipeline file; writes a work directory."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from lvt_pipeline.settings import setting
from lvt_pipeline.workspace.layout import StageName
from stages.command import setting_rows, stage_command
from stages.console import Console, Result
from stages.options import CACHE, DEVICE, MAX_SECONDS, MEDIA, TRACK, Cache, Tracker
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline
from stages.running import DecodingOptions


@stage_command("run", settings_home=SETTINGS_HOME)
def command(
    file: Path | None = setting(None, example="[PIPELINE.toml|WORK_DIR]"),
    *,
    videos: str | None = setting(None, "Folder of videos, or any source that `lvt manifest build` accepts."),
    media: str | None = MEDIA,
    work_dir: Path | None = setting(None, "Work directory for all outputs.", unset="the folder of the pipeline file"),
    preset: Literal["tiny", "small", "paper"] | None = setting(
        None,
        "Preset. tiny: minutes on two cores. small: one GPU. paper: as published.",
        unset="that of the file or work directory, or tiny",
    ),
    overrides: tuple[str, ...] = setting(
        (),
        "Change one setting, such as --set ingest.geometry.size=128; may be repeated.",
        option="--set",
        example="NAME=VALUE",
    ),
    list_settings: bool = setting(
        False, "Print all settings for --set and PIPELINE.toml with their defaults, and exit."
    ),
    until: StageName | None = setting(None, "Last stage to run. [all]"),
    retrain: Literal["vqvae", "prior", "all"] | None = setting(
        None, "Network to train again if its settings or data have changed; the old run is kept."
    ),
    refine: Literal["vqvae", "prior"] | None = setting(
        None,
        "Network to train further if its settings or data have changed: a new run that starts from its weights. The "
        "old run is used until the new one is finished, and kept. A refined tokenizer makes other codes, so the prior "
        "is then trained again.",
    ),
    max_seconds: float | None = MAX_SECONDS,
    cache: Cache = CACHE,
    track: tuple[Tracker, ...] = TRACK,
    dry_run: bool = setting(False, "Print for each stage what would be done and why; write nothing."),
    runner_options: DecodingOptions,
    device: str = DEVICE,
) -> Result | None:
    """Run all stages, from videos to a trained model, samples and a report. Finished, unchanged stages are skipped.

    A trained network is never discarded unasked: when only its data have changed, it is kept and used.

    Example: lvt run --videos my_videos --work-dir work --preset tiny
    """
    if list_settings:
        _print_settings()
        return None
    runner = runner_options.start()
    if file is None and work_dir is None:
        raise click.UsageError("give a pipeline file, or --videos and --work-dir")
    retrained = ("vqvae", "prior") if retrain == "all" else (retrain,)
    if refine is not None and refine in retrained:
        raise click.UsageError(f"--refine {refine} and --retrain {retrain} exclude each other")
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.pipeline.running import Pipeline
    from lvt_pipeline.workspace.settings import load_settings

    if file is not None and file.is_dir():
        file, work_dir = None, work_dir or file
    settings = load_settings(
        file=file, videos=videos, media=media, work_dir=work_dir, preset=preset, overrides=overrides
    )
    console = Console()
    making = Making(
        device=device,
        num_workers=runner_options.workers,
        runner=runner,
        max_failures=settings.max_failures,
        cache=cache,
        track=track,
        deadline=None if max_seconds is None else time.monotonic() + max_seconds,
        retrain=frozenset(role for role in retrained if role is not None),
        refine=frozenset((refine,) if refine else ()),
        progress=console,
    )
    if dry_run:
        plan = Pipeline(settings, making).plan()
        return Result({"stages": list(map(asdict, plan))}, "\n".join(map(str, plan)))
    facts = run_pipeline(settings, console, making, until)
    return Result(facts, closing_lines(facts))


def _print_settings() -> None:
    from lvt_pipeline.workspace.settings import PipelineSettings

    formatter = click.get_current_context().make_formatter()
    formatter.write_dl(setting_rows(PipelineSettings))
    click.echo(formatter.getvalue().rstrip())
