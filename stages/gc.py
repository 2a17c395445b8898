"""lvt gc: show what a code store, or with --frames a work directory, no longer needs, and delete it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place, require_local
from stages.command import stage_command
from stages.console import Result

if TYPE_CHECKING:
    from lvt_pipeline.codes.upkeep.maintenance import Garbage


@stage_command("gc")
def command(
    store: Place,
    *,
    apply: bool = setting(False, "Delete the listed files. Without this option they are only listed."),
    keep_generations: int = setting(1, "Number of newest generations that stay readable.", at_least=1),
    keep: Sequence[int] = setting(
        (), "Another generation that stays readable; may be repeated.", at_least=1, example="N"
    ),
    drop_pending: bool = setting(False, "Delete the finished part of an interrupted encode too."),
    ignore_readers: bool = setting(
        False,
        "Assume that nobody reads the store. Needed on file systems without locks, where readers cannot be seen.",
    ),
    grace_hours: float = setting(
        24.0,
        "Age up to which files and generations in a bucket are kept: who uses them cannot be seen there.",
        at_least=0,
        option="--grace",
        example="HOURS",
    ),
    only_cache: bool = setting(
        False,
        "Delete only the copies that `lvt train-prior --cache mmap` made next to the store, of all generations.",
        option="--cache",
    ),
    only_frames: bool = setting(
        False,
        "Delete only the frames of the work directory STORE, if all are encoded and every byte of the codes verified.",
        option="--frames",
    ),
) -> Result:
    """List or delete old generations, shards without a live clip, leftovers of killed runs, and unused caches.

    A generation that a process reads is kept, and the process is named. An interrupted training resumes on the
    generation it was started on: keep that one with --keep. A cache can be deleted at any time: a training that has it
    open keeps it, and the space is free when the training ends.

    Example: lvt gc data.zarr --apply
    """
    if only_cache or only_frames:
        if keep or drop_pending or keep_generations > 1 or (only_cache and only_frames):
            raise click.UsageError("--cache and --frames delete nothing else; leave out the other options")
        if only_cache:
            return _collect_cache(store, apply)
        return _collect_frames(require_local(store, "a work directory"), apply)
    from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage

    work = collect_garbage if apply else find_garbage
    garbage = work(
        store,
        keep_generations=keep_generations,
        keep=keep,
        drop_pending=drop_pending,
        ignore_readers=ignore_readers,
        grace_hours=grace_hours,
    )
    return Result({**garbage.to_json(), "applied": apply}, "\n".join(_lines(store, garbage, apply)))


def _lines(store: Place, garbage: Garbage, apply: bool) -> Iterator[str]:
    """A line for everything that is kept on purpose or not needed, then the size of the latter."""
    for number, why in garbage.in_use.items():
        yield f"generation {number} is kept: {why}"
    for number in garbage.dropped:
        yield f"generation {number} {'dropped' if apply else 'would be dropped'}"
    for names, what in (
        (garbage.shards, "nothing alive"),
        (garbage.leftovers, "leftover"),
        (garbage.caches, "cache of a generation that is gone"),
    ):
        yield from (f"{name}: {what}" for name in names)
    for use in garbage.partly_dead:
        yield f"codes/c/{use.index}: {use.dead_frames} of {use.frames} frames dead; lvt compact moves the rest"
    if garbage.pending:
        shards = count_of(len(garbage.pending), "shard")
        yield f"{shards} of an interrupted encode kept; --drop-pending drops them"
    if garbage.is_empty:
        yield f"{store} holds nothing that is not needed"
    else:
        yield _given_back(garbage.bytes, apply)


def _given_back(num_bytes: int, apply: bool) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB {'given back' if apply else 'can be given back with --apply'}"


def _collect_frames(work_dir: Path, apply: bool) -> Result:
    from lvt_pipeline.workspace.pixels import find_spare_frames

    spare = find_spare_frames(work_dir, delete=apply)
    facts = {"frames": None if spare is None else asdict(spare), "applied": apply}
    if spare is None:
        return Result(facts, f"the frames of {work_dir} are deleted already")
    line = f"{spare.path}: {count_of(spare.clips, 'clip')}, all encoded and verified; "
    line += _given_back(spare.bytes, apply)
    if not spare.can_be_restored:
        line += "\nthe videos are gone too, so these frames cannot be made again"
    return Result(facts, line)


def _collect_cache(store: Place, apply: bool) -> Result:
    from lvt_pipeline.codes.loading.cache import cache_files, remove_cache
    from lvt_pipeline.codes.store import open_codes

    sizes = {}
    for file in cache_files(store):
        with suppress(FileNotFoundError):  # a half-written one that is finished by now
            sizes[file] = file.stat().st_size
    if not sizes:
        open_codes(store)  # a mistyped name is not a store without a cache
    files = remove_cache(store) if apply else list(sizes)
    num_bytes = sum(sizes.get(file, 0) for file in files)
    lines = [f"{file}: copy for --cache mmap" for file in files]
    lines.append(_given_back(num_bytes, apply) if files else f"{store} has no cache")
    return Result({"caches": list(map(str, files)), "bytes": num_bytes, "applied": apply}, "\n".join(lines))
