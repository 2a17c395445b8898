"""lvt train-vqvae: train the frame tokenizer. Reads frames/; writes a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import (
    PATH,
    Console,
    clock,
    dry_run_line,
    echo_facts,
    listing_settings,
    training_options,
    training_settings,
)


@click.command("train-vqvae", cls=listing_settings("lvt_pipeline.training.settings", "VQVAERunSettings"))
@click.option("--frames", type=PATH, help="Frame shards from `lvt ingest`. Not needed with --dry-run.")
@training_options("vqvae", "small")
def command(
    frames: Path | None,
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
    """Train the frame VQ-VAE (paper, section 3.1). Run the same command again to resume.

    Example: lvt train-vqvae --frames frames -o runs/vqvae --preset bair-vqvae-nc4
    """
    from lvt_pipeline.training.settings import VQVAERunSettings
    from lvt_pipeline.training.vqvae import dry_run_vqvae, train_vqvae

    settings = training_settings(
        VQVAERunSettings,
        "vqvae",
        "small",
        preset=preset,
        recipe=recipe,
        config=config,
        overrides=overrides,
        max_steps=max_steps,
    )
    if dry_run:
        facts = dry_run_vqvae(settings, frames=frames, device=device)
        echo_facts(facts, as_json, dry_run_line(facts))
        return
    if frames is None or out is None:
        raise click.UsageError("--frames and -o/--out are needed, unless --dry-run is given")
    record = train_vqvae(
        frames,
        out,
        settings,
        device=device,
        max_seconds=max_seconds,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        track=track,
        progress=Console(),
    )
    echo_facts(
        record.to_json(),
        as_json,
        f"tokenizer {record.counts['tokenizer'][:12]} after {record.counts['steps']} steps -> {out} "
        f"in {clock(record.seconds)}",
    )
