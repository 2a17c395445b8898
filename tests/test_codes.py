"""The code store: what any zarr reader sees, what a killed writer leaves, and what a reader is told about damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lvt_pipeline.codes import writer as code_writer
from lvt_pipeline.codes.layout import read_root
from lvt_pipeline.codes.plan import plan_codes
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, shard_name
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import BusyError, ShapeError, StoreError
from lvt_pipeline.provenance import missing_outputs, read_record
from lvt_pipeline.storage import PosixStorage
from tests.toy_codes import FIVE, SCHEMA, codes_of, files_of, planned, record, shards_of, write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "data.zarr", FIVE)
    return tmp_path / "data.zarr"


# What is in a store ---------------------------------------------------------------------------------------------------


def test_every_clip_reads_back_as_its_slice(store: Path) -> None:
    codes = open_codes(store)
    for clip in FIVE:
        assert np.array_equal(codes[clip.id], codes_of(clip))
        assert np.array_equal(codes.read(clip.id, 0, 1), codes_of(clip)[:1])
    assert codes["a"].dtype == np.uint16
    assert np.array_equal(codes.read("b/c", 10, 68), codes_of(FIVE[1])[10:68])
    assert [clip.id for clip in codes.clips] == [clip.id for clip in FIVE]
    assert [clip.id for clip in codes.split("val")] == ["b/c"]
    assert codes.clip("e#1.5").label == "push"
    assert codes.num_frames == sum(clip.length for clip in FIVE)
    assert (codes.codebook_size, codes.num_codebooks, codes.grid, codes.tokenizer) == (512, 2, (3, 4), "a" * 64)
    assert (codes.generation, codes.generations) == (1, [1])


def test_plain_zarr_opens_a_fresh_store_without_a_warning(store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(store, mode="r")
        array = group["codes"]
        assert {name for name, _ in group.members(max_depth=None)} == {"codes", "generations", "generations/000001"}
    assert array.shape == (sum(clip.length for clip in FIVE), 3, 4, 2)
    assert array.metadata.dimension_names == ("frame", "row", "column", "codebook")
    assert np.array_equal(array[:], np.concatenate([codes_of(clip) for clip in FIVE]))
    table = group["generations/000001"].attrs["clips"]
    assert table["offset"] == [0, 20, 90, 91, 124]
    assert group.attrs["lvt"]["generation"] == 1


def test_only_core_codecs_are_used(store: Path) -> None:
    metadata = json.loads((store / "codes/zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]


def test_codes_of_small_codebooks_are_bytes(tmp_path: Path) -> None:
    schema = CodeSchema(codebook_size=256, num_codebooks=1, grid=(2, 2), tokenizer="t", shard_frames=16)
    write(tmp_path / "s", [planned("a", 16), planned("b", 16)], schema)
    codes = open_codes(tmp_path / "s")
    assert codes["b"].dtype == np.uint8
    assert np.array_equal(codes["b"], codes_of(planned("b", 16), schema))
    assert len(shards_of(tmp_path / "s")) == 2  # a shard as long as a clip makes the clip the unit of resume


def test_a_shard_of_zeros_is_a_file_like_any_other(tmp_path: Path) -> None:
    with CodeStoreWriter.open(tmp_path / "s", SCHEMA, [planned("a", 10)]) as writer:
        writer.write_shard(0, np.zeros((10, 3, 4, 2), np.int64))
        assert writer.pending_shards() == []
        writer.publish(record())
    assert not open_codes(tmp_path / "s")["a"].any()


def test_the_record_names_every_shard_and_the_table_with_their_sizes(store: Path) -> None:
    found = read_record(store)
    assert found.fingerprint == open_codes(store).fingerprint
    assert missing_outputs(store, found) == []
    assert set(found.outputs) == {*shards_of(store), "generations/000001/zarr.json"}


def test_same_clips_same_bytes(store: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", FIVE)
    first, second = files_of(store), files_of(tmp_path / "again")
    assert first == second


def test_the_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    write(tmp_path / "one", [planned("a"), planned("b")])
    write(tmp_path / "two", [planned("b")])
    write(tmp_path / "two", [planned("a"), planned("b")])
    write(tmp_path / "three", [planned("a"), planned("b", split="val")])
    one, two, three = (open_codes(tmp_path / name) for name in ("one", "two", "three"))
    assert one.clip("a").offset != two.clip("a").offset
    assert one.fingerprint == two.fingerprint != three.fingerprint


# Growing --------------------------------------------------------------------------------------------------------------


def test_nothing_new_writes_nothing(store: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    plan = write(store, FIVE)
    assert not plan.change.publishes
    assert plan.change.kept == tuple(clip.id for clip in FIVE)
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()} == {
        file: time for file, time in before.items() if file.is_file()
    }
    assert open_codes(store).generation == 1


def test_added_changed_and_removed_clips_make_a_generation_in_new_shards(store: Path) -> None:
    old_shards = shards_of(store)
    pinned = open_codes(store)
    new = [FIVE[0], planned("b/c", 30, "val", content="other pixels"), *FIVE[3:], planned("g", 50)]
    plan = write(store, new)
    assert plan.change.kept == ("a", "e#1.5", "f")
    assert plan.change.changed == ("b/c",)
    assert plan.change.added == ("g",)
    assert plan.change.removed == ("d",)
    assert plan.change.frames == 80
    codes = open_codes(store)
    assert codes.generation == 2
    for clip in new:
        assert np.array_equal(codes[clip.id], codes_of(clip))
    assert "d" not in codes
    assert {name: data for name, data in shards_of(store).items() if name in old_shards} == old_shards

    for reader in (pinned, open_codes(store, generation=1)):  # opened before and after the change
        assert [clip.id for clip in reader.clips] == [clip.id for clip in FIVE]
        for clip in FIVE:
            assert np.array_equal(reader[clip.id], codes_of(clip))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zarr.open_group(store, mode="r")["codes"].shape[0] == codes.array_frames == 192 + 80


def test_a_renamed_or_relabelled_clip_is_kept(store: Path) -> None:
    shards = shards_of(store)
    renamed = [planned("new/a", 20, "test", content="a", label="lift"), *FIVE[1:]]
    plan = write(store, renamed)
    assert plan.change.publishes
    assert plan.change.frames == 0
    assert (plan.change.added, plan.change.changed, plan.change.removed) == ((), (), ())
    assert shards_of(store) == shards
    codes = open_codes(store)
    assert codes.generation == 2
    assert codes.clip("new/a").label == "lift"
    assert np.array_equal(codes["new/a"], codes_of(FIVE[0]))


def test_clips_of_equal_content_have_a_range_each_and_one_can_go(tmp_path: Path) -> None:
    twins = [planned("a", 8, content="same"), planned("b", 8, content="same")]
    write(tmp_path / "s", twins)
    assert open_codes(tmp_path / "s").array_frames == 16
    plan = write(tmp_path / "s", twins[1:])
    assert (plan.change.kept, plan.change.removed) == (("b",), ("a",))
    assert np.array_equal(open_codes(tmp_path / "s")["b"], codes_of(twins[1]))


def test_another_tokenizer_is_refused_by_name_and_accepted_with_reencode(store: Path) -> None:
    other = CodeSchema(codebook_size=512, num_codebooks=2, grid=(3, 4), tokenizer="b" * 64, shard_frames=64)
    clips = [PlannedClip(**{**vars_of(clip), "fingerprint": f"{i:064x}"}) for i, clip in enumerate(FIVE)]
    with pytest.raises(StoreError, match=r"tokenizer aaaaaaaaaaaa but this one is bbbbbbbbbbbb.*--reencode"):
        plan_codes(store, other, clips)
    plan = write(store, clips, other, reencode=True)
    assert len(plan.change.changed) == 5
    assert open_codes(store).tokenizer == "b" * 64
    assert open_codes(store, generation=1).tokenizer == "a" * 64
    assert np.array_equal(open_codes(store, generation=1)["a"], codes_of(FIVE[0]))


def vars_of(clip: PlannedClip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in PlannedClip.__slots__}


def test_codes_of_another_shape_are_refused_even_with_reencode(store: Path) -> None:
    other = CodeSchema(codebook_size=512, num_codebooks=4, grid=(3, 4), tokenizer="b" * 64)
    with pytest.raises(StoreError, match=r"holds uint16 codes of shape \(3, 4, 2\).*--overwrite"):
        plan_codes(store, other, FIVE, reencode=True)
    write(store, FIVE, other, overwrite=True)
    assert open_codes(store)["a"].shape == (20, 3, 4, 4)
    assert open_codes(store).generations == [1]


# Being killed ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_first_encode_has_nothing_to_read_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    write(path, FIVE, stop_after=1)
    with pytest.raises(StoreError, match="unfinished: its first encode was interrupted; run the command"):
        open_codes(path)
    with CodeStoreWriter.open(path, SCHEMA, FIVE) as writer:
        assert [shard.index for shard in writer.pending_shards()] == [1, 2]
        assert [shard.index for shard in writer.finished_shards()] == [0]
        assert np.array_equal(writer.read_shard(0)[:20], codes_of(FIVE[0]))
    write(path, FIVE)
    write(tmp_path / "whole", FIVE)
    assert files_of(path) == files_of(tmp_path / "whole")


def test_an_interrupted_extension_leaves_the_current_generation(store: Path, tmp_path: Path) -> None:
    more = [*FIVE, planned("g", 150)]
    write(store, more, stop_after=1)
    assert open_codes(store).generation == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(zarr.open_group(store, mode="r").members(max_depth=None))
    write(tmp_path / "whole", FIVE)
    write(tmp_path / "whole", more)
    write(store, more)
    assert files_of(store) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["clips", "settings"])
def test_shards_of_an_abandoned_plan_are_never_used(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "data.zarr"
    write(path, [planned("z", 64), *FIVE], stop_after=2)
    clips = [planned("y", 64), *FIVE] if changed == "clips" else [planned("z", 64), *FIVE]
    settings = {"batch_size": 3} if changed == "settings" else {}
    with CodeStoreWriter.open(path, SCHEMA, clips, settings=settings) as writer:
        assert len(writer.pending_shards()) == 4
    write(path, clips, settings=settings)
    write(tmp_path / "whole", clips)
    # The abandoned plan had four shards, which another plan does not use again.
    shards = {
        name.replace(f"c/{index + 4}/", f"c/{index}/"): data
        for index, (name, data) in enumerate(shards_of(path).items())
    }
    assert shards == shards_of(tmp_path / "whole")


def test_an_abandoned_extension_is_cleaned_up_when_nothing_is_new(store: Path, tmp_path: Path) -> None:
    write(store, [*FIVE, planned("g", 150)], stop_after=2)
    write(store, FIVE)
    write(tmp_path / "whole", FIVE)
    found, expected = files_of(store), files_of(tmp_path / "whole")
    roots = read_root(store), read_root(tmp_path / "whole")
    assert found.pop("zarr.json") != expected.pop("zarr.json")
    assert found == expected
    assert roots[0] is not None
    assert (roots[0].used_shards, replace(roots[0], used_shards=0)) == (6, roots[1])


def test_an_interrupted_overwrite_goes_on_with_the_same_command(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PosixStorage.delete

    def failing(self: PosixStorage, names: Iterable[str]) -> None:
        gone = [*names]
        if any(name.startswith("codes") for name in gone):
            raise KeyboardInterrupt
        real(self, gone)

    clips = [planned("g", 30), *FIVE]
    with monkeypatch.context() as patch:
        patch.setattr(PosixStorage, "delete", failing)
        with pytest.raises(KeyboardInterrupt):
            write(store, clips, overwrite=True)
    with pytest.raises(StoreError, match="unfinished"):
        open_codes(store)
    write(store, clips, overwrite=True)
    write(tmp_path / "whole", clips)
    assert files_of(store) == files_of(tmp_path / "whole")


STEPS = ["_write_root", "_remove_group", "_write_group"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_around_each_step_of_publishing_is_healed_by_running_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    more = [*FIVE, planned("g", 30)]
    write(tmp_path / "whole", FIVE)
    write(tmp_path / "whole", more)
    real = getattr(CodeStoreWriter, step)

    def failing(self: CodeStoreWriter, *arguments: Any, **options: Any) -> Any:
        publishing = not self.pending_shards()
        if publishing and when == "before":
            raise KeyboardInterrupt
        real(self, *arguments, **options)
        if publishing:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CodeStoreWriter, step, failing)
        with pytest.raises(KeyboardInterrupt):
            write(store, more)
    assert open_codes(store).generation in (1, 2)
    write(store, more)
    assert files_of(store) == files_of(tmp_path / "whole")


KILLED_ENCODE = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import toy_codes
    from lvt_pipeline.codes.writer import CodeStoreWriter

    real, written = CodeStoreWriter.write_shard, []
    def write_shard(self, index, codes):
        real(self, index, codes)
        written.append(index)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    CodeStoreWriter.write_shard = write_shard
    toy_codes.write(Path({path!r}), toy_codes.FIVE)
"""


def test_a_killed_process_leaves_a_store_that_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    script = textwrap.dedent(KILLED_ENCODE).format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(shards_of(path)) == 2
    write(path, FIVE)
    write(tmp_path / "whole", FIVE)
    assert files_of(path) == files_of(tmp_path / "whole")


def test_a_second_writer_is_refused_in_one_line(store: Path) -> None:
    with (
        CodeStoreWriter.open(store, SCHEMA, FIVE),
        pytest.raises(BusyError, match="another process is writing"),
        CodeStoreWriter.open(store, SCHEMA, FIVE),
    ):
        pass


# Damage ---------------------------------------------------------------------------------------------------------------


def damage(store: Path, index: int, how: str) -> Path:
    file = store / shard_name(index)
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[:-7])
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        raise AssertionError(how)
    return file


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_damaged_shard_is_named_and_the_others_still_read(store: Path, how: str) -> None:
    file = damage(store, 1, how)
    codes = open_codes(store)
    assert np.array_equal(codes["a"], codes_of(FIVE[0]))
    with pytest.raises(StoreError, match=str(file)):
        codes["b/c"]


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_lost_shard_is_written_again_in_place_by_the_same_command(store: Path, how: str) -> None:
    before = files_of(store)
    damage(store, 1, how)
    plan = write(store, FIVE)
    assert [shard.index for shard in plan.repairs] == [1]
    assert plan.change.frames == 64
    after = files_of(store)
    assert after == before


def test_clips_of_a_shard_that_cannot_be_restored_are_encoded_anew(store: Path) -> None:
    damage(store, 0, "missing")
    rest = FIVE[1:]  # clip a was in the lost shard and is gone
    plan = write(store, rest)
    assert plan.change.changed == ("b/c",)
    assert plan.change.removed == ("a",)
    codes = open_codes(store)
    for clip in rest:
        assert np.array_equal(codes[clip.id], codes_of(clip))
    with pytest.raises(StoreError, match="is missing"):
        open_codes(store, generation=1)["a"]


def test_a_clip_table_that_was_edited_is_refused(store: Path) -> None:
    file = store / "generations/000001/zarr.json"
    file.write_text(file.read_text().replace('"val"', '"test"'))
    with pytest.raises(StoreError, match="is damaged: it does not match its digest; run lvt verify"):
        open_codes(store)


@pytest.mark.parametrize("name", ["zarr.json", "codes/zarr.json", "generations/000001/zarr.json"])
def test_cut_metadata_is_named(store: Path, name: str) -> None:
    data = (store / name).read_bytes()
    (store / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=name):
        open_codes(store)


# Messages -------------------------------------------------------------------------------------------------------------


def test_what_is_not_a_store_is_said_in_one_line(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreError, match="does not exist; make a code store with lvt encode-dataset"):
        open_codes(tmp_path / "nowhere")
    (tmp_path / "folder" / "codes" / "c").mkdir(parents=True)  # a folder of that name does not make it ours
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a code store"):
        open_codes(tmp_path / "folder")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="folder with other things in it"):
            write(tmp_path / "folder", FIVE, overwrite=overwrite)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    with pytest.raises(StoreError, match="is a file"):
        write(tmp_path / "folder" / "notes.txt", FIVE)
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(StoreError, match="a zarr group but not a code store"):
        open_codes(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="no generation 3; it has 1"):
        open_codes(store, generation=3)
    with pytest.raises(StoreError, match="no clip 'b/d'; did you mean b/c"):
        open_codes(store)["b/d"]
    with pytest.raises(IndexError, match=r"\[0, 21\) are not within clip a of 20 frames"):
        open_codes(store).read("a", 0, 21)


def test_clip_lists_that_make_no_store_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for clips, message in [
        ([], "no clips"),
        ([planned("a"), planned("a")], "clip a appears twice"),
        ([planned("a", 0)], "clip a has no frames"),
    ]:
        with pytest.raises(StoreError, match=message):
            write(tmp_path / "s", clips)
    assert not (tmp_path / "s").exists()


def test_codes_that_do_not_fit_the_plan_are_refused(tmp_path: Path) -> None:
    with CodeStoreWriter.open(tmp_path / "s", SCHEMA, [planned("a", 10)]) as writer:
        with pytest.raises(ShapeError, match=r"\(10, 3, 4, 2\), the codes have \(9, 3, 4, 2\)"):
            writer.write_shard(0, np.zeros((9, 3, 4, 2), np.uint16))
        with pytest.raises(ShapeError, match=r"\[0, 512\), found 0 to 512"):
            writer.write_shard(0, np.full((10, 3, 4, 2), 512) * (np.arange(2) > 0))
        with pytest.raises(ShapeError, match="integers"):
            writer.write_shard(0, np.zeros((10, 3, 4, 2), np.float32))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_store_is_refused_in_one_line(store: Path) -> None:
    store.chmod(0o555)
    try:
        with pytest.raises(code_writer.LVTError, match="not writable"):
            write(store, [*FIVE, planned("g")])
    finally:
        store.chmod(0o755)
