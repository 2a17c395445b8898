"""lvt encode-dataset: turn every clip into codes. Reads frames/ and a VQ-VAE run; writes a code store."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import DEVICE, OVERWRITE
from stages.running import ArrayOptions, RunnerOptions


@stage_command("encode-dataset")
def command(
    *,
    frames: Place = required_setting("Frame folder from `lvt ingest`."),
    vqvae: Path = required_setting("VQ-VAE run from `lvt train-vqvae`."),
    out: Place = required_setting("Code store to create, resume or bring up to date, such as data.zarr."),
    settings: EncodeSettings,
    device: str = DEVICE,
    dry_run: bool = setting(False, "Print which clips would be kept, added, changed and removed, and stop."),
    reencode: bool = setting(False, "Allow a store of another tokenizer to be encoded again."),
    repair: bool = setting(False, "Check every byte of the store first, and encode damaged parts again."),
    runner_options: RunnerOptions,
    array: ArrayOptions,
    overwrite: bool = OVERWRITE,
) -> Result:
    """Encode every clip; in an existing store, only clips that are new or changed.

    Example: lvt encode-dataset --frames frames --vqvae runs/vqvae -o data.zarr
    """
    from lvt_pipeline.jobs.encode import encode_dataset

    runner = runner_options.start()
    step = array.step(runner, overwrite=overwrite, repair=repair)
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
    return Result(report.to_json(), line)
