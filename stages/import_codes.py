"""lvt import-codes: NumPy codes of other tools. Reads a folder of .npy files; writes a code store."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, Console, clock, echo_facts, json_option, out_option, overwrite_option


@click.command("import-codes")
@click.argument("folder", type=PATH)
@out_option("Code store to create, resume or bring up to date.")
@click.option(
    "--codebook-size",
    type=click.IntRange(min=1),
    help="K: codes lie in [0, K). Needed unless lvt export wrote the folder.",
)
@click.option("--tokenizer", type=PATH, help="VQ-VAE run that made the codes, so that lvt decode takes them.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="train",
    show_default=True,
    help="Of clips in no folder train, val or test.",
)
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@overwrite_option
@json_option
def command(
    folder: Path,
    out: Path,
    codebook_size: int | None,
    tokenizer: Path | None,
    split: str,
    fps: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a code store of a folder of .npy files: one per frame in a folder per clip, or one per clip.

    Example: lvt import-codes extracted --codebook-size 512 -o data.zarr
    """
    from lvt_pipeline.config import build
    from lvt_pipeline.jobs.import_codes import ImportSettings, import_codes

    settings = build(ImportSettings, {"codebook_size": codebook_size, "split": split, "fps": fps})
    record = import_codes(folder, out, settings, tokenizer=tokenizer, overwrite=overwrite, progress=Console())
    line = f"{record.counts['clips']} clips, {record.counts['frames']} frames -> {out} in {clock(record.seconds)}"
    echo_facts(record.to_json(), as_json, line)
