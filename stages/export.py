"""lvt export: codes in the files of other tools. Reads a code store; writes a folder."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, at_option, clock, echo_facts, json_option, out_option, overwrite_option


@click.command("export")
@click.argument("store", type=PATH)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["npy", "npy-frames", "memmap", "webdataset", "parquet"]),
    required=True,
    help="npy: a file per clip; npy-frames: a file per frame, as the paper's code has them; memmap: one file and its "
    "meta.json; webdataset: tars; parquet: for Hugging Face datasets.",
)
@out_option("Folder to create, finish or bring up to date.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only clips of this split. [all]")
@click.option(
    "--clips-per-file", type=click.IntRange(min=1), default=1024, show_default=True, help="In webdataset and parquet."
)
@at_option
@overwrite_option
@json_option
def command(
    store: Path,
    file_format: str,
    out: Path,
    split: str | None,
    clips_per_file: int,
    at: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the codes of STORE as NumPy files, one memory-mapped file, webdataset tars or Parquet.

    Example: lvt export data.zarr --format memmap -o exported
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.export import ExportSettings, export_codes

    settings = build(ExportSettings, {"format": file_format, "split": split, "clips_per_file": clips_per_file})
    record = export_codes(store, out, settings, generation=at, overwrite=overwrite, progress=Console())
    line = f"{record.counts['clips']} clips, {record.counts['frames']} frames -> {out} in {clock(record.seconds)}"
    echo_facts(record.to_json(), as_json, line)
