"""lvt import-codes: NumPy codes of other tools. Reads a folder of .npy files; writes a code store."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.jobs.settings import ImportSettings
from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import required_setting, setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import OVERWRITE


@stage_command("import-codes")
def command(
    folder: Path,
    *,
    out: Place = required_setting("Code store to create, resume or bring up to date."),
    settings: ImportSettings,
    vqvae: Path | None = setting(
        None,
        "VQ-VAE run that made the codes. With it, `lvt decode` accepts the store.",
        old_options=("--tokenizer",),
    ),
    overwrite: bool = OVERWRITE,
) -> Result:
    """Make a code store of a FOLDER of .npy files: one per frame in a folder per clip, or one per clip.

    Example: lvt import-codes extracted --codebook-size 512 -o data.zarr
    """
    from lvt_pipeline.jobs.import_codes import import_codes

    record = import_codes(folder, out, settings, tokenizer=vqvae, overwrite=overwrite, progress=Console())
    made = f"{count_of(record.counts['clips'], 'clip')}, {count_of(record.counts['frames'], 'frame')}"
    return Result.of(record, made, out)
