"""lvt reproduce: the paper's tables and figures. Reads videos or a work directory; writes runs, tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.console import PATH, Console, device_option, echo_facts, json_option, told

if TYPE_CHECKING:
    from lvt_pipeline.reproduce.running import Outcome, PlannedStep, Reproduction


@click.command("reproduce")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("--work-dir", type=PATH, help="Where everything goes; shared by all tables and figures.")
@click.option("--videos", help="Folder of videos or what else `lvt manifest build` takes. [what is there, or a demo]")
@click.option("--media", help="Folder or URL of the videos that a list names. [beside the list]")
@click.option(
    "--scale",
    help="tiny: minutes on two cores. small: one GPU. paper: as published. [what WORK_DIR was made with, or tiny]",
)
@click.option("--i3d", type=PATH, help="TorchScript network of FVD; without it there is no FVD.")
@click.option("--runs", type=click.IntRange(min=1), help="Runs of sampling. [what the scale says]")
@click.option("--max-clips", type=click.IntRange(min=1), help="Only the first test clips. [what the scale says]")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change one setting; may be repeated.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes. [one per core]")
@device_option
@click.option("--dry-run", is_flag=True, help="Print what is there and what would be made; do nothing.")
@click.option("--list", "lists", is_flag=True, help="Print the tables and figures there are.")
@json_option
def command(
    targets: tuple[str, ...],
    work_dir: Path | None,
    videos: str | None,
    media: str | None,
    scale: str | None,
    i3d: Path | None,
    runs: int | None,
    max_clips: int | None,
    overrides: tuple[str, ...],
    workers: int | None,
    device: str,
    dry_run: bool,
    lists: bool,
    as_json: bool,
) -> None:
    """Tables and figures of the paper, on any videos: run what is missing, print our numbers beside the published ones.

    TARGET is table1 to table8, figure3 to figure8, or all.

    Example: lvt reproduce table2 --work-dir paper --videos my_videos
    """
    from lvt_pipeline.reproduce.experiments import TARGETS, find_targets, load_settings, spoken_targets

    if lists:
        facts = {name: {"title": target.title, "dataset": target.dataset} for name, target in TARGETS.items()}
        echo_facts(facts, as_json, spoken_targets())
        return
    if not targets or work_dir is None:
        raise click.UsageError("give a table or figure and --work-dir; --list names them")
    wanted = find_targets(targets)
    settings = load_settings(
        work_dir,
        scale=scale,
        videos=videos,
        media=media,
        runs=runs,
        max_clips=max_clips,
        i3d=i3d,
        overrides=overrides,
    )
    from lvt_pipeline.reproduce.running import Reproduction

    reproduction = Reproduction(wanted, settings, work_dir, device=device, num_workers=workers)
    if dry_run:
        planned = reproduction.plan()
        echo_facts({"steps": [step.to_json() for step in planned]}, as_json, _plan_page(reproduction, planned))
        return
    console = Console()

    def on_target(outcome: Outcome) -> None:
        if not as_json:
            click.echo(_page(outcome))

    outcomes = reproduction.run(
        progress=console,
        on_end=lambda result: console.say(f"{result.name:32} {told(result)}"),
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
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    todo = [step for step in planned if not step.is_done]
    steps = sum(step.training_steps or 0 for step in todo)
    names = ", ".join(target.name for target in reproduction.targets)
    if len(reproduction.targets) == len(TARGETS):
        names = "everything"
    settings = reproduction.settings
    lines.append(
        f"{names} at scale {settings.scale} on {reproduction.data.name}: {len(todo)} of {len(planned)} stages to do, "
        f"{steps:,} training steps"
    )
    return "\n".join(lines)
