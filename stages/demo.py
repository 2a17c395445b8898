"""lvt demo: the whole pipeline on procedural videos. Reads nothing; writes videos and a work directory."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.demo.videos import DemoSettings, write_demo_videos
from lvt_pipeline.progress import count_of
from stages.console import Console, echo_facts
from stages.options import device_option, json_option, out_option, set_option, settings_options, stage_command
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline


@stage_command("demo", settings_home=SETTINGS_HOME)
@out_option("Folder for the videos and the work directory.", required=False, default="demo")
@settings_options(DemoSettings, leave_out=("num_frames", "fps"))
@set_option("Change one setting; may be repeated. `lvt run --list-settings` lists them.")
@click.option("--videos-only", is_flag=True, help="Make the videos and stop.")
@device_option
@json_option
def command(
    out: Path, settings: DemoSettings, overrides: tuple[str, ...], videos_only: bool, device: str, as_json: bool
) -> None:
    """Make videos of a robot arm that pushes objects, train a tokenizer and a prior on them, and write samples.

    The prior is conditioned on the movements of the arm's joints.

    This takes minutes on two CPU cores. Run it again to resume.

    Example: lvt demo -o demo
    """
    console = Console()
    videos = out / "videos"
    write_demo_videos(videos, settings, progress=console)
    console.say(f"{'demo':15} {count_of(settings.num_clips, 'video')} -> {videos}")
    if videos_only:
        return
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.workspace.settings import load_settings

    # The videos come with the actions of the arm.
    overrides = ('prior.model.actions=["action"]', *overrides)
    pipeline = load_settings(videos=videos, work_dir=out / "work", preset="tiny", overrides=overrides)
    facts = run_pipeline(pipeline, console, Making(device=device, progress=console))
    echo_facts(facts, as_json, closing_lines(facts))
