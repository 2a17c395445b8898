"""lvt demo: the whole pipeline on procedural videos. Reads nothing; writes videos and a work directory."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.demo.videos import DemoSettings, write_demo_videos
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import setting
from stages.command import settings_option, stage_command
from stages.console import Console, Result
from stages.options import DEVICE
from stages.pipeline import SETTINGS_HOME, closing_lines, run_pipeline


@stage_command("demo", settings_home=SETTINGS_HOME)
def command(
    *,
    out: Path = setting(Path("demo"), "Folder for the videos and the work directory."),
    settings: DemoSettings = settings_option(leave_out=["num_frames", "fps"]),
    overrides: tuple[str, ...] = setting(
        (),
        "Change one setting; may be repeated. `lvt run --list-settings` lists them.",
        option="--set",
        example="NAME=VALUE",
    ),
    videos_only: bool = setting(False, "Make the videos and stop."),
    device: str = DEVICE,
) -> Result | None:
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
        return None
    from lvt_pipeline.pipeline.options import Making
    from lvt_pipeline.workspace.settings import load_settings

    # The videos come with the actions of the arm.
    overrides = ('prior.model.actions=["action"]', *overrides)
    pipeline = load_settings(videos=videos, work_dir=out / "work", preset="tiny", overrides=overrides)
    facts = run_pipeline(pipeline, console, Making(device=device, progress=console))
    return Result(facts, closing_lines(facts))
