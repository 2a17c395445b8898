"""lvt gc: show what a code store no longer needs, and delete it."""

from __future__ import annotations

from pathlib import Path

import click

from stages.console import PATH, echo_facts, json_option


@click.command("gc")
@click.argument("store", type=PATH)
@click.option("--apply", is_flag=True, help="Delete it. Without this, it is only shown.")
@click.option(
    "--keep-generations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the newest generations stay readable.",
)
@click.option("--keep", type=int, multiple=True, metavar="N", help="Generation N stays readable too; may be repeated.")
@click.option("--drop-pending", is_flag=True, help="Also what an interrupted encode could go on with.")
@json_option
def command(
    store: Path, apply: bool, keep_generations: int, keep: tuple[int, ...], drop_pending: bool, as_json: bool
) -> None:
    """Old generations, shards without a live clip, leftovers of killed runs, and caches of what is gone.

    A training that was interrupted goes on with the generation it was started on: keep that one with --keep.

    Example: lvt gc data.zarr --apply
    """
    from lvt_pipeline.data.code_maintenance import collect_garbage, find_garbage

    work = collect_garbage if apply else find_garbage
    garbage = work(store, keep_generations=keep_generations, keep=keep, drop_pending=drop_pending)
    lines = [f"generation {number} {'dropped' if apply else 'would be dropped'}" for number in garbage.dropped]
    lines += [f"{name}: nothing alive" for name in garbage.shards]
    lines += [f"{name}: leftover" for name in garbage.leftovers]
    lines += [f"{name}: cache of a generation that is gone" for name in garbage.caches]
    lines += [
        f"codes/c/{use.index}: {use.dead_frames} of {use.frames} frames dead; lvt compact moves the rest"
        for use in garbage.partly_dead
    ]
    if garbage.pending:
        lines.append(f"{len(garbage.pending)} shards of an interrupted encode are kept; --drop-pending drops them")
    size = f"{garbage.bytes / 2**20:,.1f} MiB"
    if garbage.is_empty:
        lines.append(f"{store} holds nothing that is not needed")
    elif apply:
        lines.append(f"{size} given back")
    else:
        lines.append(f"{size} can be given back with --apply")
    echo_facts({**garbage.to_json(), "applied": apply}, as_json, "\n".join(lines))
