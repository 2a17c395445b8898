"""RLDS datasets from listing to frame shards: shapes from `features.json`, cameras, instructions, row counts."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.clips import Clip
from tests.listener import Listener
from tests.record_files import example, feature, message, solid, write_records

SAMPLE = Path(__file__).parents[2] / "shared" / "rlds"
STEPS = 4


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": dtype, "encoding": encoding}}


def image(*shape: int) -> dict[str, Any]:
    return {"image": {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": "uint8"}}


def nested(**features: Any) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


FEATURES = nested(
    steps={
        "sequence": {
            "feature": nested(
                observation=nested(
                    top=image(64, 64, 3),
                    wrist=image(64, 64, 3),
                    depth=image(64, 64, 1),
                    state=tensor("float64", 2, 2),
                    packed=tensor("int32", 2, encoding="zlib"),
                    points={"sequence": {"feature": tensor("float32", 3)}},
                ),
                action=tensor("int64"),
                reward=tensor("float32"),
                is_last=tensor("bool"),
                language_instruction={"text": {}},
            )
        }
    },
    episode_metadata=nested(camera=image(8, 8, 3)),
)


def strings(values: Sequence[bytes]) -> bytes:
    return message(1, b"".join(message(1, value) for value in values))


def picture(pixels: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def episode(seed: int, actions: int = STEPS) -> bytes:
    frames = [solid(seed, range(STEPS), camera) for camera in (0, 1)]
    packed = [zlib.compress(np.array([step, -seed], "<i4").tobytes()) for step in range(STEPS)]
    return example(
        {
            "steps/observation/top": strings([picture(frame, "PNG") for frame in frames[0]]),
            "steps/observation/wrist": strings([picture(frame, "JPEG") for frame in frames[1]]),
            "steps/observation/state": feature([seed + number / 4 for number in range(4 * STEPS)]),
            "steps/observation/packed": strings(packed),
            "steps/action": feature(list(range(actions))),
            "steps/reward": feature([0.5] * STEPS),
            "steps/is_last": feature([0] * (STEPS - 1) + [1]),
            "steps/language_instruction": strings([f"push  block {seed}".encode()] * STEPS),
        }
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "pushing" / "1.0.0"
    write_records(root / "pushing-train.tfrecord-00000-of-00002", [episode(0), episode(1)])
    write_records(root / "pushing-train.tfrecord-00001-of-00002", [episode(2)])
    write_records(root / "pushing-val.tfrecord-00000-of-00001", [episode(3)])
    (root / "features.json").write_text(json.dumps(FEATURES))
    return root


def listed(source: Path, out: Path, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings))
    return read_manifest(out)


def test_a_folder_is_recognised_and_its_file_names_give_splits(dataset: Path, tmp_path: Path) -> None:
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    assert listener.said[:2] == [
        f"{dataset}: recognised as an RLDS dataset",
        f"{dataset}: camera top; --camera NAME or all takes others: wrist",
    ]
    assert [(clip.id, clip.split, clip.label) for clip in read_manifest(tmp_path / "m.jsonl")] == [
        ("pushing-train-00000/000", "train", "push block 0"),
        ("pushing-train-00000/001", "train", "push block 1"),
        ("pushing-train-00001/000", "train", "push block 2"),
        ("pushing-val-00000/000", "val", "push block 3"),
    ]
    assert {clip.label for clip in listed(dataset, tmp_path / "n.jsonl", label="none")} == {None}


def test_features_decide_shapes_and_ragged_ones_are_left_out(dataset: Path, tmp_path: Path) -> None:
    listed(dataset.parent, tmp_path / "m.jsonl", camera="all")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    arrays = shards.arrays("1.0.0/pushing-train-00001/000/top")
    assert {name: (rows.shape, str(rows.dtype)) for name, rows in arrays.items()} == {
        "action": ((STEPS, 1), "int64"),
        "state": ((STEPS, 4), "float32"),
        "packed": ((STEPS, 2), "int32"),
        "reward": ((STEPS, 1), "float32"),
    }
    assert arrays["state"][1].tolist() == [3.0, 3.25, 3.5, 3.75]
    assert arrays["packed"].tolist() == [[step, -2] for step in range(STEPS)]
    assert np.array_equal(shards.read("1.0.0/pushing-train-00001/000/top"), solid(2, range(STEPS)))
    wrist = shards.read("1.0.0/pushing-train-00001/000/wrist").astype(int)  # a JPEG
    assert abs(wrist - solid(2, range(STEPS), 1)).max() <= 2


def test_both_cameras_of_an_episode_are_in_one_split(dataset: Path, tmp_path: Path) -> None:
    clips = listed(dataset, tmp_path / "m.jsonl", camera="wrist, top", split="hash")
    for one, other in zip(clips[::2], clips[1::2], strict=True):
        assert (one.camera, other.camera, one.split) == ("wrist", "top", other.split)


def test_an_array_without_a_row_per_frame_is_a_failure_of_its_episode(dataset: Path, tmp_path: Path) -> None:
    write_records(dataset / "pushing-val.tfrecord-00000-of-00001", [episode(3, actions=3)])
    listed(dataset, tmp_path / "m.jsonl")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    assert record.counts["failures_by_reason"] == {"row-count": 1}
    assert FrameShards(tmp_path / "frames").failures[0].message == (
        "pushing-val.tfrecord-00000-of-00001: record 0 has 4 frames and 3 rows of action"
    )


def test_wrong_datasets_are_one_clear_line(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"there is no camera 'front'; the dataset has top, wrist; all takes each"):
        listed(dataset, tmp_path / "m.jsonl", camera="front")
    (dataset / "features.json").write_text(json.dumps(nested(steps=nested(action=tensor("float32", 7)))))
    with pytest.raises(ManifestError, match=r"features.json names no camera"):
        listed(dataset, tmp_path / "m.jsonl")
    (dataset / "features.json").write_text(json.dumps({"featuresDict": 5}))
    with pytest.raises(ManifestError, match=r"features.json does not describe the features of an RLDS dataset"):
        listed(dataset, tmp_path / "m.jsonl")
    (dataset / "features.json").unlink()
    with pytest.raises(ManifestError, match=r"this is not BAIR's format, and RLDS has a features.json next to"):
        listed(dataset, tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match=r"features.json does not exist"):
        listed(dataset, tmp_path / "m.jsonl", kind="rlds")


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample is not here")
def test_real_episodes_keep_actions_and_instructions(tmp_path: Path) -> None:
    clips = listed(SAMPLE, tmp_path / "m.jsonl")
    assert len(clips) == 25
    assert clips[0].label == "put cup from counter or drying rack into sink"
    assert {clip.split for clip in clips} == {"train", "val", "test"}  # the dataset names a single split
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    assert (record.counts["frames"], record.counts["failures"]) == (250, 0)
    arrays = FrameShards(tmp_path / "frames").arrays(clips[0].id)
    assert arrays["action"].shape == arrays["state"].shape == (10, 7)
