"""lvt import-official: checkpoints of the paper's released code. Reads .pth files; writes a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.settings import required_setting, setting
from stages.command import stage_command
from stages.console import Result
from stages.options import OVERWRITE


@click.group("import-official")
def command() -> None:
    """Import a tokenizer or a prior that was trained with the paper's released code.

    Files are read without running any code in them, and every tensor is checked.

    Example: lvt import-official vqvae --encoder netE --decoder netG --codebook netC -o runs/vqvae
    """


@stage_command("vqvae", group=command)
def vqvae(
    *,
    encoder: Path = required_setting("Encoder checkpoint: netE, or its model_final.pth."),
    decoder: Path = required_setting("Decoder checkpoint: netG, or its model_final.pth."),
    codebook: Path = required_setting("Codebook checkpoint: netC, or its model_final.pth."),
    out: Path = required_setting("Run directory to create."),
    overwrite: bool = OVERWRITE,
) -> Result:
    """Import a VQ-VAE from its three files.

    Example: lvt import-official vqvae --encoder netE --decoder netG --codebook netC -o runs/vqvae
    """
    from lvt_pipeline.jobs.import_official import import_vqvae

    record = import_vqvae(encoder, decoder, codebook, out, overwrite=overwrite)
    return Result(record.to_json(), f"{record.counts['parameters']:,} parameters -> {out}")


@stage_command("prior", group=command)
def prior(
    *,
    weights: Path = required_setting("Checkpoint of the transformer: netG, or its model_final.pth."),
    subscale: tuple[int, int, int] | None = setting(
        None, "Subscale factor.", at_least=1, example="T,H,W", unset="from the shapes"
    ),
    num_frames: int | None = setting(
        None, "Clip length in frames.", at_least=1, old_options=("--frames",), unset="from the shapes"
    ),
    grid: tuple[int, int] | None = setting(
        None, "Height and width of the codes.", at_least=1, example="H,W", unset="from the shapes"
    ),
    out: Path = required_setting("Run directory to create."),
    overwrite: bool = OVERWRITE,
) -> Result:
    """Import a Video Transformer.

    Example: lvt import-official prior --weights netG/model_final.pth -o runs/prior
    """
    from lvt_pipeline.jobs.import_official import import_prior

    record = import_prior(weights, out, grid=grid, frames=num_frames, subscale=subscale, overwrite=overwrite)
    return Result(record.to_json(), f"{record.counts['parameters']:,} parameters -> {out}")
