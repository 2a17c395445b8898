"""lvt play: steer a prior by hand. Reads a work directory; serves a page to this machine and writes what is saved."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.settings import setting
from lvt_pipeline.workspace.settings import sample_settings_of
from stages.command import given_fields, settings_option, stage_command
from stages.console import Console
from stages.options import DEVICE


@stage_command("play")
def command(
    work_dir: Path,
    *,
    out: Path | None = setting(None, "Folder of saved clips.", unset="WORK_DIR/played"),
    port: int | None = setting(
        None, "Port of the page on 127.0.0.1.", at_least=1024, at_most=65535, unset="a free one"
    ),
    settings: SampleSettings = settings_option(leave_out=["frames", "samples_per_clip", "label", "actions"]),
    device: str = DEVICE,
) -> None:
    """Continue clips by hand: the page's arrow keys and sliders set the action, and each next frame appears as it is
    sampled. A clip that is saved comes with its actions, which `lvt sample --actions` reads.

    Only this machine can open the page, with the address that the command prints; Ctrl-C ends it. Options that are not
    given have the values of the directory's table `sample`.

    Example: lvt play work
    """
    from lvt_pipeline.play.player import Player
    from lvt_pipeline.play.server import PlayServer
    from lvt_pipeline.report.work import WorkDir

    settings = sample_settings_of(work_dir, settings, given_fields(SampleSettings))
    player = Player(WorkDir(work_dir), settings, device=device, progress=Console())
    server = PlayServer(player, out or work_dir / "played", port or 0)
    click.echo(f"open {server.address}\nCtrl-C ends it")
    server.run()
    click.echo("ended")
