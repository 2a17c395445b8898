"""lvt why: name what makes an artefact, or a clip of a code store, stale."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.console import PATH, at_option, json_option


@click.command("why")
@click.argument("path", type=PATH)
@click.argument("clip", required=False)
@click.option("--frames", type=PATH, help="With CLIP: frames it should be made of. [those of the work directory]")
@click.option("--vqvae", type=PATH, help="With CLIP: run of the tokenizer. [that of the work directory]")
@at_option
@json_option
def command(
    path: Path, clip: str | None, frames: Path | None, vqvae: Path | None, at: int | None, as_json: bool
) -> None:
    """Compare an artefact of a work directory with what the current videos and settings would make.

    PATH is a work directory, or an artefact in one. With CLIP, PATH is a code store, and every link of the clip's chain
    is compared: source content, time range, geometry, decoder, tokenizer.

    Example: lvt why work/data.zarr train/clip-003
    """
    from lvt_pipeline.workspace.pipeline import explain, explain_clip

    if clip is None and (frames, vqvae, at) != (None, None, None):
        raise click.UsageError("--frames, --vqvae and --at belong to a CLIP")
    facts = explain(path) if clip is None else explain_clip(path, clip, frames=frames, vqvae=vqvae, generation=at)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, reasons in facts.items():
        click.echo(f"{name}: " + ("up to date" if not reasons else "; ".join(reasons)))
