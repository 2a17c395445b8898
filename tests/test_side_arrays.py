"""Side arrays of code stores: aligned with the codes, no reason to encode a pixel again, covered by every check."""

from __future__ import annotations

import gc
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import webdataset
import zarr
from torch.utils.data import DataLoader

from lvt_pipeline.cli import run as lvt
from lvt_pipeline.codes.loading.batches import Batches, make_batches
from lvt_pipeline.codes.loading.cache import cache_file, split_bytes
from lvt_pipeline.codes.loading.windows import CodeWindows
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, SideArray
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage, find_garbage
from lvt_pipeline.codes.upkeep.repair import repair_store
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.demo.videos import DemoSettings, write_demo_videos
from lvt_pipeline.errors import ArtefactError, ConfigError, MismatchError, ShapeError, StoreError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs.encode import EncodeReport, encode_dataset
from lvt_pipeline.jobs.export import export_codes
from lvt_pipeline.jobs.import_codes import import_codes
from lvt_pipeline.jobs.runner import ArrayStep
from lvt_pipeline.jobs.settings import EncodeSettings, ExportSettings
from lvt_pipeline.models.vqvae.model import VQVAE
from tests.test_encoding import make_frames as make_plain_frames
from tests.test_encoding import make_model, make_run
from tests.toy_codes import SCHEMA, codes_of, files_of, planned, record

LENGTHS = {"a": 11, "b": 40, "c": 17}
ACTIONS = {name: np.random.default_rng(length).normal(size=(length, 4)) for name, length in LENGTHS.items()}
STEPS = {name: np.arange(length) for name, length in LENGTHS.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "vqvae", make_model())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_FRAMES", 16)


def make_frames(root: Path, lengths: Mapping[str, int] = LENGTHS, **arrays: Mapping[str, np.ndarray]) -> Path:
    return make_plain_frames(root, lengths, arrays=arrays)


def encode(frames: Path, run: Path, out: Path, arrays: tuple[str, ...] | None = None, **options: Any) -> EncodeReport:
    return encode_dataset(frames, run, out, EncodeSettings(batch_size=8, arrays=arrays), device="cpu", **options)


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a frame is encoded")

    monkeypatch.setattr(VQVAE, "encode", refuse)


# What a store holds ---------------------------------------------------------------------------------------------------


def test_a_store_holds_the_arrays_of_the_frames_next_to_the_codes(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "frames", action=ACTIONS, step=STEPS), run, tmp_path / "s")
    store = open_codes(tmp_path / "s")
    assert {name: (str(array.dtype), array.dimension) for name, array in store.arrays.items()} == {
        "action": ("float32", 4),
        "step": ("int64", 1),
    }
    for name in LENGTHS:
        assert np.array_equal(store.array("action")[name], ACTIONS[name].astype(np.float32))
        assert np.array_equal(store.array("step")[name][:, 0], STEPS[name])
    assert np.array_equal(store.array("action").read("b", 3, 9), store.array("action")["b"][3:9])
    with pytest.raises(IndexError, match="not within clip b"):
        store.array("action").read("b", 0, 41)
    with pytest.raises(StoreError, match="no array 'actions'; it has action, step"):
        store.array("actions")


def test_any_zarr_reader_finds_rows_where_it_finds_codes(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "frames", action=ACTIONS), run, tmp_path / "s")
    group = zarr.open_group(tmp_path / "s", mode="r")
    assert [name for name, _ in group["arrays"].members()] == ["action"]
    table = group["generations/000001"].attrs["clips"]
    for name, offset, length in zip(table["id"], table["offset"], table["length"], strict=True):
        rows = group["arrays/action"][offset : offset + length]
        assert np.array_equal(rows, ACTIONS[name].astype(np.float32))
    assert group["arrays/action"].shape[0] == group["codes"].shape[0]


def test_a_clip_without_an_array_has_rows_of_nan_or_of_the_smallest_integer(run: Path, tmp_path: Path) -> None:
    some = {"action": {"a": ACTIONS["a"]}, "step": {"c": STEPS["c"]}}
    encode(make_frames(tmp_path / "frames", **some), run, tmp_path / "s")
    store = open_codes(tmp_path / "s")
    assert np.isnan(store.array("action")["b"]).all()
    assert not np.isnan(store.array("action")["a"]).any()
    assert (store.array("step")["a"] == np.iinfo(np.int64).min).all()


def test_named_arrays_alone_are_stored_and_an_unknown_name_is_refused(run: Path, tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", action=ACTIONS, step=STEPS)
    encode(frames, run, tmp_path / "s", arrays=("step",))
    assert [*open_codes(tmp_path / "s").arrays] == ["step"]
    encode(frames, run, tmp_path / "none", arrays=())
    assert not open_codes(tmp_path / "none").arrays
    with pytest.raises(MismatchError, match="has no array 'pose'; it has action, step"):
        encode(frames, run, tmp_path / "other", arrays=("pose",))


def test_arrays_of_two_dimensions_under_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", action={**ACTIONS, "c": ACTIONS["c"][:, :3]})
    with pytest.raises(MismatchError, match="action has 3 values per frame in clip c but 4 in clip a"):
        encode(frames, run, tmp_path / "s")


def test_frames_refuse_an_array_with_another_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="clip a has 11 frames and 10 rows of action"):
        make_frames(tmp_path / "frames", action={"a": ACTIONS["a"][:10]})


def test_a_store_without_arrays_has_no_trace_of_them(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "frames"), run, tmp_path / "s")
    assert not (tmp_path / "s" / "arrays").exists()
    assert not any(b'"arrays"' in data for data in files_of(tmp_path / "s").values())


# Changes --------------------------------------------------------------------------------------------------------------


def test_another_action_moves_its_clip_and_encodes_no_frame(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(make_frames(tmp_path / "old", action=ACTIONS), run, tmp_path / "s")
    before = open_codes(tmp_path / "s")
    other = {**ACTIONS, "b": ACTIONS["b"] + 1}
    frames = make_frames(tmp_path / "new", action=other)
    forbid_encoding(monkeypatch)
    command = ["encode-dataset", "--frames", str(frames), "--vqvae", str(run), "-o", str(tmp_path / "s")]
    assert lvt([*command, "--batch-size", "8", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "new arrays of 1 clip: their rows are written and their codes copied, no frame is encoded" in printed.err
    assert "2 clips kept, 0 added, 1 changed, 0 removed" in printed.out
    store = open_codes(tmp_path / "s")
    assert (store.provenance.counts["encoded_frames"], store.provenance.counts["copied"]) == (0, 1)
    for name in LENGTHS:
        assert np.array_equal(store[name], before[name])
        assert np.array_equal(store.array("action")[name], other[name].astype(np.float32))
    assert store.clip("b").fingerprint != before.clip("b").fingerprint
    assert store.clip("b").codes_fingerprint == before.clip("b").codes_fingerprint
    assert {name: store.clip(name).offset for name in "ac"} == {name: before.clip(name).offset for name in "ac"}
    old = open_codes(tmp_path / "s", 1)
    assert np.array_equal(old.array("action")["b"], ACTIONS["b"].astype(np.float32))
    assert verify_store(tmp_path / "s").problems == ()


def test_a_store_gets_further_arrays_without_encoding(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(make_frames(tmp_path / "old"), run, tmp_path / "s")
    before = open_codes(tmp_path / "s")
    forbid_encoding(monkeypatch)
    frames = make_frames(tmp_path / "new", action=ACTIONS)
    report = encode(frames, run, tmp_path / "s")
    assert (report.change.frames, len(report.change.copied)) == (0, 3)
    store = open_codes(tmp_path / "s")
    assert all(np.array_equal(store[name], before[name]) for name in LENGTHS)
    assert all(np.array_equal(store.array("action")[name], ACTIONS[name].astype(np.float32)) for name in LENGTHS)
    assert before.arrays == open_codes(tmp_path / "s", 1).arrays == {}
    assert encode(frames, run, tmp_path / "s").generation == 2
    assert verify_store(tmp_path / "s").problems == ()
    with pytest.raises(StoreError, match=r"has the array action \(4 x float32\), these clips are to have none"):
        encode(make_frames(tmp_path / "none"), run, tmp_path / "s", arrays=())


def test_clips_that_lose_their_array_keep_it_in_the_older_generation(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "old", action=ACTIONS), run, tmp_path / "s")
    assert encode(make_frames(tmp_path / "new"), run, tmp_path / "s").change.frames == 0
    assert np.isnan(open_codes(tmp_path / "s").array("action")["a"]).all()
    assert not np.isnan(open_codes(tmp_path / "s", 1).array("action")["a"]).any()


def test_another_dimension_is_refused_with_both_named(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "old", action=ACTIONS), run, tmp_path / "s")
    frames = make_frames(tmp_path / "new", action={name: rows[:, :2] for name, rows in ACTIONS.items()})
    with pytest.raises(MismatchError, match="action has 2 values per frame in clip a but 4 in the store"):
        encode(frames, run, tmp_path / "s")


def test_processes_of_a_job_array_copy_codes_and_write_rows_as_one_process_does(run: Path, tmp_path: Path) -> None:
    encode(make_frames(tmp_path / "old", action=ACTIONS), run, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    lengths = {**LENGTHS, "new": 9}
    actions = {**ACTIONS, "b": ACTIONS["b"] * 2, "new": np.ones((9, 4))}
    frames = make_frames(tmp_path / "new", lengths, action=actions)
    encode(frames, run, tmp_path / "one")
    encode(frames, run, tmp_path / "many", step=ArrayStep("plan"))
    for number in (2, 1):
        encode(frames, run, tmp_path / "many", step=ArrayStep("shards", number, 2))
    encode(frames, run, tmp_path / "many", step=ArrayStep("publish"))
    one, many = (
        {name: data for name, data in files_of(tmp_path / store).items() if "/c/" in name or "generations" in name}
        for store in ("one", "many")
    )
    assert one == many
    assert np.array_equal(open_codes(tmp_path / "many").array("action")["b"], actions["b"].astype(np.float32))


def test_action_files_that_come_later_leave_the_codes_of_their_videos_valid(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, manifest, frames = tmp_path / "videos", tmp_path / "m.jsonl", tmp_path / "frames"
    paths = write_demo_videos(videos, DemoSettings(num_clips=3, num_frames=8))
    rows = {path: path.with_suffix(".action.npy") for path in paths}
    hidden = {path: file.rename(file.with_suffix(".hidden")) for path, file in rows.items()}

    def ingest() -> None:
        assert lvt(["manifest", "build", str(videos), "-o", str(manifest)]) == 0
        size = ["--size", "16", "--workers", "0"]
        assert lvt(["ingest", "--manifest", str(manifest), "-o", str(frames), *size]) == 0

    ingest()
    encode(frames, run, tmp_path / "s")
    before = open_codes(tmp_path / "s")
    for path, file in hidden.items():
        file.rename(rows[path])
    ingest()
    forbid_encoding(monkeypatch)
    encode(frames, run, tmp_path / "s")
    store = open_codes(tmp_path / "s")
    for path in paths:
        clip_id = f"{path.parent.name}/{path.stem}"
        assert np.array_equal(store[clip_id], before[clip_id])
        assert np.array_equal(store.array("action")[clip_id], np.load(rows[path]))
    moved = np.load(rows[paths[0]]) + 1
    np.save(rows[paths[0]], moved)
    ingest()
    assert encode(frames, run, tmp_path / "s").change.copied == ("train/clip-000",)
    assert np.array_equal(open_codes(tmp_path / "s").array("action")["train/clip-000"], moved)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--fps", "5"], slice(0, 20, 2)),
        (["--max-frames", "7"], slice(0, 7)),
        (["--stride", "3"], slice(0, 20, 3)),
    ],
)
def test_rows_stay_with_their_frames_when_frames_are_left_out(tmp_path: Path, options: list[str], kept: slice) -> None:
    (video, *_) = write_demo_videos(tmp_path / "videos", DemoSettings(num_clips=3, num_frames=20))
    manifest, frames = tmp_path / "m.jsonl", tmp_path / "frames"
    assert lvt(["manifest", "build", str(tmp_path / "videos"), "-o", str(manifest)]) == 0
    plain = ["ingest", "--manifest", str(manifest), "--size", "16", "--workers", "0"]
    assert lvt([*plain, "-o", str(tmp_path / "all")]) == 0
    assert lvt([*plain, "-o", str(frames), *options]) == 0
    whole, some = FrameShards(tmp_path / "all"), FrameShards(frames)
    assert np.array_equal(some.read("train/clip-000"), whole.read("train/clip-000")[kept])
    rows = np.load(video.with_suffix(".action.npy"))
    assert np.array_equal(whole.arrays("train/clip-000")["action"], rows)
    assert np.array_equal(some.arrays("train/clip-000")["action"], rows[kept])


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two toy stores with actions, whose clips span shards."""
    folder = tmp_path_factory.mktemp("stores")
    toy_write(folder / "one", [planned(f"{number}", 20 + 7 * number) for number in range(8)])
    toy_write(folder / "two", [planned(f"other{number}", 31) for number in range(5)])
    return [folder / "one", folder / "two"]


TIERS = ("ram", "mmap", "stream")


@pytest.mark.parametrize("tier", TIERS)
def test_windows_have_the_rows_of_their_frames_in_every_tier(trained_on: list[Path], tier: Any) -> None:
    windows = CodeWindows(trained_on[0], frames=6, stride=5, cache=tier, arrays=("action",))
    store = windows.store
    for index in (0, 3, len(windows) - 1):
        clip, first = windows.clip(index), int(windows._locate([index])[1][0])
        window = windows[index]
        assert set(window) == {"codes", "action"}
        assert (window["codes"].dtype, window["action"].dtype) == (torch.int64, torch.float32)
        assert np.array_equal(window["codes"], store.read(clip, first, first + 6))
        assert np.array_equal(window["action"], store.array("action").read(clip, first, first + 6))
    num_frames = sum(clip.length for clip in store.clips)
    assert split_bytes(store, "train", ("action",)) - split_bytes(store, "train") == num_frames * 12
    (batch,) = DataLoader(windows, batch_size=len(windows))
    assert batch["action"].shape == (len(windows), 6, 3)
    assert torch.equal(batch["action"][-1], windows[-1]["action"])
    (sent,) = windows.loader(len(windows), num_workers=1, multiprocessing_context="fork")
    assert all(torch.equal(sent[name], batch[name]) for name in ("codes", "action"))
    assert sent.keys() == batch.keys()
    assert torch.equal(pickle.loads(pickle.dumps(windows))[2]["action"], windows[2]["action"])
    assert isinstance(CodeWindows(trained_on[0], frames=6, cache=tier)[0], torch.Tensor)


@pytest.mark.parametrize("shuffle", ["clips", "shards"])
def test_batches_bring_the_rows_of_their_windows_in_one_order_for_all(trained_on: list[Path], shuffle: str) -> None:
    def made(tier: Any, **arrays: Any) -> Batches:
        windows = [CodeWindows(path, frames=6, cache=tier, **arrays) for path in trained_on]
        return make_batches(windows, 8, seed=3, shuffle=shuffle, mix=[2, 1], pool_bytes=4000)

    plain = made("ram")
    stores = [open_codes(path) for path in trained_on]
    for tier in TIERS if shuffle == "shards" else TIERS[:2]:
        batches = made(tier, arrays=("action",))
        for step in (0, 1, 7, 2):  # a resumed run begins anywhere
            whole = batches.read(step, range(8))
            assert torch.equal(whole["codes"], plain.read(step, range(8)))
            parts = [batches.read(step, rows)["action"] for rows in (range(3), range(3, 8))]  # of two processes
            assert torch.equal(torch.cat(parts), whole["action"])
            for row, (clip, start) in enumerate(zip(*batches.draw(step), strict=True)):
                store = next(store for store in stores if clip.id in store)
                assert np.array_equal(whole["action"][row], store.array("action").read(clip, start, start + 6))


def test_verify_compares_mapped_arrays_with_the_store(trained_on: list[Path], tmp_path: Path) -> None:
    store = tmp_path / "s"
    shutil.copytree(trained_on[1], store)
    CodeWindows(store, frames=6, cache="mmap", arrays=("action",))
    assert verify_store(store).problems == ()
    file = cache_file(open_codes(store), "train", "action")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    (problem,) = verify_store(store).problems
    assert (problem.file, problem.clips) == (str(file), ("other4",))


def test_windows_of_an_unknown_array_or_of_unequal_ones_are_refused(trained_on: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no array 'pose'; it has action"):
        CodeWindows(trained_on[0], frames=6, arrays=("pose",))
    wide = replace(TOY, arrays=(SideArray(name="action", dtype=np.dtype("i4"), dimension=1),))
    with CodeStoreWriter.open(tmp_path / "s", wide, [planned("a", 10)]) as writer:
        writer.write_shard(0, codes_of(planned("a", 10)), {"action": np.zeros((10, 1), np.int32)})
        writer.publish(record())
    both = [CodeWindows(path, frames=6, arrays=("action",)) for path in (trained_on[0], tmp_path / "s")]
    with pytest.raises(ConfigError, match=r"action \(1 x int32\) and .* has action \(3 x float32\)"):
        make_batches(both, 4, seed=0)


# Other formats --------------------------------------------------------------------------------------------------------


def exported(store: Path, out: Path, file_format: Any) -> Path:
    export_codes(store, out, ExportSettings(format=file_format))
    return out


def test_npy_files_of_arrays_come_back_with_their_codes(trained_on: list[Path], tmp_path: Path) -> None:
    store, out = open_codes(trained_on[1]), exported(trained_on[1], tmp_path / "out", "npy")
    assert np.array_equal(np.load(out / "other0.action.npy"), store.array("action")["other0"])
    import_codes(out, tmp_path / "back")
    assert content(open_codes(tmp_path / "back")) == content(store)
    rows = np.load(out / "other2.action.npy")
    np.save(out / "other2.action.npy", rows + 1)
    (out / "other3.action.npy").unlink()
    import_codes(out, tmp_path / "back")
    again = open_codes(tmp_path / "back")
    assert np.array_equal(again.array("action")["other2"], rows + 1)
    assert np.isnan(again.array("action")["other3"]).all()
    kept = {name: again.clip(name).offset for name in ("other0", "other1", "other4")}
    assert kept == {name: open_codes(tmp_path / "back", 1).clip(name).offset for name in kept}
    np.save(out / "other2.action.npy", rows[1:])
    with pytest.raises(
        ArtefactError, match=r"other2.action.npy holds float32 \(30, 3\), not a row of numbers for each of 31"
    ):
        import_codes(out, tmp_path / "back")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_parquet_hold_the_rows_of_each_clip(trained_on: list[Path], tmp_path: Path) -> None:
    store = open_codes(trained_on[0])
    tar = exported(trained_on[0], tmp_path / "tars", "webdataset") / "train-000000.tar"
    samples = [*webdataset.WebDataset(str(tar), shardshuffle=False).decode()]
    gc.collect()  # webdataset leaves its files to the garbage collector
    assert [sample["__key__"] for sample in samples] == [*store]
    rows = pyarrow.parquet.read_table(
        exported(trained_on[0], tmp_path / "table", "parquet") / "data/train-00000-of-00001.parquet"
    ).to_pylist()
    for sample, row in zip(samples, rows, strict=True):
        wanted = store.array("action")[row["id"]]
        assert np.array_equal(sample["action.npy"], wanted)
        assert np.array_equal(np.array(row["action"], np.float32).reshape(row["frames"], -1), wanted)
        assert len(row["codes"]) == store[row["id"]].size


def test_inspect_and_the_card_name_the_arrays(
    trained_on: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lvt(["inspect", str(trained_on[0])]) == 0
    assert "3 x float32" in capsys.readouterr().out
    assert "K=512, action (3 x float32), generation 1" in repr(open_codes(trained_on[0]))
    assert lvt(["inspect", str(make_frames(tmp_path / "frames", action=ACTIONS))]) == 0
    assert "4 x float32" in capsys.readouterr().out
    assert "| side arrays | action (3 x float32), in `arrays/` |" in (trained_on[0] / "codes/README.md").read_text()


# Killed, damaged and dead ---------------------------------------------------------------------------------------------


TOY = replace(SCHEMA, shard_frames=32, arrays=(SideArray(name="action", dtype=np.dtype("f4"), dimension=3),))


def toy_rows(clip: PlannedClip) -> np.ndarray:
    return np.random.default_rng(int(clip.fingerprint[8:16], 16)).normal(size=(clip.length, 3)).astype(np.float32)


def toy_write(path: Path, clips: list[PlannedClip], schema: CodeSchema = TOY, stop_after: int = 99) -> None:
    by_id = {clip.id: clip for clip in clips}
    with CodeStoreWriter.open(path, schema, clips) as writer:
        for shard in writer.pending_shards()[:stop_after]:
            parts = [(by_id[part.clip_id], part.start, part.stop) for part in shard.parts]
            codes = np.concatenate([codes_of(clip, schema)[start:stop] for clip, start, stop in parts])
            rows = np.concatenate([toy_rows(clip)[start:stop] for clip, start, stop in parts])
            writer.write_shard(shard.index, codes, {"action": rows} if schema.arrays else {})
        if not writer.pending_shards():
            writer.publish(record())


def content(store: CodeStore) -> dict[str, tuple[bytes, bytes]]:
    return {name: (store[name].tobytes(), store.array("action")[name].tobytes()) for name in store}


CLIPS = [planned("a", 20), planned("b", 50), planned("c", 30)]


def test_a_killed_write_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    toy_write(tmp_path / "whole", CLIPS)
    toy_write(tmp_path / "killed", CLIPS, stop_after=2)
    (tmp_path / "killed" / "codes/c/1/0/0/0").unlink()  # killed between the two files of a shard
    toy_write(tmp_path / "killed", CLIPS)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert content(open_codes(tmp_path / "killed"))["b"][1] == toy_rows(CLIPS[1]).tobytes()


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with CodeStoreWriter.open(tmp_path / "s", TOY, [planned("a", 10)]) as writer:
        codes = codes_of(planned("a", 10))
        for rows, problem in (
            ({}, "the rows have None"),
            ({"action": np.zeros((10, 4), np.float32)}, r"the rows have \(10, 4\)"),
            ({"action": np.zeros((10, 3))}, "holds float32, found float64"),
        ):
            with pytest.raises(ShapeError, match=problem):
                writer.write_shard(0, codes, rows)


def test_verify_names_the_clips_of_a_damaged_array(tmp_path: Path) -> None:
    toy_write(tmp_path / "s", CLIPS)
    assert verify_store(tmp_path / "s").problems == ()
    file = tmp_path / "s" / "arrays/action/c/1/0"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    (problem,) = verify_store(tmp_path / "s").problems
    assert (problem.file, set(problem.clips)) == ("arrays/action/c/1/0", {"b"})
    file.unlink()
    assert verify_store(tmp_path / "s").problems[0].message == "is missing"
    with pytest.raises(StoreError, match="arrays/action/c/1/0 is missing"):
        open_codes(tmp_path / "s").array("action")["b"]


@pytest.mark.parametrize("name", ["arrays/zarr.json", "arrays/action/zarr.json", "zarr.json"])
def test_metadata_of_arrays_are_repaired_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    toy_write(tmp_path / "s", CLIPS)
    before = files_of(tmp_path / "s")
    (tmp_path / "s" / name).write_bytes(b"{}" + before[name])
    assert {problem.file for problem in verify_store(tmp_path / "s").problems} == {name}
    repair_store(tmp_path / "s")
    after = files_of(tmp_path / "s")
    assert {**after, "zarr.json": b"", "codes/README.md": b""} == {**before, "zarr.json": b"", "codes/README.md": b""}
    assert verify_store(tmp_path / "s").problems == ()


def test_repair_writes_a_damaged_array_shard_again(run: Path, tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", action=ACTIONS)
    encode(frames, run, tmp_path / "s")
    before = files_of(tmp_path / "s")
    name = "arrays/action/c/1/0"
    (tmp_path / "s" / name).write_bytes(before[name][:-3] + b"bad")
    encode(frames, run, tmp_path / "s", repair=True)
    assert files_of(tmp_path / "s")[name] == before[name]
    (tmp_path / "s" / name).unlink()
    encode(frames, run, tmp_path / "s")
    assert files_of(tmp_path / "s")[name] == before[name]
    assert verify_store(tmp_path / "s").problems == ()


def test_compaction_moves_rows_with_their_codes_and_gc_frees_both(tmp_path: Path) -> None:
    clips = [planned("a", 10), planned("b", 12), planned("c", 10)]
    toy_write(tmp_path / "s", clips)
    toy_write(tmp_path / "s", [clips[0], clips[2]])
    before = content(open_codes(tmp_path / "s"))
    assert compact_store(tmp_path / "s").shards
    assert content(open_codes(tmp_path / "s")) == before
    freed = collect_garbage(tmp_path / "s")
    assert {name.partition("/c/")[0] for name in freed.shards} == {"codes", "arrays/action"}
    assert content(open_codes(tmp_path / "s")) == before
    assert find_garbage(tmp_path / "s").is_empty
    assert verify_store(tmp_path / "s").problems == ()


def test_an_abandoned_plan_with_a_new_array_leaves_nothing(tmp_path: Path) -> None:
    plain = replace(TOY, arrays=())
    toy_write(tmp_path / "s", CLIPS, plain)
    before = files_of(tmp_path / "s")
    toy_write(tmp_path / "s", CLIPS, TOY, stop_after=1)
    assert (tmp_path / "s" / "arrays/action/c/4/0").exists()
    assert verify_store(tmp_path / "s").problems == ()
    collect_garbage(tmp_path / "s", drop_pending=True)
    after = files_of(tmp_path / "s")
    assert after.keys() == before.keys()
    assert after["codes/zarr.json"] == before["codes/zarr.json"]
    toy_write(tmp_path / "s", CLIPS, TOY, stop_after=1)
    toy_write(tmp_path / "s", [*CLIPS, planned("d", 5)], plain)
    assert not (tmp_path / "s" / "arrays").exists()
    assert verify_store(tmp_path / "s").problems == ()


def test_a_store_of_samples_may_hold_the_actions_that_were_used(tmp_path: Path) -> None:
    sample = planned("a#0", 8, fingerprint_of="1" * 64)
    toy_write(tmp_path / "s", [sample])
    store = open_codes(tmp_path / "s")
    assert np.array_equal(store.array("action")["a#0"], toy_rows(sample))
    assert store.clip("a#0").codes_fingerprint == store.clip("a#0").fingerprint


def test_overwriting_a_store_with_arrays_leaves_no_file_of_it(tmp_path: Path) -> None:
    toy_write(tmp_path / "s", CLIPS)
    with CodeStoreWriter.open(tmp_path / "s", replace(TOY, arrays=()), [planned("z", 3)], overwrite=True) as writer:
        writer.write_shard(0, codes_of(planned("z", 3)))
        writer.publish(record())
    assert not (tmp_path / "s" / "arrays").exists()
    assert verify_store(tmp_path / "s").problems == ()


def test_frames_of_bair_trajectories_bring_their_arrays(run: Path, tmp_path: Path) -> None:
    bair = Path(__file__).parents[1] / ".." / "shared" / "bair"
    if not bair.is_dir():
        pytest.skip("the sample trajectories are not here")
    manifest, frames = tmp_path / "m.jsonl", tmp_path / "frames"
    assert lvt(["manifest", "build", str(bair), "-o", str(manifest)]) == 0
    options = ["--size", "16", "--max-frames", "7", "--fps", "5", "--workers", "0"]
    assert lvt(["ingest", "--manifest", str(manifest), "-o", str(frames), *options]) == 0
    encode(frames, run, tmp_path / "s")
    store, shards = open_codes(tmp_path / "s"), FrameShards(frames)
    assert {name: array.dimension for name, array in store.arrays.items()} == {"action": 4, "endeffector_pos": 3}
    for clip in store.clips:
        assert clip.length == 7
        assert np.array_equal(store.array("action")[clip.id], shards.arrays(clip.id)["action"])
        # The hand moves where the action says: rows and frames belong together.
        assert not np.isnan(store.array("endeffector_pos")[clip.id]).any()
