"""lvt demo: the whole pipeline on videos made on the spot. Reads nothing; writes videos and a work directory."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.console import Console, closing_lines, device_option, json_option, out_option, run_pipeline


@click.command("demo")
@out_option("Folder for the videos and the work directory.", required=False, default="demo")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same videos.")
@click.option("--num-clips", type=click.IntRange(min=3), default=150, show_default=True, help="Videos to make.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change one setting; may be repeated.")
@click.option("--videos-only", is_flag=True, help="Make the videos and stop.")
@device_option
@json_option
def command(
    out: Path, seed: int, num_clips: int, overrides: tuple[str, ...], videos_only: bool, device: str, as_json: bool
) -> None:
    """A robot arm pushes objects over a table; a tokenizer and a prior learn it; samples and a report come out.

    Takes minutes on two CPU cores. Run it again to resume.

    Example: lvt demo -o demo
    """
    from lvt_pipeline.demo.videos import DemoSettings, write_demo_videos

    console = Console()
    videos = out / "videos"
    write_demo_videos(videos, DemoSettings(seed=seed, num_clips=num_clips), progress=console)
    console.say(f"{'demo':15} {num_clips} videos -> {videos}")
    if videos_only:
        return
    from lvt_pipeline.workspace.pipeline import load_settings

    settings = load_settings(videos=videos, work_dir=out / "work", preset="tiny", overrides=overrides)
    facts = run_pipeline(settings, console, device=device, workers=None)
    click.echo(json.dumps(facts, indent=2) if as_json else closing_lines(facts))
