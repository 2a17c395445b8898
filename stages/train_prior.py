"""lvt train-prior: train the video transformer. Reads a code store and nothing else; writes a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, clock, dry_run_line, echo_facts, training_options, training_settings


@click.command("train-prior")
@click.option("--codes", type=PATH, help="Code store from `lvt encode-dataset`. Not needed with --dry-run.")
@training_options("prior", "small")
def command(
    codes: Path | None,
    out: Path | None,
    preset: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    max_steps: int | None,
    max_seconds: float | None,
    device: str,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train the latent video generator (paper, section 3.2). It opens no video, no pixels and no tokenizer.

    Example: lvt train-prior --codes data.zarr -o runs/prior --preset single-frame
    """
    from lvt_pipeline.engine.prior_training import PriorRunSettings, dry_run_prior, train_prior

    settings = training_settings(
        PriorRunSettings, "prior", "small", preset=preset, config=config, overrides=overrides, max_steps=max_steps
    )
    if dry_run:
        facts = dry_run_prior(settings, codes=codes, device=device)
        echo_facts(facts, as_json, dry_run_line(facts))
        return
    if codes is None or out is None:
        raise click.UsageError("--codes and -o/--out are needed, unless --dry-run is given")
    record = train_prior(
        codes, out, settings, device=device, max_seconds=max_seconds, overwrite=overwrite, progress=Console()
    )
    bits = record.counts.get("val_bits_per_dim")
    quality = f", {bits:.3f} bits/dim on val" if bits is not None else ""
    echo_facts(
        record.to_json(),
        as_json,
        f"prior after {record.counts['steps']} steps{quality} -> {out} in {clock(record.seconds)}",
    )
