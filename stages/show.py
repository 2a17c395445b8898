"""lvt show: show clips. Reads frames or a code store; writes one picture or film."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import echo_facts
from stages.options import at_option, device_option, json_option, out_option, split_option, stage_command
from stages.values import PATH, TEXT, Real, Whole


@stage_command("show")
@click.argument("source", type=PATH)
@out_option("Picture to write: .png is a contact sheet; .mp4 and .gif play.", required=False, default="show.png")
@click.option(
    "--clip",
    "clips",
    type=TEXT,
    multiple=True,
    metavar="ID",
    show_default="random clips",
    help="Id of a clip to show; may be repeated. In a store of samples, all samples of that clip.",
)
@click.option("--num-clips", type=Whole(1, 100), default=8, show_default=True, help="Number of random clips.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Random seed of the choice of clips.")
@split_option
@click.option(
    "--num-frames",
    type=Whole(1, 100),
    default=8,
    show_default=True,
    help="Number of frames per clip on a contact sheet.",
)
@click.option(
    "--seconds",
    type=Real(0, 86400, min_open=True),
    default=10.0,
    show_default=True,
    help="Largest length of a film in seconds.",
)
@click.option(
    "--scale",
    type=Whole(1, 64),
    show_default="to about 96 pixels",
    help="Factor by which pixels are enlarged.",
)
@click.option(
    "--vqvae", type=PATH, show_default="colours", help="VQ-VAE run. Codes are shown as the pictures it decodes."
)
@at_option
@device_option
@json_option
def command(
    source: Path,
    out: Path,
    clips: tuple[str, ...],
    num_clips: int,
    seed: int,
    split: str | None,
    num_frames: int,
    seconds: float,
    scale: int | None,
    vqvae: Path | None,
    at: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Show clips of SOURCE: a frame folder, or a code store of clips or samples.

    Example: lvt show frames -o look.png

    Example: lvt show samples.zarr --vqvae runs/vqvae --num-clips 16 -o samples.mp4
    """
    from lvt_pipeline.report.contact_sheet import show

    shown = show(
        source,
        out,
        ids=clips,
        num_clips=num_clips,
        seed=seed,
        split=split,
        num_frames=num_frames,
        seconds=seconds,
        scale=scale,
        vqvae=vqvae,
        generation=at,
        device=device,
    )
    echo_facts({"out": str(out), "clips": shown}, as_json, f"{len(shown)} clips of {source} -> {out}")
