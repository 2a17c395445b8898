"""The folder of frame shards: which shards are finished, and how new ones take the place of old ones.

New shards wait in `next/`, in a folder of their plan, and older ones stay readable until all new ones are complete.
Several processes of a plan may write the same shard: the first one wins. A late process of an abandoned plan finds the
folder of that plan, or none. The record is written last: a folder without one is unfinished.

The folder may be in a bucket, where nobody can be kept out. So the plan is claimed by compare-and-swap and another
command is refused, and several processes of one plan may publish at the same time: each step can be repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from lvt_pipeline.errors import ArtefactError, BusyError, StoreError
from lvt_pipeline.frames.copies import Tar
from lvt_pipeline.frames.receipts import read_in_order, read_receipt, staged_name
from lvt_pipeline.frames.records import (
    FAILURES_NAME,
    NEXT_NAME,
    SHARD_PATTERN,
    Receipt,
    content_fingerprint,
    failures_of,
    frame_counts,
    receipt_name,
)
from lvt_pipeline.frames.writer import output_sizes, write_failures
from lvt_pipeline.job import Recorder
from lvt_pipeline.manifest.splits import Earlier
from lvt_pipeline.provenance import RECORD_NAME, Provenance, finished_record, missing_outputs
from lvt_pipeline.storage import Place, Storage, Stored, json_bytes, open_storage, parse_json
from lvt_pipeline.video.locations import opened_sources

PLAN_NAME = f"{NEXT_NAME}/plan.json"  # the plan whose shards are being made
MOVED_NAME = "moved_into_empty_splits"
PUBLISHING_NAME = ".publishing.json"  # while there is no record: the contents that were moved into empty splits


@dataclass(frozen=True)
class FinishedShard:
    """A frame shard with its receipt: in its place, or in a folder of `next/` (`is_staged`)."""

    name: str
    folder: Place
    receipt: Receipt
    is_staged: bool

    @property
    def tar(self) -> Tar:
        """Its frames, if it has any."""
        digest = self.receipt.digest or ""
        return Tar(self.folder / (staged_name(self.name, digest) if self.is_staged else self.name), digest)


def finished_shards(out: Place) -> Iterator[FinishedShard]:
    """Finished shards, those that wait last. One cut short, or without its tar, is not finished."""
    sizes: dict[Place, int] = {out / entry.name: entry.size for entry in open_storage(out).list()}
    opened = opened_sources(out)

    def read(path: Place) -> FinishedShard | None:
        is_staged = path.parent != out
        with suppress(ArtefactError):
            receipt = read_receipt(path, opened=opened, is_staged=is_staged)
            shard = FinishedShard(f"{path.stem}.tar", path.parent, receipt, is_staged)
            return shard if sizes.get(shard.tar.place) == receipt.size else None
        return None

    receipts = [path for path in sizes if fnmatch(path.name, f"{SHARD_PATTERN}.json")]
    receipts.sort(key=lambda path: (path.parent != out, path))
    yield from filter(None, read_in_order(out, read, receipts))


def begin_plan(out: Place, plan: str, moved: Mapping[str, str], command: str = "") -> None:
    """Let the shards of a plan be made.

    Args:
        moved: the contents that it moves into another split than the manifest.
        command: hash of the manifest and the settings. The plans of one command may take the place of each other.

    Raises:
        StoreError: in a bucket, another command has a plan.
    """
    storage, is_begun = open_storage(out), False
    data = json_bytes({"plan": plan, "command": command, MOVED_NAME: dict(moved)}, out)
    while not is_begun:  # a process of the same command may begin or finish at the same time
        found = storage.read(PLAN_NAME)
        if found is not None and storage.local() is None and _content(found).get("command") != command:
            raise StoreError(
                f"another `lvt ingest` has not finished {out}, and nobody can see whether it still runs, as there are "
                f"no locks in a bucket; run that command again, or, if it will never come back, delete "
                f"{out / PLAN_NAME}: its finished shards are used"
            )
        is_begun = storage.create(PLAN_NAME, data) if found is None else storage.replace(PLAN_NAME, data, found.tag)


def read_plan(out: Place) -> tuple[str, dict[str, str]]:
    """The plan whose shards are being made and the contents that it moves; an empty text when there is none."""
    content = _content(open_storage(out).read(PLAN_NAME))
    moved = content.get(MOVED_NAME)
    return str(content.get("plan", "")), dict(moved) if isinstance(moved, dict) else {}


def publish(out: Place, shards: Sequence[FinishedShard], recorder: Recorder, moved: Mapping[str, str]) -> Provenance:
    """Put new shards in place of the old ones, remove the shards that have no receipt here, and write the record.

    Args:
        shards: all of them, in order.
        moved: contents that were moved into a split that would have stayed empty, with that split.

    Raises:
        StoreError, BusyError: in a bucket, another process with this plan, or another command, has published meanwhile.
    """
    storage = open_storage(out)
    clips = [clip for shard in shards for clip in shard.receipt.clips]
    failures = failures_of(shard.receipt for shard in shards)
    record = recorder.new_record(content_fingerprint(clips))
    names = [shard.name for shard in shards]
    waiting = [shard for shard in shards if shard.is_staged]
    there = storage.members() or set()
    obsolete = {name for name in there if fnmatch(name, f"{SHARD_PATTERN}.tar")} - set(names)
    old = finished_record(out)
    if old is not None and _is_same(old, record) and not (waiting or obsolete or missing_outputs(out, old)):
        storage.delete([PUBLISHING_NAME])
        _remove_waiting(storage)
        return old
    # From here to the new record the folder is unfinished, and has no record.
    storage.replace(PUBLISHING_NAME, json_bytes({MOVED_NAME: dict(moved)}, out))
    storage.delete({RECORD_NAME} & there)  # a record that came meanwhile is of this plan
    for shard in waiting:
        _publish_shard(storage, shard)
    remove_shards(out, keep=names)
    write_failures(out, failures)
    counts = frame_counts(clips, failures) | ({MOVED_NAME: dict(moved)} if moved else {})
    record = _commit(storage, recorder.new_record(record.fingerprint, output_sizes(out, names), counts))
    storage.delete([PUBLISHING_NAME])
    return record


def _commit(storage: Storage, record: Provenance) -> Provenance:
    """Write the record, unless another process with the same plan was quicker: then it is that one."""
    if storage.create(RECORD_NAME, json_bytes(record.to_json(), storage.place)):
        return record
    other = finished_record(storage.place)
    if other is None or not _is_same(other, record):
        raise BusyError(f"another command has changed {storage.place} meanwhile; run this again")
    return other


def _is_same(one: Provenance, other: Provenance) -> bool:
    return (one.recipe, one.fingerprint) == (other.recipe, other.fingerprint)


def splits_in(out: Place) -> Earlier:
    """Which contents the finished frames in a folder hold, and which of them were moved into an empty split.

    Frames whose publication was interrupted count as finished.
    """
    storage, record = open_storage(out), finished_record(out)
    if record is None and storage.read(PUBLISHING_NAME) is None:
        return Earlier()
    contents = {
        clip.digest
        for shard in finished_shards(out)
        if record is None or (shard.name in record.outputs and not shard.is_staged)
        for clip in shard.receipt.clips
    }
    moved = (_content(storage.read(PUBLISHING_NAME)) if record is None else record.counts).get(MOVED_NAME)
    return Earlier(frozenset(contents), dict(moved) if isinstance(moved, dict) else {})


def _content(found: Stored | None) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    with suppress(ArtefactError):
        content = parse_json(found.data if found else b"", PLAN_NAME)
        return content if isinstance(content, dict) else {}
    return {}


def _publish_shard(storage: Storage, shard: FinishedShard) -> None:
    """Put a shard in its place. At no moment is a receipt next to the tar of another: it is emptied first."""
    folder, receipt = f"{NEXT_NAME}/{shard.folder.name}", receipt_name(shard.name)
    new, old = storage.read(f"{folder}/{receipt}"), storage.read(receipt)
    if new is not None and old is not None and old.data != new.data:
        storage.replace(receipt, b"", old.tag)  # or another process with this plan has done so
    if shard.receipt.digest is None:
        storage.delete([shard.name])
        is_there = new is not None
    else:
        is_there = storage.move(f"{folder}/{shard.tar.place.name}", shard.name)
    if not (is_there and storage.move(f"{folder}/{receipt}", receipt)):
        raise StoreError(f"another process has finished this plan for {storage.place}, or discarded it; run this again")


def remove_shards(out: Place, keep: Collection[str]) -> None:
    """Delete all shards but these, receipts first, and all that wait; without `keep` the record and failures too."""
    storage, kept = open_storage(out), {*keep, *map(receipt_name, keep)}
    if not kept:
        storage.delete((RECORD_NAME, FAILURES_NAME, PUBLISHING_NAME))
    others = (storage.members() or set()) - kept
    for suffix in (".json", ".tar"):
        storage.delete([name for name in others if fnmatch(name, f"{SHARD_PATTERN}{suffix}")])
    _remove_waiting(storage)


def _remove_waiting(storage: Storage) -> None:
    folder = storage.local(NEXT_NAME)
    if folder is None:
        storage.delete([entry.name for entry in storage.list(NEXT_NAME)])
    else:
        shutil.rmtree(folder, ignore_errors=True)  # a late process may be writing into it


def holds_only_ours(out: Place, names: Set[str]) -> bool:
    """Whether frames may be written here, where these names are: never among files that are not ours.

    Raises:
        ArtefactError: a file is not ours; it is named.
    """
    ours = {RECORD_NAME, FAILURES_NAME, NEXT_NAME}
    for name in sorted(names - ours):
        is_shard = any(fnmatch(name, f"{SHARD_PATTERN}{suffix}") for suffix in (".tar", ".json"))
        if not is_shard and not name.startswith("."):
            raise ArtefactError(f"{out} is not empty and {name} is not ours; choose another output folder")
    return True
