"""lvt encode-dataset: turn every clip into codes. Reads frames/ and a VQ-VAE run; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.runner import ArrayStep, Runner
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.storage import Place
from stages.console import Console, echo_facts
from stages.options import device_option, json_option, out_option, overwrite_option, settings_options, stage_command
from stages.running import array_options, runner_options
from stages.values import PATH, STORE


@stage_command("encode-dataset")
@click.option("--frames", type=STORE, required=True, help="Frame folder from `lvt ingest`.")
@click.option("--vqvae", type=PATH, required=True, help="VQ-VAE run from `lvt train-vqvae`.")
@out_option("Code store to create, resume or bring up to date, such as data.zarr.", kind=STORE)
@settings_options(EncodeSettings)
@device_option
@click.option("--dry-run", is_flag=True, help="Print which clips would be kept, added, changed and removed, and stop.")
@click.option("--reencode", is_flag=True, help="Allow a store of another tokenizer to be encoded again.")
@click.option("--repair", is_flag=True, help="Check every byte of the store first, and encode damaged parts again.")
@runner_options()
@array_options
@overwrite_option
@json_option
def command(
    frames: Place,
    vqvae: Path,
    out: Place,
    settings: EncodeSettings,
    device: str,
    dry_run: bool,
    reencode: bool,
    repair: bool,
    runner: Runner,
    step: ArrayStep,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode every clip; in an existing store, only clips that are new or changed.

    Example: lvt encode-dataset --frames frames --vqvae runs/vqvae -o data.zarr
    """
    from lvt_pipeline.jobs.encode import encode_dataset

    report = encode_dataset(
        frames,
        vqvae,
        out,
        settings,
        device=device,
        reencode=reencode,
        dry_run=dry_run,
        overwrite=overwrite,
        repair=repair,
        step=step,
        runner=runner,
        progress=Console(),
    )
    files = f"{count_of(len(report.repaired), 'file')} ({', '.join(report.repaired[:3])})"
    repaired = f", repaired {files}" if report.repaired else ""
    line = f"{report.change.summary()}{repaired} -> {out} in {format_seconds(report.seconds)}"
    if dry_run and report.table is not None:
        line = "\n".join(report.table.lines())
    elif step.kind in ("plan", "shards"):
        line = f"{report.change.summary()}; {report.num_missing} of {report.num_shards} shards are missing in {out}"
    echo_facts(report.to_json() if as_json else {}, as_json, line)
