"""lvt why: name what makes an artefact, or a clip of a code store, stale."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place, require_local
from stages.command import stage_command
from stages.console import Result
from stages.options import AT


@stage_command("why")
def command(
    path: Place,
    clip: str | None = None,
    *,
    frames: Place | None = setting(
        None, "With CLIP: frame folder to compare with.", unset="those of the work directory"
    ),
    vqvae: Path | None = setting(None, "With CLIP: VQ-VAE run to compare with.", unset="that of the work directory"),
    at: int | None = AT,
) -> Result:
    """Compare an artefact of a work directory with what the current videos and settings would make.

    PATH is a work directory, or an artefact in one. With CLIP, PATH is a code store, and every link of the clip's chain
    is compared: source content, time range, geometry, decoder, tokenizer.

    Example: lvt why work/data.zarr train/clip-003
    """
    from lvt_pipeline.workspace.states import explain
    from lvt_pipeline.workspace.why import explain_clip

    if clip is None and (frames, vqvae, at) != (None, None, None):
        raise click.UsageError("--frames, --vqvae and --at belong to a CLIP")
    if clip is None:
        facts = explain(require_local(path, "a work directory"))
    else:
        facts = {clip: explain_clip(path, clip, frames=frames, vqvae=vqvae, generation=at)}
    lines = [f"{name}: {'; '.join(reasons) or 'up to date'}" for name, reasons in facts.items()]
    return Result(facts, "\n".join(lines))
