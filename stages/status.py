"""lvt status: what is done, unfinished and stale in a work directory."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.console import PATH, clock, json_option, spoken_counts

MARKS = {"done": "done", "stale": "STALE", "unfinished": "unfinished", "missing": "-", "waiting": "waiting"}


@click.command("status")
@click.argument("work_dir", type=PATH)
@json_option
def command(work_dir: Path, as_json: bool) -> None:
    """One line per stage: what it holds, or why it will be made again by the next `lvt run`.

    Example: lvt status work
    """
    from lvt_pipeline.pipeline import open_pipeline
    from lvt_pipeline.runs import live_position

    facts = []
    for state in open_pipeline(work_dir).states():
        record = state.record
        detail = "; ".join(state.reasons)
        if state.state == "unfinished" and (position := live_position(state.output)):
            detail = position
        if state.state == "done" and record is not None:
            detail = f"{spoken_counts(record.counts)} ({clock(record.seconds)}, {record.finished})"
        facts.append({"stage": state.name, "state": state.state, "output": str(state.output), "detail": detail})
    if as_json:
        click.echo(json.dumps({"work_dir": str(work_dir), "stages": facts}, indent=2))
        return
    for fact in facts:
        click.echo(f"{MARKS[fact['state']]:10}  {fact['stage']:15}  {fact['detail']}")
