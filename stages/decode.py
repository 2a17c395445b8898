"""lvt decode: turn codes into video. Reads any code store and a VQ-VAE run; writes one file per clip."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.runner import Runner
from lvt_pipeline.jobs.settings import DecodeSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place
from stages.console import Console, echo_record
from stages.options import (
    at_option,
    device_option,
    json_option,
    out_option,
    overwrite_option,
    settings_options,
    stage_command,
)
from stages.running import runner_options
from stages.values import PATH, STORE


@stage_command("decode")
@click.option("--codes", type=STORE, required=True, help="Code store of encoded clips or of samples.")
@click.option("--vqvae", type=PATH, required=True, help="VQ-VAE run that made the codes.")
@out_option("Folder of videos to create or resume.")
@settings_options(DecodeSettings)
@at_option
@device_option
@runner_options()
@overwrite_option
@json_option
def command(
    codes: Place,
    vqvae: Path,
    out: Path,
    settings: DecodeSettings,
    at: int | None,
    device: str,
    runner: Runner,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Decode codes into H.264 mp4 files that browsers play, gifs, png strips of frames, or npy arrays.

    Example: lvt decode --codes samples.zarr --vqvae runs/vqvae -o videos
    """
    from lvt_pipeline.jobs.decode import decode_store

    console = Console()
    record = decode_store(
        codes, vqvae, out, settings, generation=at, device=device, overwrite=overwrite, runner=runner, progress=console
    )
    echo_record(record, as_json, count_of(record.counts["clips"], "clip"), out)
