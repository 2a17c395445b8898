"""lvt reproduce: the paper's tables and figures. Reads videos or a work directory; writes runs, tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvt_pipeline.progress import aligned
from lvt_pipeline.reproduce.settings import Asked, load_settings
from lvt_pipeline.settings import setting
from stages.command import stage_command
from stages.console import Console, echo_facts
from stages.options import DEVICE, JSON, OVERRIDES, WORKERS
from stages.pipeline import result_line

if TYPE_CHECKING:
    from lvt_pipeline.reproduce.running import Outcome, PlannedStep, Reproduction


@stage_command("reproduce", settings_home=("lvt_pipeline.reproduce.settings", "ReproduceSettings"))
def command(
    targets: tuple[str, ...] = setting((), example="TARGET..."),
    *,
    work_dir: Path | None = setting(None, "Work directory of all outputs, shared by all tables and figures."),
    asked: Asked,
    overrides: tuple[str, ...] = OVERRIDES,
    workers: int | None = WORKERS,
    device: str = DEVICE,
    dry_run: bool = setting(False, "Print the finished stages and those that would run, and stop."),
    list_targets: bool = setting(False, "Print the names of the tables and figures.", option="--list"),
    as_json: bool = JSON,
) -> None:
    """Run what tables and figures of the paper need, on any videos, and print the numbers next to the published ones.

    TARGET is table1 to table8, figure3 to figure8, or all.

    Example: lvt reproduce table2 --work-dir paper --videos my_videos
    """
    from lvt_pipeline.reproduce.experiments import TARGETS, find_targets, spoken_targets

    if list_targets:
        facts = {name: {"title": target.title, "dataset": target.dataset} for name, target in TARGETS.items()}
        echo_facts(facts, as_json, spoken_targets())
        return
    if not targets or work_dir is None:
        raise click.UsageError("give a table or figure and --work-dir; --list prints their names")
    wanted, settings = find_targets(targets), load_settings(work_dir, asked, overrides)
    from lvt_pipeline.reproduce.running import Reproduction

    reproduction = Reproduction(wanted, settings, work_dir, device=device, num_workers=workers)
    if dry_run:
        planned = reproduction.plan()
        echo_facts({"steps": [step.to_json() for step in planned]}, as_json, _plan_page(reproduction, planned))
        return
    _run(reproduction, as_json)


def _run(reproduction: Reproduction, as_json: bool) -> None:
    """Make what is missing; a table is printed as soon as it is there, unless all are printed as JSON at the end."""
    console = Console()

    def on_target(outcome: Outcome) -> None:
        if not as_json:
            click.echo(_page(outcome))

    outcomes = reproduction.run(
        progress=console,
        on_end=lambda result: console.say(f"{result.name:32} {result_line(result)}"),
        on_target=on_target,
    )
    if as_json:
        click.echo(json.dumps({outcome.target.name: _facts(outcome) for outcome in outcomes}, indent=2))


def _facts(outcome: Outcome) -> dict[str, object]:
    table = {"remark": outcome.remark} if outcome.table is None else outcome.table.to_json()
    return {**table, "files": [str(path) for path in outcome.files]}


def _page(outcome: Outcome) -> str:
    files = ", ".join(map(str, outcome.files))
    if outcome.table is None:
        remark = f"; {outcome.remark}" if outcome.remark else ""
        return f"Figure {outcome.target.name[-1]}: {outcome.target.title}{remark} -> {files}"
    return f"\n{outcome.table.to_text()}\n\n-> {files}\n"


def _plan_page(reproduction: Reproduction, planned: list[PlannedStep]) -> str:
    """A line per stage, then how much of it is to do."""
    from lvt_pipeline.reproduce.experiments import TARGETS

    rows = [
        (
            step.state.name,
            str(step.state.output),
            "missing" if step.state.state == "waiting" and step.state.record is None else step.state.state,
            "" if step.training_steps is None else f"{step.training_steps:,} steps",
            "" if step.parameters is None else f"{step.parameters:,} parameters",
        )
        for step in planned
    ]
    lines = aligned(rows)
    todo = [step for step in planned if not step.is_done]
    steps = sum(step.training_steps or 0 for step in todo)
    names = ", ".join(target.name for target in reproduction.targets)
    if len(reproduction.targets) == len(TARGETS):
        names = "everything"
    settings = reproduction.settings
    lines.append(
        f"{names} ({settings.scale}) on {reproduction.data.name}: {len(todo)} of {len(planned)} stages to run, "
        f"{steps:,} training steps"
    )
    return "\n".join(lines)
