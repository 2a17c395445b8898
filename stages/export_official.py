"""lvt export-official: a run as checkpoints of the paper's released code. Reads a run directory; writes a folder."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.settings import required_setting
from stages.command import stage_command
from stages.console import Result
from stages.options import OVERWRITE


@stage_command("export-official")
def command(
    run: Path,
    *,
    out: Path = required_setting("Folder to create: netE, netG and netC of a VQ-VAE, or netG of a prior."),
    overwrite: bool = OVERWRITE,
) -> Result:
    """Write the weights of RUN, a VQ-VAE or a prior, as checkpoints of the paper's released code.

    Models that the released code does not have are refused. `lvt import-official` reads the files back.

    Example: lvt export-official runs/vqvae -o official
    """
    from lvt_pipeline.jobs.export_official import export_official

    record = export_official(run, out, overwrite=overwrite)
    return Result(record.to_json(), f"{record.counts['tensors']} tensors -> {out}")
