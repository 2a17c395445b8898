"""lvt decode: turn codes into video. Reads any code store and a VQ-VAE run; writes one file per clip."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.jobs.settings import DecodeSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import AT, DEVICE, OVERWRITE
from stages.running import RunnerOptions


@stage_command("decode")
def command(
    *,
    codes: Place = required_setting("Code store of encoded clips or of samples."),
    vqvae: Path = required_setting("VQ-VAE run that made the codes."),
    out: Path = required_setting("Folder of videos to create or resume."),
    settings: DecodeSettings,
    at: int | None = AT,
    device: str = DEVICE,
    runner_options: RunnerOptions,
    overwrite: bool = OVERWRITE,
) -> Result:
    """Decode codes into H.264 mp4 files that browsers play, gifs, png strips of frames, or npy arrays.

    Example: lvt decode --codes samples.zarr --vqvae runs/vqvae -o videos
    """
    from lvt_pipeline.jobs.decode import decode_store

    console = Console()
    record = decode_store(
        codes,
        vqvae,
        out,
        settings,
        generation=at,
        device=device,
        overwrite=overwrite,
        runner=runner_options.start(),
        progress=console,
    )
    return Result.of(record, count_of(record.counts["clips"], "clip"), out)
