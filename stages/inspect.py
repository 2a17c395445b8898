"""lvt inspect: describe an artefact, its provenance and its contents."""

from __future__ import annotations

from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Result
from stages.options import AT


@stage_command("inspect")
def command(path: Place, *, at: int | None = AT) -> Result:
    """Describe a manifest, frames, a run, a code store, decoded videos, eval.json, a report or a work directory.

    Example: lvt inspect work/data.zarr
    """
    from lvt_pipeline.workspace.inspect import describe, inspect_artefact

    facts = inspect_artefact(path, at)
    return Result(facts, describe(facts))
