"""lvt why: name what makes an artefact, or a clip of a code store, stale."""

from __future__ import annotations

from pathlib import Path

import click

from lvt_pipeline.storage import Place, require_local
from stages.console import echo_facts
from stages.options import at_option, json_option, stage_command
from stages.values import PATH, STORE, TEXT


@stage_command("why")
@click.argument("path", type=STORE)
@click.argument("clip", type=TEXT, required=False)
@click.option(
    "--frames", type=STORE, show_default="those of the work directory", help="With CLIP: frame folder to compare with."
)
@click.option(
    "--vqvae", type=PATH, show_default="that of the work directory", help="With CLIP: VQ-VAE run to compare with."
)
@at_option
@json_option
def command(
    path: Place, clip: str | None, frames: Place | None, vqvae: Path | None, at: int | None, as_json: bool
) -> None:
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
    echo_facts(facts, as_json, "\n".join(lines))
