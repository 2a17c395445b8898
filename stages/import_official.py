"""lvt import-official: checkpoints of the paper's released code. Reads .pth files; writes a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import echo_facts
from stages.options import Command, Option, json_option, out_option, overwrite_option
from stages.values import PATH, ValueList, Whole


@click.group("import-official")
def command() -> None:
    """Import a tokenizer or a prior that was trained with the paper's released code.

    Files are read without running any code in them, and every tensor is checked.

    Example: lvt import-official vqvae --encoder netE --decoder netG --codebook netC -o runs/vqvae
    """


@command.command("vqvae", cls=Command)
@click.option("--encoder", type=PATH, required=True, help="Encoder checkpoint: netE, or its model_final.pth.")
@click.option("--decoder", type=PATH, required=True, help="Decoder checkpoint: netG, or its model_final.pth.")
@click.option("--codebook", type=PATH, required=True, help="Codebook checkpoint: netC, or its model_final.pth.")
@out_option("Run directory to create.")
@overwrite_option
@json_option
def vqvae(encoder: Path, decoder: Path, codebook: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Import a VQ-VAE from its three files.

    Example: lvt import-official vqvae --encoder netE --decoder netG --codebook netC -o runs/vqvae
    """
    from lvt_pipeline.jobs.import_official import import_vqvae

    record = import_vqvae(encoder, decoder, codebook, out, overwrite=overwrite)
    echo_facts(record.to_json(), as_json, f"{record.counts['parameters']:,} parameters -> {out}")


@command.command("prior", cls=Command)
@click.option(
    "--weights", type=PATH, required=True, help="Checkpoint of the transformer: netG, or its model_final.pth."
)
@click.option(
    "--subscale", type=ValueList(Whole(1), 3), metavar="T,H,W", show_default="from the shapes", help="Subscale factor."
)
@click.option(
    "--num-frames",
    cls=Option,
    old_names=("--frames",),
    type=Whole(1),
    show_default="from the shapes",
    help="Clip length in frames.",
)
@click.option(
    "--grid",
    type=ValueList(Whole(1), 2),
    metavar="H,W",
    show_default="from the shapes",
    help="Height and width of the codes.",
)
@out_option("Run directory to create.")
@overwrite_option
@json_option
def prior(
    weights: Path,
    subscale: tuple[int, int, int] | None,
    num_frames: int | None,
    grid: tuple[int, int] | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Import a Video Transformer.

    Example: lvt import-official prior --weights netG/model_final.pth -o runs/prior
    """
    from lvt_pipeline.jobs.import_official import import_prior

    record = import_prior(weights, out, grid=grid, frames=num_frames, subscale=subscale, overwrite=overwrite)
    echo_facts(record.to_json(), as_json, f"{record.counts['parameters']:,} parameters -> {out}")
