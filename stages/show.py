"""lvt show: look at clips. Reads frames or a code store; writes one picture or film."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, at_option, device_option, echo_facts, json_option, out_option


@click.command("show")
@click.argument("source", type=PATH)
@out_option("Picture to write: .png is a contact sheet, .mp4 and .gif play.", required=False, default="show.png")
@click.option("--clip", "clips", multiple=True, metavar="ID", help="This clip; may be repeated. [some at random]")
@click.option("--num-clips", type=click.IntRange(1, 100), default=8, show_default=True, help="How many at random.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which ones.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="At random from this split. [all]")
@click.option(
    "--num-frames", type=click.IntRange(1, 100), default=8, show_default=True, help="Of each clip on a contact sheet."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Of a film, at most.",
)
@click.option("--scale", type=click.IntRange(min=1), help="Enlarge pixels this often. [to about 96 pixels]")
@click.option("--vqvae", type=PATH, help="Tokenizer run: show codes as its pictures. [colours]")
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
    """Show clips of SOURCE, a folder of frames or a code store of clips or samples.

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
