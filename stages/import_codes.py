"""lvt import-codes: NumPy codes of other tools. Reads a folder of .npy files; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.settings import ImportSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place
from stages.console import Console, echo_record
from stages.options import Option, json_option, out_option, overwrite_option, settings_options, stage_command
from stages.values import PATH, STORE


@stage_command("import-codes")
@click.argument("folder", type=PATH)
@out_option("Code store to create, resume or bring up to date.", kind=STORE)
@settings_options(ImportSettings)
@click.option(
    "--vqvae",
    cls=Option,
    old_names=("--tokenizer",),
    type=PATH,
    help="VQ-VAE run that made the codes. With it, `lvt decode` accepts the store.",
)
@overwrite_option
@json_option
def command(
    folder: Path, out: Place, settings: ImportSettings, vqvae: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Make a code store of a FOLDER of .npy files: one per frame in a folder per clip, or one per clip.

    Example: lvt import-codes extracted --codebook-size 512 -o data.zarr
    """
    from lvt_pipeline.jobs.import_codes import import_codes

    record = import_codes(folder, out, settings, tokenizer=vqvae, overwrite=overwrite, progress=Console())
    made = f"{count_of(record.counts['clips'], 'clip')}, {count_of(record.counts['frames'], 'frame')}"
    echo_record(record, as_json, made, out)
