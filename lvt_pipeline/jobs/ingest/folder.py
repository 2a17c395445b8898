"""The folder of frame shards: which shards are finished, and how new ones take the place of old ones.

While an existing output is brought up to date its new shards wait in `next/`; the old ones stay readable until all new
ones are complete. The record is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.receipts import read_receipt
from lvt_pipeline.frames.records import (
    FAILURES_NAME,
    Receipt,
    content_fingerprint,
    failures_of,
    frame_counts,
    receipt_path,
)
from lvt_pipeline.frames.writer import output_sizes, write_failures
from lvt_pipeline.job import Recorder
from lvt_pipeline.manifest.splits import Earlier
from lvt_pipeline.outputs import record_of
from lvt_pipeline.provenance import RECORD_NAME, Provenance, missing_outputs, record_path, write_record
from lvt_pipeline.storage import read_json, sync_directory, write_json
from lvt_pipeline.video.locations import opened_sources

NEXT_NAME = "next"
MOVED_NAME = "moved_into_empty_splits"
PUBLISHING_NAME = ".publishing.json"  # while there is no record: the contents that were moved into empty splits
SHARD_PATTERN = "*-[0-9][0-9][0-9][0-9][0-9][0-9]"


def receipts_in(folder: Path, out: Path) -> Iterator[tuple[str, Receipt]]:
    """Finished shards of a folder by name. One cut short, or without its tar, is not finished."""
    opened = opened_sources(out)
    for path in sorted(folder.glob(f"{SHARD_PATTERN}.json")):
        with suppress(ArtefactError):
            yield path.with_suffix(".tar").name, read_receipt(path, opened=opened)


def publish(
    out: Path,
    receipts: Mapping[str, Receipt],
    recorder: Recorder,
    moved: Mapping[str, str],
) -> Provenance:
    """Put new shards in place of the old ones, remove the shards that have no receipt here, and write the record.

    Args:
        receipts: receipts of all shards, by name of the shard.
        moved: contents that were moved into a split that would have stayed empty, with that split.
    """
    names = list(receipts)
    clips = [clip for receipt in receipts.values() for clip in receipt.clips]
    failures = failures_of(receipts.values())
    content = content_fingerprint(clips)
    waiting = [name for name in names if receipt_path(out / NEXT_NAME / name).exists()]
    obsolete = set(_shards_in(out)) - set(names)
    old = record_of(out)
    if (
        old is not None
        and not waiting
        and not obsolete
        and not missing_outputs(out, old)
        and (old.version, old.settings, old.inputs) == (recorder.job.version, recorder.settings, recorder.inputs)
        and old.fingerprint == content
    ):
        (out / PUBLISHING_NAME).unlink(missing_ok=True)
        return old
    # From here to the new record the folder is unfinished, and has no record.
    write_json(out / PUBLISHING_NAME, {MOVED_NAME: dict(moved)})
    record_path(out).unlink(missing_ok=True)
    for name in waiting:
        _move_shard(out / NEXT_NAME / name, out / name)
    if (out / NEXT_NAME).is_dir():
        shutil.rmtree(out / NEXT_NAME)
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
    record = record_of(out)
    if record is None and not (out / PUBLISHING_NAME).exists():
        return Earlier()
    contents = {
        clip.digest
        for name, receipt in receipts_in(out, out)
        if record is None or name in record.outputs
        for clip in receipt.clips
    }
    moved = _interrupted(out).get(MOVED_NAME) if record is None else record.counts.get(MOVED_NAME)
    return Earlier(frozenset(contents), dict(moved) if isinstance(moved, dict) else {})


def _interrupted(out: Path) -> dict[str, Any]:
    with suppress(ArtefactError):
        content = read_json(out / PUBLISHING_NAME)
        return content if isinstance(content, dict) else {}
    return {}


def _move_shard(new: Path, old: Path) -> None:
    """Replace a shard. At no moment is a receipt next to the tar of another."""
    receipt_path(old).unlink(missing_ok=True)
    sync_directory(old.parent)
    if new.exists():
        os.replace(new, old)
    else:
        old.unlink(missing_ok=True)
    os.replace(receipt_path(new), receipt_path(old))
    sync_directory(old.parent)


def _shards_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(f"{SHARD_PATTERN}.tar")]


def remove_shards(folder: Path, keep: Iterable[str]) -> None:
    """Delete all shards of a folder but these, receipts first; with `keep` empty, the record and failures too."""
    kept = {Path(name).stem for name in keep}
    if not kept:
        for name in (RECORD_NAME, FAILURES_NAME, PUBLISHING_NAME):
            (folder / name).unlink(missing_ok=True)
    for suffix in (".json", ".tar"):
        for path in folder.glob(f"{SHARD_PATTERN}{suffix}"):
            if path.stem not in kept:
                path.unlink()


def refuse_foreign(out: Path) -> None:
    """Never write among files that are not ours.

    Raises:
        ArtefactError: the folder holds something else.
    """
    record = record_of(out)
    if record is not None and record.kind != "frames":
        raise ArtefactError(f"{out} holds {record.kind}, not frames; choose another output folder")
    ours = {RECORD_NAME, FAILURES_NAME, NEXT_NAME}
    for path in out.iterdir():
        is_shard = path.suffix in (".tar", ".json") and path.match(f"{SHARD_PATTERN}{path.suffix}")
        if path.name not in ours and not is_shard and not path.name.startswith("."):
            raise ArtefactError(f"{out} is not empty and {path.name} is not ours; choose another output folder")
