"""lvt export-official: a run as checkpoints of the paper's released code. Reads a run directory; writes a folder."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.settings import required_setting
from stages.command import stage_command
from stages.console import echo_facts
from stages.options import JSON, OVERWRITE


@stage_command("export-official")
def command(
    run: Path,
    *,
    out: Path = required_setting("Folder to create: netE, netG and netC of a VQ-VAE, or netG of a prior."),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """Write the weights of RUN, a VQ-VAE or a prior, as checkpoints of the paper's released code.

    Models that the released code does not have are refused. `lvt import-official` reads the files back.

    Example: lvt export-official runs/vqvae -o official
    """
    from lvt_pipeline.jobs.export_official import export_official

    record = export_official(run, out, overwrite=overwrite)
    echo_facts(record.to_json(), as_json, f"{record.counts['tensors']} tensors -> {out}")
