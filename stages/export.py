"""lvt export: codes in the files of other tools. Reads a code store; writes a folder."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.jobs.settings import ExportSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting
from lvt_pipeline.storage import Place
from stages.command import settings_option, stage_command
from stages.console import Console, Result
from stages.options import AT, OVERWRITE


@stage_command("export")
def command(
    store: Place,
    *,
    out: Path = required_setting("Folder to create, finish or bring up to date."),
    settings: ExportSettings = settings_option(required=["format"]),
    at: int | None = AT,
    overwrite: bool = OVERWRITE,
) -> Result:
    """Write the codes of STORE as NumPy files, one memory-mapped file, webdataset tars or Parquet.

    Example: lvt export data.zarr --format memmap -o exported
    """
    from lvt_pipeline.jobs.export import export_codes

    record = export_codes(store, out, settings, generation=at, overwrite=overwrite, progress=Console())
    made = f"{count_of(record.counts['clips'], 'clip')}, {count_of(record.counts['frames'], 'frame')}"
    return Result.of(record, made, out)
