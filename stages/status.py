"""lvt status: what is done, unfinished and stale in a work directory, or how far a training is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.console import PATH, clock, json_option, spoken_counts

if TYPE_CHECKING:
    from lvt_pipeline.runs.live import LiveRun

MARKS = {"done": "done", "stale": "STALE", "unfinished": "unfinished", "missing": "-", "waiting": "waiting"}


@click.command("status")
@click.argument("path", type=PATH, metavar="WORK_DIR|RUN")
@json_option
def command(path: Path, as_json: bool) -> None:
    """One line per stage of a work directory: what it holds, or why it will be made again by the next `lvt run`.

    Of a run directory: how far its training is, also while it is running.

    Example: lvt status work
    """
    from lvt_pipeline.runs.layout import RUN_NAME

    if (path / RUN_NAME).is_file():
        from lvt_pipeline.runs.live import read_live_run

        run = read_live_run(path)
        facts = {"run": str(path), **asdict(run), "seconds_left": run.seconds_left}
        click.echo(json.dumps(facts, indent=2) if as_json else spoken_run(run))
        return
    stages = _stages(path)
    if as_json:
        click.echo(json.dumps({"work_dir": str(path), "stages": stages}, indent=2))
        return
    for fact in stages:
        click.echo(f"{MARKS[fact['state']]:10}  {fact['stage']:15}  {fact['detail']}")


def _stages(work_dir: Path) -> list[dict[str, str]]:
    from lvt_pipeline.runs.layout import RUN_NAME
    from lvt_pipeline.runs.live import read_live_run
    from lvt_pipeline.workspace.pipeline import open_pipeline

    facts = []
    for state in open_pipeline(work_dir).states():
        record = state.record
        detail = "; ".join(state.reasons)
        if state.state == "unfinished" and (state.output / RUN_NAME).is_file():
            detail = spoken_run(read_live_run(state.output))
        if state.state == "done" and record is not None:
            detail = f"{spoken_counts(record.counts)} ({clock(record.seconds)}, {record.finished})"
        facts.append({"stage": state.name, "state": state.state, "output": str(state.output), "detail": detail})
    return facts


def spoken_run(run: LiveRun) -> str:
    """How far a training is, in one line."""
    parts = [f"{run.status}, step {run.step:,} of {run.max_steps:,} ({run.saved_step:,} saved)"]
    train, val = run.train, run.val
    parts += [f"{name.replace('_', ' ')} {train[name]:.4g}" for name in ("loss", "bits_per_dim") if name in train]
    rate = next((name for name in ("windows_per_second", "frames_per_second") if name in train), None)
    if rate is not None:
        parts.append(f"{train[rate]:,.4g} {rate.partition('_')[0]}/s")
    if "data_wait_share" in train:
        parts.append(f"data wait {train['data_wait_share']:.1%}, memory {train['memory_bytes'] / 2**20:,.0f} MiB")
    if run.seconds_left is not None:
        parts.append(f"{clock(run.seconds_left)} left")
    score = next((name for name in ("bits_per_dim", "mse") if name in val), None)
    if score is not None:
        parts.append(f"val {score.replace('_', ' ')} {val[score]:.4g} at step {val['step']:,}")
    return ", ".join(parts)
