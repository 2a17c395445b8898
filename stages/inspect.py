"""lvt inspect: describe an artefact, its provenance and its contents."""

from __future__ import annotations

import click

from lvt_pipeline.storage import Place
from stages.console import echo_facts
from stages.options import at_option, json_option, stage_command
from stages.values import STORE


@stage_command("inspect")
@click.argument("path", type=STORE)
@at_option
@json_option
def command(path: Place, at: int | None, as_json: bool) -> None:
    """Describe a manifest, frames, a run, a code store, decoded videos, eval.json, a report or a work directory.

    Example: lvt inspect work/data.zarr
    """
    from lvt_pipeline.workspace.inspect import describe, inspect_artefact

    facts = inspect_artefact(path, at)
    echo_facts(facts, as_json, describe(facts))
