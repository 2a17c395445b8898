"""lvt import-official: checkpoints of the paper's released code. Reads .pth files; writes a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from stages.console import PATH, echo_facts, json_option, out_option, overwrite_option

Callback = Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]


def whole_numbers(count: int) -> Callback:
    """Read an option such as 4,2,2 as that many whole numbers."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or min(numbers) < 1:
            raise click.BadParameter(f"{value!r} is not {count} whole numbers separated by commas", ctx, param)
        return numbers

    return read


@click.group("import-official")
def command() -> None:
    """Import a tokenizer or a prior that the paper's released code trained.

    Files are read without running any code in them, and every tensor is checked.

    Example: lvt import-official vqvae --encoder netE --decoder netG --codebook netC -o runs/vqvae
    """


@command.command("vqvae")
@click.option("--encoder", type=PATH, required=True, help="netE, or its model_final.pth.")
@click.option("--decoder", type=PATH, required=True, help="netG, or its model_final.pth.")
@click.option("--codebook", type=PATH, required=True, help="netC, or its model_final.pth.")
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


@command.command("prior")
@click.option("--weights", type=PATH, required=True, help="The transformer's netG, or its model_final.pth.")
@click.option("--subscale", metavar="T,H,W", callback=whole_numbers(3), help="Subscale factor. [read off the shapes]")
@click.option("--frames", type=click.IntRange(min=1), help="Clip length. [read off the shapes]")
@click.option(
    "--grid", metavar="H,W", callback=whole_numbers(2), help="Height and width of the codes. [read off the shapes]"
)
@out_option("Run directory to create.")
@overwrite_option
@json_option
def prior(
    weights: Path,
    subscale: tuple[int, int, int] | None,
    frames: int | None,
    grid: tuple[int, int] | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Import a Video Transformer.

    Example: lvt import-official prior --weights netG/model_final.pth -o runs/prior
    """
    from lvt_pipeline.jobs.import_official import import_prior

    record = import_prior(weights, out, grid=grid, frames=frames, subscale=subscale, overwrite=overwrite)
    echo_facts(record.to_json(), as_json, f"{record.counts['parameters']:,} parameters -> {out}")
