"""lvt export: codes in the files of other tools. Reads a code store; writes a folder."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.jobs.settings import ExportSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place
from stages.console import Console, echo_record
from stages.options import at_option, json_option, out_option, overwrite_option, settings_options, stage_command
from stages.values import STORE


@stage_command("export")
@click.argument("store", type=STORE)
@out_option("Folder to create, finish or bring up to date.")
@settings_options(ExportSettings, required=["format"])
@at_option
@overwrite_option
@json_option
def command(store: Place, out: Path, settings: ExportSettings, at: int | None, overwrite: bool, as_json: bool) -> None:
    """Write the codes of STORE as NumPy files, one memory-mapped file, webdataset tars or Parquet.

    Example: lvt export data.zarr --format memmap -o exported
    """
    from lvt_pipeline.jobs.export import export_codes

    record = export_codes(store, out, settings, generation=at, overwrite=overwrite, progress=Console())
    made = f"{count_of(record.counts['clips'], 'clip')}, {count_of(record.counts['frames'], 'frame')}"
    echo_record(record, as_json, made, out)
