"""lvt encode-dataset: turn every clip into codes. Reads frames/ and a VQ-VAE run; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import (
    PATH,
    Console,
    clock,
    device_option,
    echo_facts,
    json_option,
    out_option,
    overwrite_option,
)


@click.command("encode-dataset")
@click.option("--frames", type=PATH, required=True, help="Frame shards from `lvt ingest`.")
@click.option("--vqvae", type=PATH, required=True, help="Run directory from `lvt train-vqvae`.")
@out_option("Code store to create, resume or bring up to date, such as data.zarr.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Frames per pass.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the encoder. bfloat16 is faster on GPUs and gives some frames other codes: a tokenizer of its own.",
)
@device_option
@click.option("--dry-run", is_flag=True, help="Print what would be kept, added, changed and removed, and stop.")
@click.option("--reencode", is_flag=True, help="Allow a store of another tokenizer to be encoded again.")
@click.option("--repair", is_flag=True, help="Check every byte of the store first; make again what is damaged.")
@overwrite_option
@json_option
def command(
    frames: Path,
    vqvae: Path,
    out: Path,
    batch_size: int,
    precision: str,
    device: str,
    dry_run: bool,
    reencode: bool,
    repair: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode every clip; on an existing store, only what is new or changed.

    Example: lvt encode-dataset --frames frames --vqvae runs/vqvae -o data.zarr
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.encode import EncodeSettings, encode_dataset

    report = encode_dataset(
        frames,
        vqvae,
        out,
        build(EncodeSettings, {"batch_size": batch_size, "precision": precision}),
        device=device,
        reencode=reencode,
        dry_run=dry_run,
        overwrite=overwrite,
        repair=repair,
        progress=Console(),
    )
    repaired = f", repaired {len(report.repaired)} files ({', '.join(report.repaired[:3])})" if report.repaired else ""
    line = f"{report.change.summary()}{repaired} -> {out} in {clock(report.seconds)}"
    if dry_run and report.table is not None:
        line = "\n".join(report.table.lines())
    echo_facts(report.to_json() if as_json else {}, as_json, line)
