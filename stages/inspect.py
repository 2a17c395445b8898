"""lvt inspect: say what an artefact is, what made it and what is in it."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, at_option, echo_facts, json_option


@click.command("inspect")
@click.argument("path", type=PATH)
@at_option
@json_option
def command(path: Path, at: int | None, as_json: bool) -> None:
    """Works on a manifest, frames, a run, a code store, a folder of videos, eval.json, a report or a work directory.

    Example: lvt inspect work/data.zarr
    """
    from lvt_pipeline.workspace.inspect import describe, inspect_artefact

    facts = inspect_artefact(path, at)
    echo_facts(facts, as_json, describe(facts))
