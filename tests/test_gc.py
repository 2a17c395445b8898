"""Giving space back: nobody needs what is deleted, what stays reads as before, and a kill at any moment is safe."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lvt_pipeline.codes.loading.windows import CodeWindows, cache_file
from lvt_pipeline.codes.schema import PlannedClip, shard_name
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep import compaction
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import BusyError, StoreError
from lvt_pipeline.storage import exclusive_lock
from tests.toy_codes import SCHEMA, codes_of, files_of, planned, shards_of, write

Lvt = Callable[..., tuple[int, str, str]]
SMALL = [planned(f"clip{number:02}", 16) for number in range(16)]  # four to a shard


def holds(path: Path, clips: Sequence[PlannedClip], generation: int | None = None) -> bool:
    codes = open_codes(path, generation)
    return [clip.id for clip in codes.clips] == [clip.id for clip in clips] and all(
        np.array_equal(codes[clip.id], codes_of(clip)) for clip in clips
    )


def bytes_of(path: Path) -> int:
    return sum(map(len, files_of(path).values()))


def identities(path: Path) -> dict[str, tuple[int, int]]:
    files = [path / name for name in shards_of(path)]
    return {str(file.relative_to(path)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Generation 1 has 16 clips in 4 shards; in generation 2 all of shard 0 and half of shard 2 are dead."""
    write(tmp_path / "data.zarr", SMALL)
    write(tmp_path / "data.zarr", LEFT)
    return tmp_path / "data.zarr"


LEFT = [*SMALL[4:8], *SMALL[10:]]


# Collecting -----------------------------------------------------------------------------------------------------------


def test_gc_shows_what_it_would_delete_and_deletes_nothing(store: Path) -> None:
    before = files_of(store)
    garbage = find_garbage(store)
    assert (garbage.kept, garbage.dropped) == ((2,), (1,))
    assert garbage.shards == (shard_name(0),)
    assert [(use.index, use.dead_frames, use.frames) for use in garbage.partly_dead] == [(2, 32, 64)]
    assert garbage.bytes == len(before[shard_name(0)]) + len(before["generations/000001/zarr.json"])
    assert files_of(store) == before


def test_gc_deletes_dead_shards_and_old_tables_and_the_rest_stays_readable(store: Path) -> None:
    before = bytes_of(store)
    garbage = collect_garbage(store)
    assert set(shards_of(store)) == {shard_name(index) for index in (1, 2, 3)}
    assert before - bytes_of(store) >= garbage.bytes - 600  # the root now names fewer files, by a few bytes
    assert holds(store, LEFT)
    assert verify_store(store).problems == verify_store(store).notes == ()
    with pytest.raises(StoreError, match="no generation 1; lvt gc has removed it; it has 2"):
        open_codes(store, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(store, mode="r")
        list(group.members(max_depth=None))
    table = group["generations/000002"].attrs["clips"]
    first = table["offset"][0]
    assert np.array_equal(group["codes"][first : first + 16], codes_of(LEFT[0]))
    assert collect_garbage(store).is_empty
    write(store, [*LEFT, planned("new", 40)])  # grows as if nothing had been
    assert holds(store, [*LEFT, planned("new", 40)])
    assert open_codes(store).generations == [2, 3]
    assert verify_store(store).problems == ()


def test_generations_that_are_kept_stay_readable(store: Path) -> None:
    write(store, LEFT[2:])
    assert find_garbage(store, keep_generations=3).is_empty
    garbage = collect_garbage(store, keep=[1])
    assert (garbage.dropped, garbage.shards) == ((2,), ())
    assert holds(store, SMALL, 1)
    assert holds(store, LEFT[2:])
    assert open_codes(store).generations == [1, 3]
    with pytest.raises(StoreError, match="no generation 2 to keep; it has 1 and 3"):
        collect_garbage(store, keep=[2])


def test_gc_removes_orphans_leftovers_and_caches_of_what_is_gone(store: Path) -> None:
    for generation in (1, 2):
        CodeWindows(store, frames=4, cache="mmap", generation=generation)
    old, new = (cache_file(open_codes(store, generation), "train") for generation in (1, 2))
    orphan = store / shard_name(17)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"abandoned")
    (store / "codes/c/1/0/0/.0.77.partial").write_bytes(b"half")
    (store / "codes/.staged").mkdir()
    (store / "codes/.staged/zarr.json").write_bytes(b"half")
    half = old.with_name(f".{old.name}.77.partial")
    half.write_bytes(b"half")
    assert set(find_garbage(store).caches) == {str(old), str(half)}
    collect_garbage(store)
    assert (old.exists(), half.exists(), new.exists()) == (False, False, True)
    assert not orphan.exists()
    assert not (store / "codes/c/17").exists()
    assert not list(store.rglob(".*"))
    assert holds(store, LEFT)


def test_gc_cache_removes_the_mapped_files_and_nothing_of_the_store(store: Path, lvt: Lvt) -> None:
    windows = [CodeWindows(store, frames=4, cache="mmap", generation=generation) for generation in (1, 2)]
    files = sorted(cache_file(open_codes(store, generation), "train") for generation in (1, 2))
    folder, half, before = files[0].parent, files[0].with_name(".train-0.npy.77.partial"), files_of(store)
    half.write_bytes(b"half")
    size = sum(file.stat().st_size for file in [*files, half])
    code, out, _ = lvt("gc", store, "--cache")
    assert code == 0
    assert out.splitlines() == [
        *(f"{file}: copy for --cache mmap" for file in [half, *files]),
        f"{size / 2**20:,.1f} MiB can be given back with --apply",
    ]
    assert all(file.exists() for file in files)
    with exclusive_lock(folder):  # a training makes a file just now
        code, _, errors = lvt("gc", store, "--cache", "--apply")
        assert (code, errors.count("\n")) == (1, 1)
        assert f"another process is writing {folder}" in errors
        with pytest.raises(BusyError):
            collect_garbage(store)
    assert all(file.exists() for file in files)
    code, out, _ = lvt("gc", store, "--cache", "--apply", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"caches": [str(half), *map(str, files)], "bytes": size, "applied": True},
    )
    assert not folder.exists()
    assert files_of(store) == before
    for number, one in enumerate(windows, 1):  # what has a file open keeps it
        again = CodeWindows(store, frames=4, cache="ram", generation=number)
        assert np.array_equal(one.batch(range(50)), again.batch(range(50)))
    assert lvt("gc", store, "--cache")[1] == f"{store} has no cache\n"
    code, _, errors = lvt("gc", store, "--cache", "--keep", 1)
    assert code == 2
    assert "--cache and --frames delete nothing else" in errors
    code, _, errors = lvt("gc", store.with_name("typo.zarr"), "--cache", "--apply")
    assert (code, errors.count("\n")) == (1, 1)
    assert not store.with_name("typo.zarr").exists()


def test_gc_cache_works_when_the_store_is_gone(store: Path, lvt: Lvt) -> None:
    file = cache_file(CodeWindows(store, frames=4, cache="mmap").store, "train")
    shutil.rmtree(store)
    assert lvt("gc", store, "--cache", "--apply")[0] == 0
    assert not file.parent.exists()


def test_an_interrupted_encode_can_go_on_after_gc_unless_it_is_dropped(store: Path, tmp_path: Path) -> None:
    more = [*LEFT, planned("new", 300)]
    write(store, more, stop_after=2)
    garbage = collect_garbage(store)
    assert len(garbage.pending) == 2
    with CodeStoreWriter.open(store, SCHEMA, more) as writer:
        assert len(writer.pending_shards()) == 3
    assert collect_garbage(store, drop_pending=True).shards == garbage.pending
    assert not (store / "pending").exists()
    assert verify_store(store).problems == verify_store(store).notes == ()
    write(store, more)
    assert holds(store, more)


def test_a_generation_that_is_open_stays_until_its_reader_closes_it(store: Path, lvt: Lvt) -> None:
    reader = open_codes(store, 1)
    garbage = collect_garbage(store)
    assert (garbage.dropped, garbage.in_use, garbage.kept) == ((), {1: "it is being read by this process"}, (1, 2))
    assert lvt("gc", store, "--apply")[1].splitlines()[0] == "generation 1 is kept: it is being read by this process"
    assert np.array_equal(reader["clip00"], codes_of(SMALL[0]))
    assert holds(store, SMALL, 1)
    del reader
    assert collect_garbage(store).dropped == (1,)


def test_a_reader_that_lost_its_generation_says_so_and_never_reads_zeros(store: Path) -> None:
    reader, late = open_codes(store, 1, holds=False), open_codes(store, 1, holds=False)
    late["clip00"]  # its shard has been looked at already
    windows = CodeWindows(open_codes(store, 1, holds=False), frames=4, cache="stream")
    collect_garbage(store)
    message = rf"generation 1 of {store} was removed by lvt gc while it was being read; run the same command again"
    for read in (lambda: reader["clip00"], lambda: late["clip00"], lambda: windows[0]):
        with pytest.raises(StoreError, match=message):
            read()


class Killed(BaseException):
    """The end of the process, at a chosen step."""


def test_gc_may_be_killed_before_every_single_deletion(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "whole")
    collect_garbage(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    for step in range(40):
        path = tmp_path / f"killed-{step}"
        shutil.copytree(store, path)
        try:
            with killing_at(step):
                collect_garbage(path)
        except Killed:
            assert holds(path, LEFT)
            assert verify_store(path).problems == ()
            collect_garbage(path)
            assert files_of(path) == whole
        else:
            assert files_of(path) == whole
            assert step > 5
            return
    raise AssertionError("it never came to an end")


class killing_at:  # noqa: N801
    """End the process in its step-th system call that changes a name on disk."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name in ("replace", "unlink", "rmdir"):
            real = getattr(os, name)
            self.patch.setattr(os, name, lambda *a, real=real, **o: self._step() or real(*a, **o))

    def _step(self) -> None:
        if self.left == 0:
            self.left = -1
            raise Killed
        self.left -= 1

    def __exit__(self, *error: Any) -> None:
        self.patch.undo()


# Compacting -----------------------------------------------------------------------------------------------------------


def test_compact_rewrites_only_shards_with_dead_ranges(store: Path) -> None:
    before, old = identities(store), shards_of(store)
    report = compact_store(store)
    assert (report.generation, report.shards, report.clips, report.dead_frames) == (3, (2,), 2, 32)
    after, new = identities(store), shards_of(store)
    assert {name: after[name] for name in before} == before
    assert {name: new[name] for name in old} == old
    assert set(new) - set(old) == {shard_name(4)}
    assert holds(store, LEFT)
    assert holds(store, LEFT, 2)
    assert holds(store, SMALL, 1)
    first, second = open_codes(store, 2), open_codes(store)
    assert first.fingerprint == second.fingerprint
    assert first.provenance.recipe == second.provenance.recipe
    moved = {clip.id for clip in second.clips if clip.offset != first.clip(clip.id).offset}
    assert moved == {"clip10", "clip11"}
    del first, second  # a generation that is open is not collected
    assert compact_store(store).shards == ()
    collect_garbage(store)
    assert set(shards_of(store)) == {shard_name(index) for index in (1, 3, 4)}
    assert find_garbage(store).partly_dead == ()
    assert verify_store(store).problems == ()
    assert holds(store, LEFT)
    assert [info.stage for info in open_codes(store).root.generations] == ["compact"]


def test_compact_does_not_cascade_along_clips_that_reach_into_the_next_shard(tmp_path: Path) -> None:
    clips = [planned(f"clip{number:02}", 20) for number in range(40)]  # nearly every border is inside a clip
    write(tmp_path / "s", clips)
    left = [clip for clip in clips if clip.id != "clip14"]
    write(tmp_path / "s", left)
    before = identities(tmp_path / "s")
    report = compact_store(tmp_path / "s")
    assert report.shards == (4,)
    assert report.frames <= 64 + 20
    assert {name: found for name, found in identities(tmp_path / "s").items() if name in before} == before
    assert compact_store(tmp_path / "s").shards == ()
    assert holds(tmp_path / "s", left)
    collect_garbage(tmp_path / "s")
    assert shard_name(4) not in shards_of(tmp_path / "s")
    assert holds(tmp_path / "s", left)


def test_min_dead_leaves_shards_alone_that_are_hardly_dead(store: Path) -> None:
    assert compact_store(store, min_dead=0.5).shards == ()
    before = files_of(store)
    assert compact_store(store, min_dead=0.49, dry_run=True).shards == (2,)
    assert files_of(store) == before


def test_late_twins_still_share_a_place_after_compaction(tmp_path: Path) -> None:
    write(tmp_path / "s", SMALL)
    twin = planned("twin", 16, content="clip01")
    left = [SMALL[1], twin, *SMALL[4:]]
    write(tmp_path / "s", left)
    compact_store(tmp_path / "s")
    codes = open_codes(tmp_path / "s")
    assert codes.clip("twin").offset == codes.clip("clip01").offset
    assert holds(tmp_path / "s", left)
    assert verify_store(tmp_path / "s").problems == ()


@pytest.mark.parametrize("apply", ["compact", "compact and gc"])
def test_any_history_of_changes_compactions_and_collections_holds_what_a_fresh_store_holds(
    tmp_path: Path, apply: str
) -> None:
    generator = random.Random(3)
    path, clips = tmp_path / "s", [planned(f"clip{number}", generator.randrange(1, 90)) for number in range(12)]
    for step in range(8):
        write(path, clips)
        if step % 2:
            compact_store(path)
        if step % 3 == 2 and "gc" in apply:
            collect_garbage(path)
        assert holds(path, clips)
        assert verify_store(path).problems == ()
        clips = [clip for clip in clips if generator.random() > 0.2]
        clips += [planned(f"new{step}-{n}", generator.randrange(1, 90)) for n in range(generator.randrange(4))]
        generator.shuffle(clips)
    compact_store(path)
    collect_garbage(path)
    write(tmp_path / "fresh", [planned(**named(clip)) for clip in (codes_in(path))])
    assert open_codes(path).fingerprint == open_codes(tmp_path / "fresh").fingerprint


def codes_in(path: Path) -> list[Any]:
    return list(open_codes(path).clips)


def named(clip: Any) -> dict[str, Any]:
    return {"name": clip.id, "length": clip.length, "split": clip.split}


KILLED_COMPACT = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lvt_pipeline.codes.upkeep.compaction import compact_store
    step, names = {step}, ("replace", "fsync", "unlink", "rmdir")
    def at_step(real):
        def call(*arguments, **options):
            global step
            step -= 1
            if step < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    for name in names:
        setattr(os, name, at_step(getattr(os, name)))
    compact_store(Path({path!r}))
"""


@pytest.mark.parametrize("step", [3, 17, 30, 36])
def test_a_compaction_killed_with_sigkill_leaves_a_readable_store_and_finishes_when_run_again(
    tmp_path: Path, step: int
) -> None:
    clips, path = SMALL[::2], tmp_path / "s"  # every shard is half dead
    write(path, SMALL)
    write(path, clips)
    shutil.copytree(path, tmp_path / "whole")
    compact_store(tmp_path / "whole")
    script = textwrap.dedent(KILLED_COMPACT).format(root=str(Path(__file__).parents[1]), path=str(path), step=step)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert holds(path, clips)
    assert holds(path, SMALL, 1)
    assert verify_store(path).problems == ()
    compact_store(path)
    assert holds(path, clips)
    assert shards_of(path) == shards_of(tmp_path / "whole")
    assert verify_store(path).problems == verify_store(path).notes == ()


def test_compact_does_not_throw_away_an_interrupted_encode(store: Path) -> None:
    write(store, [*LEFT, planned("new", 300)], stop_after=2)
    with pytest.raises(StoreError, match=r"an interrupted command left .* unfinished; run it again, or discard"):
        compact_store(store)
    assert (store / "pending").exists()


def test_gc_and_compact_wait_for_no_writer_and_make_no_folder(store: Path, tmp_path: Path) -> None:
    with CodeStoreWriter.open(store, SCHEMA, LEFT):
        for work in (collect_garbage, compact_store):
            with pytest.raises(BusyError, match="another process is writing"):
                work(store)
    for work in (collect_garbage, compact_store):
        with pytest.raises(StoreError, match="does not exist"):
            work(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_shard_is_not_copied(store: Path) -> None:
    file = store / shard_name(2)
    data = bytearray(file.read_bytes())
    data[len(data) // 4] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=str(file)):
        compact_store(store)
    assert open_codes(store).generation == 2


def test_the_commands_say_what_they_do(store: Path, lvt: Lvt) -> None:
    code, out, _ = lvt("gc", store)
    assert code == 0
    assert "generation 1 would be dropped" in out
    assert "codes/c/2: 32 of 64 frames dead; lvt compact moves the rest" in out
    assert out.splitlines()[-1].endswith("can be given back with --apply")
    code, out, _ = lvt("compact", store)
    assert (code, out) == (
        0,
        "moved 2 clips (32 frames) out of 1 shard with 32 dead frames -> generation 3; "
        f"lvt gc {store} --apply deletes the old shards\n",
    )
    code, out, _ = lvt("gc", store, "--apply", "--json")
    facts = json.loads(out)
    assert (code, facts["applied"], facts["dropped"], len(facts["shards"])) == (0, True, [1, 2], 2)
    assert lvt("gc", store)[1] == f"{store} holds nothing that is not needed\n"
    assert lvt("compact", store)[1] == f"{store} has no shard worth moving\n"
    code, out, _ = lvt("inspect", store)
    assert "generation 3   10 clips, 160 frames" in out
    assert "by lvt compact" in out


def test_the_edge_that_is_tolerated_is_a_share_of_a_shard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clips = [planned("a", 64), planned("b", 96), planned("c", 32)]  # b reaches 32 frames into shard 2
    write(tmp_path / "s", clips)
    write(tmp_path / "s", [clips[0], clips[2]])
    assert compact_store(tmp_path / "s", dry_run=True).shards == (2,)  # not below one half
    monkeypatch.setattr(compaction, "TOLERATED_EDGE", 0.6)
    assert compact_store(tmp_path / "s", dry_run=True).shards == ()
