"""lvt show: show clips. Reads frames or a code store; writes one picture or film."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.report.settings import ShowSettings
from lvt_pipeline.storage import Place
from stages.console import echo_facts
from stages.options import at_option, device_option, json_option, out_option, settings_options, stage_command
from stages.values import PATH, STORE


@stage_command("show")
@click.argument("source", type=STORE)
@out_option("Picture to write: .png is a contact sheet; .mp4 and .gif play.", required=False, default="show.png")
@settings_options(ShowSettings)
@click.option(
    "--vqvae", type=PATH, show_default="colours", help="VQ-VAE run. Codes are shown as the pictures it decodes."
)
@at_option
@device_option
@json_option
def command(
    source: Place, out: Path, settings: ShowSettings, vqvae: Path | None, at: int | None, device: str, as_json: bool
) -> None:
    """Show clips of SOURCE: a frame folder, or a code store of clips or samples.

    Example: lvt show frames -o look.png

    Example: lvt show samples.zarr --vqvae runs/vqvae --num-clips 16 -o samples.mp4
    """
    from lvt_pipeline.report.contact_sheet import show

    shown = show(source, out, settings, vqvae=vqvae, generation=at, device=device)
    line = f"{count_of(len(shown), 'clip')} of {source} -> {out}"
    echo_facts({"out": str(out), "clips": shown}, as_json, line)
