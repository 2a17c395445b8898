"""lvt decode: turn codes into video. Reads any code store and a VQ-VAE run; writes one file per clip."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import (
    PATH,
    Console,
    at_option,
    clock,
    device_option,
    echo_facts,
    json_option,
    out_option,
    overwrite_option,
)


@click.command("decode")
@click.option("--codes", type=PATH, required=True, help="Code store: encoded clips or samples.")
@click.option("--vqvae", type=PATH, required=True, help="Run directory of the tokenizer that made the codes.")
@out_option("Folder of videos to create or resume.")
@click.option(
    "--format", "file_format", type=click.Choice(["mp4", "gif", "png", "npy"]), default="mp4", show_default=True
)
@click.option("--scale", type=click.IntRange(min=1), default=4, show_default=True, help="Enlarge pixels this often.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="Playing speed. [the clip's own]")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only clips of this split. [all]")
@click.option("--clip", "clips", multiple=True, metavar="ID", help="Only this clip; may be repeated. [all]")
@at_option
@device_option
@overwrite_option
@json_option
def command(
    codes: Path,
    vqvae: Path,
    out: Path,
    file_format: str,
    scale: int,
    fps: float | None,
    split: str | None,
    clips: tuple[str, ...],
    at: int | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Decode codes into H.264 mp4 that a browser plays, gif, a png strip of frames, or npy.

    Example: lvt decode --codes samples.zarr --vqvae runs/vqvae -o videos
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.decode import DecodeSettings, decode_store

    settings = build(
        DecodeSettings, {"format": file_format, "scale": scale, "fps": fps, "split": split, "clips": list(clips)}
    )
    record = decode_store(
        codes, vqvae, out, settings, generation=at, device=device, overwrite=overwrite, progress=Console()
    )
    echo_facts(record.to_json(), as_json, f"{record.counts['clips']} clips -> {out} in {clock(record.seconds)}")
