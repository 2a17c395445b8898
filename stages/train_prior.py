"""lvt train-prior: train the video transformer. Reads a code store and nothing else; writes a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.console import (
    PATH,
    Console,
    at_option,
    clock,
    dry_run_line,
    echo_facts,
    listing_settings,
    training_options,
    training_settings,
)

if TYPE_CHECKING:
    from lvt_pipeline.codes.loading.cache import Cache


@click.command("train-prior", cls=listing_settings("lvt_pipeline.training.settings", "PriorRunSettings"))
@click.option(
    "--codes",
    type=PATH,
    multiple=True,
    help="Code store from `lvt encode-dataset`; several are mixed. Not needed with --dry-run.",
)
@click.option(
    "--mix", metavar="A,B,...", help="Shares of several code stores, such as 0.7,0.3. Same as --set training.mix=[A,B]."
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "ram", "mmap", "stream"]),
    default="auto",
    show_default=True,
    help="Where the codes are kept: in memory, in a mapped file beside the store, or read shard by shard.",
)
@at_option
@training_options("prior", "small")
def command(
    codes: tuple[Path, ...],
    mix: str | None,
    cache: Cache,
    at: int | None,
    out: Path | None,
    preset: str | None,
    recipe: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    max_steps: int | None,
    max_seconds: float | None,
    device: str,
    dry_run: bool,
    overwrite: bool,
    allow_config_change: bool,
    track: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the latent video generator (paper, section 3.2). It opens no video, no pixels and no tokenizer.

    Example: lvt train-prior --codes data.zarr -o runs/prior --preset single-frame
    """
    from lvt_pipeline.training.prior import dry_run_prior, train_prior
    from lvt_pipeline.training.settings import PriorRunSettings

    if mix is not None:
        overrides = (*overrides, f"training.mix=[{mix}]")
    settings = training_settings(
        PriorRunSettings,
        "prior",
        "small",
        preset=preset,
        recipe=recipe,
        config=config,
        overrides=overrides,
        max_steps=max_steps,
    )
    if dry_run:
        facts = dry_run_prior(settings, codes=codes or None, generation=at, device=device)
        echo_facts(facts, as_json, dry_run_line(facts))
        return
    if not codes or out is None:
        raise click.UsageError("--codes and -o/--out are needed, unless --dry-run is given")
    record = train_prior(
        codes,
        out,
        settings,
        generation=at,
        cache=cache,
        device=device,
        max_seconds=max_seconds,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        track=track,
        progress=Console(),
    )
    bits = record.counts.get("val_bits_per_dim")
    quality = f", {bits:.3f} bits/dim on val" if bits is not None else ""
    echo_facts(
        record.to_json(),
        as_json,
        f"prior after {record.counts['steps']} steps{quality} -> {out} in {clock(record.seconds)}",
    )
