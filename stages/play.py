"""lvt play: steer a prior by hand. Reads a work directory; serves a page to this machine and writes what is saved."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.workspace.settings import sample_settings_of
from stages.console import Console
from stages.options import device_option, given_fields, out_option, settings_options, stage_command
from stages.values import PATH, Whole


@stage_command("play")
@click.argument("work_dir", metavar="WORK_DIR", type=PATH)
@out_option("Folder of saved clips.", required=False, shown_default="WORK_DIR/played")
@click.option("--port", type=Whole(1024, 65535), show_default="a free one", help="Port of the page on 127.0.0.1.")
@settings_options(SampleSettings, leave_out=("frames", "samples_per_clip", "label", "actions"))
@device_option
def command(work_dir: Path, out: Path | None, port: int | None, settings: SampleSettings, device: str) -> None:
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
