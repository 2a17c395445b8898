"""The folder of frame shards: which shards are finished, and how new ones take the place of old ones.

New shards wait in `next/`, in a folder of their plan, and older ones stay readable until all new ones are complete.
Several processes of a plan may write the same shard: the first one wins. A late process of an abandoned plan finds the
folder of that plan, or none. The record is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.receipts import read_receipt, staged_tar
from lvt_pipeline.frames.records import (
    FAILURES_NAME,
    NEXT_NAME,
    SHARD_PATTERN,
    Receipt,
    content_fingerprint,
    failures_of,
    frame_counts,
    receipt_path,
)
from lvt_pipeline.frames.writer import output_sizes, write_failures
from lvt_pipeline.job import Recorder
from lvt_pipeline.manifest.splits import Earlier
from lvt_pipeline.provenance import RECORD_NAME, Provenance, finished_record, missing_outputs, record_path, write_record
from lvt_pipeline.storage import read_json, sync_directory, write_json
from lvt_pipeline.video.locations import opened_sources

PLAN_NAME = "plan.json"  # in `next/`: the plan whose shards are being made
MOVED_NAME = "moved_into_empty_splits"
PUBLISHING_NAME = ".publishing.json"  # while there is no record: the contents that were moved into empty splits


@dataclass(frozen=True)
class FinishedShard:
    """A frame shard with its receipt: in its place, or in a folder of `next/` (`is_staged`)."""

    name: str
    folder: Path
    receipt: Receipt
    is_staged: bool

    @property
    def tar(self) -> Path:
        """Its frames, if it has any."""
        digest = self.receipt.digest or ""
        return staged_tar(self.folder, self.name, digest) if self.is_staged else self.folder / self.name


def finished_shards(out: Path) -> Iterator[FinishedShard]:
    """Finished shards, those that wait last. One cut short, or without its tar, is not finished."""
    opened = opened_sources(out)
    for folder in (out, *sorted((out / NEXT_NAME).glob("*/"))):
        for path in sorted(folder.glob(f"{SHARD_PATTERN}.json")):
            with suppress(ArtefactError):
                receipt = read_receipt(path, opened=opened, is_staged=folder != out)
                yield FinishedShard(path.with_suffix(".tar").name, folder, receipt, folder != out)


def begin_plan(out: Path, plan: str, moved: Mapping[str, str]) -> None:
    """Let the shards of a plan be made; `moved` are the contents that it moves into another split than the manifest."""
    (out / NEXT_NAME / plan).mkdir(parents=True, exist_ok=True)
    if read_plan(out) != (plan, moved):
        write_json(out / NEXT_NAME / PLAN_NAME, {"plan": plan, MOVED_NAME: dict(moved)})


def read_plan(out: Path) -> tuple[str, dict[str, str]]:
    """The plan whose shards are being made and the contents that it moves; an empty text when there is none."""
    content = _read_object(out / NEXT_NAME / PLAN_NAME)
    moved = content.get(MOVED_NAME)
    return str(content.get("plan", "")), dict(moved) if isinstance(moved, dict) else {}


def publish(out: Path, shards: Sequence[FinishedShard], recorder: Recorder, moved: Mapping[str, str]) -> Provenance:
    """Put new shards in place of the old ones, remove the shards that have no receipt here, and write the record.

    Args:
        shards: all of them, in order.
        moved: contents that were moved into a split that would have stayed empty, with that split.
    """
    clips = [clip for shard in shards for clip in shard.receipt.clips]
    failures = failures_of(shard.receipt for shard in shards)
    content = content_fingerprint(clips)
    names = [shard.name for shard in shards]
    waiting = [shard for shard in shards if shard.is_staged]
    obsolete = {path.name for path in out.glob(f"{SHARD_PATTERN}.tar")} - set(names)
    old = finished_record(out)
    if (
        old is not None
        and not waiting
        and not obsolete
        and not missing_outputs(out, old)
        and (old.version, old.settings, old.inputs) == (recorder.job.version, recorder.settings, recorder.inputs)
        and old.fingerprint == content
    ):
        (out / PUBLISHING_NAME).unlink(missing_ok=True)
        _remove_waiting(out)
        return old
    # From here to the new record the folder is unfinished, and has no record.
    write_json(out / PUBLISHING_NAME, {MOVED_NAME: dict(moved)})
    record_path(out).unlink(missing_ok=True)
    for shard in waiting:
        _move_shard(shard, out)
    remove_shards(out, keep=names)
    write_failures(out, failures)
    counts = frame_counts(clips, failures) | ({MOVED_NAME: dict(moved)} if moved else {})
    record = recorder.new_record(content, output_sizes(out, names), counts)
    write_record(out, record)
    (out / PUBLISHING_NAME).unlink()
    return record


def splits_in(out: Path) -> Earlier:
    """Which contents the finished frames in a folder hold, and which of them were moved into an empty split.

    Frames whose publication was interrupted count as finished.
    """
    record = finished_record(out)
    if record is None and not (out / PUBLISHING_NAME).exists():
        return Earlier()
    contents = {
        clip.digest
        for shard in finished_shards(out)
        if record is None or (shard.name in record.outputs and not shard.is_staged)
        for clip in shard.receipt.clips
    }
    moved = _read_object(out / PUBLISHING_NAME).get(MOVED_NAME) if record is None else record.counts.get(MOVED_NAME)
    return Earlier(frozenset(contents), dict(moved) if isinstance(moved, dict) else {})


def _read_object(path: Path) -> dict[str, Any]:
    with suppress(ArtefactError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def _move_shard(shard: FinishedShard, out: Path) -> None:
    """Publish a shard. At no moment is a receipt next to the tar of another."""
    new, old = shard.folder / receipt_path(Path(shard.name)), out / shard.name
    if receipt_path(old).exists():
        receipt_path(old).unlink()
        sync_directory(out)
    if shard.receipt.digest is None:
        old.unlink(missing_ok=True)
    else:
        os.replace(shard.tar, old)
    os.replace(new, receipt_path(old))
    sync_directory(out)


def remove_shards(out: Path, keep: Collection[str]) -> None:
    """Delete all shards but these, receipts first, and all that wait; without `keep` the record and failures too."""
    kept = {Path(name).stem for name in keep}
    if not kept:
        for name in (RECORD_NAME, FAILURES_NAME, PUBLISHING_NAME):
            (out / name).unlink(missing_ok=True)
    for suffix in (".json", ".tar"):
        for path in out.glob(f"{SHARD_PATTERN}{suffix}"):
            if path.stem not in kept:
                path.unlink()
    _remove_waiting(out)


def _remove_waiting(out: Path) -> None:
    shutil.rmtree(out / NEXT_NAME, ignore_errors=True)  # a late process may be writing into it


def holds_only_ours(out: Path) -> bool:
    """Whether frames may be written here: never among files that are not ours."""
    ours = {RECORD_NAME, FAILURES_NAME, NEXT_NAME}
    for path in out.iterdir():
        is_shard = path.suffix in (".tar", ".json") and path.match(f"{SHARD_PATTERN}{path.suffix}")
        if path.name not in ours and not is_shard and not path.name.startswith("."):
            raise ArtefactError(f"{out} is not empty and {path.name} is not ours; choose another output folder")
    return True
