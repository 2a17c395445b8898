"""Several processes, or one that wakes up late, write the same shards: what the root names never changes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes import checks
from lvt_pipeline.codes.checks import read_pending
from lvt_pipeline.codes.layout import read_root
from lvt_pipeline.codes.plan import ShardPlan
from lvt_pipeline.codes.schema import PlannedClip, index_of
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage
from lvt_pipeline.codes.upkeep.repair import repair_store
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import BusyError, StoreError
from lvt_pipeline.storage.files import create_bytes
from tests.toy_codes import FIVE, SCHEMA, codes_of, files_of, planned, record, shards_of, write

ROOT = str(Path(__file__).parent.parent)
MANY = [planned(f"clip{number}", 40) for number in range(48)]  # 30 shards

# Both processes write every shard, each its own codes, and meet before each of them at a file.
ATTEMPT = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lvt_pipeline.codes.writer import CodeStoreWriter
    from tests.test_shard_races import MANY, codes_for
    from tests.toy_codes import SCHEMA
    path, meeting, name, other = Path({path!r}), Path({meeting!r}), {name!r}, {other!r}
    writer = CodeStoreWriter.join(path, SCHEMA, MANY)
    for shard in writer.plan.shards:
        codes = codes_for(shard, MANY, {shift})
        (meeting / f"{{name}}-{{shard.index}}").touch()
        while not (meeting / f"{{other}}-{{shard.index}}").exists():
            time.sleep(0.0002)
        print(writer.write_shard(shard.index, codes))
"""


def codes_for(shard: ShardPlan, clips: Sequence[PlannedClip], shift: int = 0) -> np.ndarray[Any, Any]:
    by_id = {clip.id: clip for clip in clips}
    parts = [codes_of(by_id[part.clip_id])[part.start : part.stop] for part in shard.parts]
    return (np.concatenate(parts) + shift) % SCHEMA.codebook_size


def write_all(writer: CodeStoreWriter, clips: Sequence[PlannedClip], shift: int = 0) -> list[str]:
    return [writer.write_shard(shard.index, codes_for(shard, clips, shift)) for shard in writer.plan.shards]


def test_two_processes_that_write_every_shard_at_the_same_time_make_one_store(tmp_path: Path) -> None:
    path, meeting = tmp_path / "data.zarr", tmp_path / "meeting"
    meeting.mkdir()
    with CodeStoreWriter.open(path, SCHEMA, MANY) as owner:
        attempts = []
        for name, other, shift in (("a", "b", 0), ("b", "a", 1)):
            names = {"root": ROOT, "path": str(path), "meeting": str(meeting), "name": name, "other": other}
            script = textwrap.dedent(ATTEMPT).format(**names, shift=shift)
            attempts.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True))
        receipts = [process.communicate(timeout=100)[0].split() for process in attempts]
        assert [process.returncode for process in attempts] == [0, 0]
        assert owner.pending_shards() == []
        owner.publish(record())
    root = read_root(path)
    assert root is not None
    named = [digest for name, digest in sorted(root.files.items(), key=lambda item: index_of(item[0])) if "c/" in name]
    assert receipts[0] == receipts[1] == named
    assert verify_store(path).problems == ()
    # Each shard is whole: that of one process or of the other.
    expected = [codes_for(shard, MANY) for shard in owner.plan.shards]
    size = SCHEMA.shard_frames
    for number, codes in enumerate(expected):
        found = open_codes(path).read_range(number * size, number * size + len(codes))
        assert np.array_equal(found, codes) or np.array_equal(found, (codes + 1) % SCHEMA.codebook_size)
    assert not list(path.rglob(".*"))


def test_an_attempt_that_wakes_up_after_the_commit_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.zarr"
    with CodeStoreWriter.open(path, SCHEMA, FIVE) as owner:
        late = CodeStoreWriter.join(path, SCHEMA, FIVE)
        written = write_all(owner, FIVE)
        owner.publish(record())
    before = files_of(path)
    with pytest.raises(StoreError, match="does not wait for this plan: it was finished, another one took its place"):
        write_all(late, FIVE, shift=1)
    monkeypatch.setattr(checks, "require_pending", lambda path, plan: None)  # it had looked just before the commit
    assert write_all(late, FIVE, shift=1) == written == write_all(owner, FIVE, shift=1)
    assert files_of(path) == before


@pytest.mark.parametrize("has_store", [False, True])
def test_a_late_attempt_of_an_abandoned_plan_meets_no_shard_of_another_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_store: bool
) -> None:
    path, clips = tmp_path / "data.zarr", [*FIVE, *MANY[:8]]
    if has_store:
        write(path, FIVE)
    with CodeStoreWriter.open(path, SCHEMA, clips, settings={"batch_size": 1}):
        late = CodeStoreWriter.join(path, SCHEMA, clips, {"batch_size": 1})
    with CodeStoreWriter.open(path, SCHEMA, clips, settings={"batch_size": 2}) as owner:
        assert not {*owner.plan.new_shards} & {*late.plan.new_shards}
        with pytest.raises(StoreError, match="does not wait for this plan"):
            write_all(late, clips, shift=1)
        with pytest.raises(StoreError, match="does not wait for this plan"):
            CodeStoreWriter.join(path, SCHEMA, clips, {"batch_size": 1})
        monkeypatch.setattr(checks, "require_pending", lambda path, plan: None)
        write_all(late, clips, shift=1)
        assert owner.pending_shards() == list(owner.plan.shards)
        write_all(owner, clips)
        owner.publish(record())
    write_all(late, clips, shift=2)
    assert verify_store(path).problems == ()
    assert all(np.array_equal(open_codes(path)[clip.id], codes_of(clip)) for clip in clips)
    collect_garbage(path)
    assert all(np.array_equal(open_codes(path)[clip.id], codes_of(clip)) for clip in clips)
    assert len(shards_of(path)) == len({*open_codes(path).shards()})


@pytest.mark.parametrize("how", ["nothing is new", "gc --drop-pending", "only names are new"])
def test_numbers_of_shards_of_an_abandoned_plan_are_not_used_again(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data.zarr"
    write(path, FIVE)
    abandoned = write(path, [*FIVE, *MANY[:4]], stop_after=1)
    match how:
        case "nothing is new":
            write(path, FIVE)
        case "gc --drop-pending":
            collect_garbage(path, drop_pending=True)
        case _:
            write(path, FIVE[1:])
    assert read_pending(path) is None
    assert verify_store(path).problems == ()
    sound = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(sound[:30] + b"x" + sound[31:])
    assert repair_store(path) == ["zarr.json"]
    assert f'"used_shards": {abandoned.new_shards.stop}'.encode() in (path / "zarr.json").read_bytes()
    following = write(path, [*FIVE, *MANY[:2]])
    assert following.new_shards.start == abandoned.new_shards.stop
    assert verify_store(path).problems == ()
    assert all(np.array_equal(open_codes(path)[clip.id], codes_of(clip)) for clip in [*FIVE, *MANY[:2]])
    root = read_root(path)
    assert root is not None
    assert root.used_shards == 0  # the length of the array says enough


def test_a_helper_writes_missing_shards_only_and_never_publishes(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    with pytest.raises(StoreError, match="does not wait for this plan"):
        CodeStoreWriter.join(path, SCHEMA, FIVE)
    with CodeStoreWriter.open(path, SCHEMA, FIVE) as owner:
        helper = CodeStoreWriter.join(path, SCHEMA, FIVE)
        helper.write_shard(0, codes_for(helper.plan.shards[0], FIVE))
        assert [shard.index for shard in owner.pending_shards()] == [1, 2]
        write_all(owner, FIVE)
        with pytest.raises(AssertionError, match="the owner of a store publishes"):
            helper.publish(record())
        owner.publish(record())
    write(tmp_path / "whole", FIVE)
    assert files_of(path) == files_of(tmp_path / "whole")


def test_a_damaged_file_of_an_earlier_attempt_is_named_and_not_published(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    with CodeStoreWriter.open(path, SCHEMA, FIVE) as owner:
        file = path / "codes/c/1/0/0/0"
        create_bytes(file, b"half a shard")
        with pytest.raises(StoreError, match=r"c/1/0/0/0, which an interrupted run left, is damaged; delete it"):
            write_all(owner, FIVE)
    assert file.read_bytes() == b"half a shard"


# Creating a file that does not exist ----------------------------------------------------------------------------------


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no hard links":

        def refuse(*arguments: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def test_a_file_is_created_once_and_whole(tmp_path: Path, links: str) -> None:
    assert create_bytes(tmp_path / "new" / "a", b"first")
    assert not create_bytes(tmp_path / "new" / "a", b"second")
    assert files_of(tmp_path) == {"new/a": b"first"}


def test_without_hard_links_only_one_process_may_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / ".a.claim.partial").touch()
    with pytest.raises(BusyError, match="another process is writing"):
        create_bytes(tmp_path / "a", b"first")
    assert not (tmp_path / "a").exists()
