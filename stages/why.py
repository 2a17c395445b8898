"""lvt why: name what makes an artefact, or a clip of a code store, stale."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.console import PATH, json_option


@click.command("why")
@click.argument("path", type=PATH)
@click.argument("clip", required=False)
@json_option
def command(path: Path, clip: str | None, as_json: bool) -> None:
    """Compare an artefact of a work directory with what the current videos and settings would make.

    PATH is a work directory, or an artefact in one. With CLIP, the answer is about that clip of PATH's code store.

    Example: lvt why work/data.zarr
    """
    from lvt_pipeline.pipeline import explain, explain_clip

    facts = explain_clip(path, clip) if clip is not None else explain(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, reasons in facts.items():
        click.echo(f"{name}: " + ("up to date" if not reasons else "; ".join(reasons)))
