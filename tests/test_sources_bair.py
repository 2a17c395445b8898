"""BAIR's tfrecords from listing to frame shards: cameras, actions, splits, damage."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest import shards as ingest_shards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import Clip, build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.episodes.bair import parse_trajectory
from lvt_pipeline.video.episodes.tfrecords import index_records, read_record
from lvt_pipeline.video.settings import GeometrySettings
from tests.listener import Listener
from tests.record_files import example, feature, flip, solid, trajectory, write_records

BAIR = Path(__file__).parents[2] / "shared" / "bair"
SETTINGS = IngestSettings(clips_per_shard=2)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "softmotion30_44k"
    write_records(root / "train" / "traj_0_to_2.tfrecords", [trajectory(seed) for seed in range(3)])
    write_records(root / "train" / "traj_3_to_3.tfrecords", [trajectory(3)])
    write_records(root / "test" / "traj_0_to_1.tfrecords", [trajectory(10), trajectory(11)])
    return root


def listed(source: Path, out: Path, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings))
    return read_manifest(out)


def test_every_record_is_a_clip_and_the_folders_decide_its_split(dataset: Path, tmp_path: Path) -> None:
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    clips = read_manifest(tmp_path / "m.jsonl")
    assert listener.said == [f"{dataset}: recognised as BAIR tfrecords"]
    assert [(clip.id, clip.split, clip.record) for clip in clips] == [
        ("test/traj_0_to_1/000", "test", 0),
        ("test/traj_0_to_1/001", "test", 1),
        ("train/traj_0_to_2/000", "train", 0),
        ("train/traj_0_to_2/001", "train", 1),
        ("train/traj_0_to_2/002", "train", 2),
        ("train/traj_3_to_3/000", "train", 0),
    ]
    assert {(clip.kind, clip.camera, clip.fps, clip.label) for clip in clips} == {("bair", "image_aux1", 10.0, None)}
    # Two roots that hold the same: the published folder, and the one around it.
    assert [clip.split for clip in listed(tmp_path, tmp_path / "n.jsonl", kind="bair")] == [c.split for c in clips]


@pytest.mark.parametrize(("camera", "number"), [(None, 0), ("image_aux1", 0), ("image_main", 1)])
def test_frames_of_either_camera_reach_the_shards_with_actions_and_positions(
    dataset: Path, tmp_path: Path, camera: Any, number: int
) -> None:
    listed(dataset, tmp_path / "m.jsonl", camera=camera)
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=2)
    shards = FrameShards(tmp_path / "frames")
    assert (record.counts["clips"], record.counts["frames"], record.counts["failures"]) == (6, 30, 0)
    for seed in range(3):
        clip = shards[f"train/traj_0_to_2/{seed:03d}"]
        assert np.array_equal(shards.read(clip), solid(seed, range(5), number))
        arrays = shards.arrays(clip)
        assert arrays["action"].tolist() == [[seed + step / 8, 0.5, 0.25, -1.0] for step in range(5)]
        assert arrays["endeffector_pos"].tolist() == [[step / 4, float(seed), 2.5] for step in range(5)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_plain_webdataset_reads_the_actions(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    samples = list(webdataset.WebDataset(str(tmp_path / "frames/train-000001.tar"), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == ["train/traj_0_to_2/002", "train/traj_3_to_3/000"]
    assert np.array_equal(samples[0]["npy"], solid(2, range(5)))
    assert samples[0]["action.npy"].dtype == np.float32
    assert samples[0]["action.npy"].tolist() == [[2 + step / 8, 0.5, 0.25, -1.0] for step in range(5)]
    assert samples[0]["endeffector_pos.npy"].shape == (5, 3)
    gc.collect()


def test_both_cameras_are_two_clips_of_one_content(dataset: Path, tmp_path: Path) -> None:
    clips = listed(dataset, tmp_path / "m.jsonl", camera="both", split="hash")
    assert [clip.id for clip in clips[:2]] == ["test/traj_0_to_1/000/image_aux1", "test/traj_0_to_1/000/image_main"]
    assert len(clips) == 12
    for one, other in zip(clips[::2], clips[1::2], strict=True):
        assert one.fingerprint != other.fingerprint
        assert (one.digest, one.split) == (other.digest, other.split)


def test_a_range_takes_the_rows_of_its_frames(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    line = json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])
    (tmp_path / "m.jsonl").write_text(json.dumps(line | {"start": 0.2, "end": 0.5}) + "\n")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert np.array_equal(shards.read(shards.clips[0]), solid(10, [2, 3, 4]))
    assert shards.arrays(shards.clips[0])["endeffector_pos"][:, 0].tolist() == [0.5, 0.75, 1.0]
    half = IngestSettings(geometry=GeometrySettings(fps=5))
    ingest(tmp_path / "m.jsonl", tmp_path / "slow", half, num_workers=0)
    slow = FrameShards(tmp_path / "slow")
    assert np.array_equal(slow.read(slow.clips[0]), solid(10, [2, 4]))
    assert slow.arrays(slow.clips[0])["endeffector_pos"][:, 0].tolist() == [0.5, 1.0]
    assert slow.clips[0].fps == 5


def test_a_flipped_byte_is_a_failure_of_that_record_alone(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "train" / "traj_0_to_2.tfrecords"
    flip(path, index_records(str(path)).places[1].offset + 1000)
    listed(dataset, tmp_path / "m.jsonl")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert record.counts["failures_by_reason"] == {"damaged": 1}
    failure = json.loads((tmp_path / "frames" / "failures.jsonl").read_text())
    assert failure["id"] == "train/traj_0_to_2/001"
    assert failure["message"].startswith("traj_0_to_2.tfrecords: record 1 is damaged: the CRC-32C of its content")


def test_a_byte_flipped_after_listing_is_damage_and_another_record_a_change(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    path = dataset / "train" / "traj_0_to_2.tfrecords"
    flip(path, index_records(str(path)).places[2].offset + 5)
    write_records(dataset / "train" / "traj_3_to_3.tfrecords", [trajectory(9)])
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    lines = [json.loads(line) for line in (tmp_path / "frames" / "failures.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {
        "train/traj_0_to_2/002": "damaged",
        "train/traj_3_to_3/000": "changed",
    }


def test_a_file_cut_short_gives_the_records_before_and_one_failure(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "train" / "traj_0_to_2.tfrecords"
    path.write_bytes(path.read_bytes()[:-10])
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    assert any("traj_0_to_2.tfrecords: record 2 is cut short: it misses its last 10 bytes" in x for x in listener.said)
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert (record.counts["clips"], record.counts["failures_by_reason"]) == (5, {"truncated": 1})


def test_a_lost_file_is_missing(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    (dataset / "train" / "traj_3_to_3.tfrecords").unlink()
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert record.counts["failures_by_reason"] == {"missing": 1}


def test_an_update_reads_new_records_only_and_keeps_the_arrays(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    # The same records in files of other names and sizes, and one new record.
    (dataset / "train" / "traj_0_to_2.tfrecords").unlink()
    (dataset / "train" / "traj_3_to_3.tfrecords").unlink()
    write_records(dataset / "train" / "all.tfrecords", [trajectory(seed) for seed in (3, 4, 0, 1, 2)])
    read: list[str] = []
    original = ingest_shards.decode_task
    monkeypatch.setattr(ingest_shards, "decode_task", lambda task: read.append(task.clip.id) or original(task))
    listed(dataset, tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert read == ["train/all/001"]
    ingest(tmp_path / "m.jsonl", tmp_path / "fresh", SETTINGS, num_workers=0)
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar", "test-000000.tar"):
        assert (tmp_path / "frames" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    shards = FrameShards(tmp_path / "frames")
    assert shards.arrays("train/all/002")["action"][0].tolist() == [0.0, 0.5, 0.25, -1.0]


def test_files_are_hashed_once_while_unchanged(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvt_pipeline.manifest import digests

    listed(dataset, tmp_path / "m.jsonl")
    before = (tmp_path / "m.jsonl").read_bytes()
    read: list[Path] = []
    original = digests._digests_in
    monkeypatch.setattr(digests, "_digests_in", lambda path: read.append(path) or original(path))
    listed(dataset, tmp_path / "m.jsonl")
    assert read == []
    assert (tmp_path / "m.jsonl").read_bytes() == before


def test_records_of_another_dataset_are_one_clear_error(tmp_path: Path) -> None:
    path = write_records(tmp_path / "other.tfrecord", [example({"image/encoded": feature(b"jpeg")})])
    with pytest.raises(ManifestError, match="record 0 holds no camera 'image_aux1', only other data; this is not BAIR"):
        build_manifest(path, tmp_path / "m.jsonl")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ManifestError, match="holds no tfrecord file"):
        build_manifest(tmp_path / "nothing", tmp_path / "m.jsonl", ManifestSettings(kind="bair"))


@pytest.mark.skipif(not BAIR.is_dir(), reason="the clips are not there")
@pytest.mark.parametrize("camera", ["image_aux1", "image_main"])
def test_real_records_lie_in_the_shards_bit_for_bit(tmp_path: Path, camera: Any) -> None:
    listed(BAIR, tmp_path / "m.jsonl", camera=camera)
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert [len(shards.split(split)) for split in ("train", "val", "test")] == [3, 0, 2]
    for clip in shards.clips:
        split, name, record = clip.id.split("/")[-3:]
        path = str(BAIR / "softmotion30_44k" / split / f"{name}.tfrecords")
        expected = parse_trajectory(read_record(path, int(record), index_records(path)), camera, "")
        assert np.array_equal(shards.read(clip), expected.frames)
        found = shards.arrays(clip)
        assert found.keys() == expected.arrays.keys() == {"action", "endeffector_pos"}
        assert all(np.array_equal(found[name], expected.arrays[name]) for name in found)
