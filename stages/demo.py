"""lvt demo: the whole pipeline on procedural videos. Reads nothing; writes videos and a work directory."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import Console, echo_facts
from stages.options import device_option, json_option, out_option, set_option, stage_command
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline
from stages.values import Whole


@stage_command("demo", settings_home=SETTINGS_HOME)
@out_option("Folder for the videos and the work directory.", required=False, default="demo")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Random seed of the videos.")
@click.option("--num-clips", type=Whole(3), default=150, show_default=True, help="Number of videos to make.")
@set_option("Change one setting; may be repeated. `lvt run --list-settings` lists them.")
@click.option("--videos-only", is_flag=True, help="Make the videos and stop.")
@device_option
@json_option
def command(
    out: Path, seed: int, num_clips: int, overrides: tuple[str, ...], videos_only: bool, device: str, as_json: bool
) -> None:
    """Make videos of a robot arm that pushes objects, train a tokenizer and a prior on them, and write samples.

    This takes minutes on two CPU cores. Run it again to resume.

    Example: lvt demo -o demo
    """
    from lvt_pipeline.demo.videos import DemoSettings, write_demo_videos

    console = Console()
    videos = out / "videos"
    write_demo_videos(videos, DemoSettings(seed=seed, num_clips=num_clips), progress=console)
    console.say(f"{'demo':15} {num_clips} videos -> {videos}")
    if videos_only:
        return
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.workspace.settings import load_settings

    settings = load_settings(videos=videos, work_dir=out / "work", preset="tiny", overrides=overrides)
    facts = run_pipeline(settings, console, Making(device=device, progress=console))
    echo_facts(facts, as_json, closing_lines(facts))
