"""lvt export-official: a run as checkpoints of the paper's released code. Reads a run directory; writes a folder."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import echo_facts
from stages.options import json_option, out_option, overwrite_option, stage_command
from stages.values import PATH


@stage_command("export-official")
@click.argument("run", type=PATH)
@out_option("Folder to create: netE, netG and netC of a VQ-VAE, or netG of a prior.")
@overwrite_option
@json_option
def command(run: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write the weights of RUN, a VQ-VAE or a prior, as checkpoints of the paper's released code.

    Models that the released code does not have are refused. `lvt import-official` reads the files back.

    Example: lvt export-official runs/vqvae -o official
    """
    from lvt_pipeline.jobs.export_official import export_official

    record = export_official(run, out, overwrite=overwrite)
    echo_facts(record.to_json(), as_json, f"{record.counts['tensors']} tensors -> {out}")
