"""LeRobot v3 folders from listing to frame shards: cameras, rows, shared videos, appending, and every refusal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lvt_pipeline.errors import LVTError, ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.episodes import shared_video
from lvt_pipeline.video.read import read_clip
from lvt_pipeline.video.settings import GeometrySettings
from tests.listener import Listener

SHARED = Path(__file__).parents[2] / "shared"
CAMERAS = ("observation.images.top", "observation.images.wrist")
LENGTHS = (4, 6, 3)  # of the episodes in the first video file; one more is in the second
FPS = 30


def write_video(path: Path, lengths: Sequence[int], seed: int, codec: str) -> None:
    """Noise of low frequency, so that every frame is recognisable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"qscale": "2", "flags": "+qscale"})
        stream.width = stream.height = 64
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # many threads for small pictures only wait
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = "yuv420p", 5, 2 if codec == "libx264" else 0
        for number in range(sum(lengths)):
            small = np.random.default_rng([seed, number]).integers(0, 256, (4, 4, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.kron(small, np.ones((16, 16, 1), np.uint8)), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_table(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@dataclass
class Rows:
    """What the tables of a dataset hold, by column."""

    episodes: dict[str, list[Any]]
    frames: dict[str, list[Any]]


def rows_of(lengths: Sequence[int], later: int) -> Rows:
    """Tables of episodes of which all but the last `later` are in the first file."""
    starts = np.cumsum([0, *lengths])
    shared = len(lengths) - later
    first = [int(starts[i] - (starts[shared] if i >= shared else 0)) for i in range(len(lengths))]
    episodes: dict[str, list[Any]] = {
        "episode_index": [*range(len(lengths))],
        "tasks": [[f"push block {number % 2}"] for number in range(len(lengths))],
        "length": [*lengths],
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
    }
    for camera in CAMERAS:
        episodes |= {
            f"videos/{camera}/chunk_index": [0] * len(lengths),
            f"videos/{camera}/file_index": [int(number >= shared) for number in range(len(lengths))],
            f"videos/{camera}/from_timestamp": [start / FPS for start in first],
            f"videos/{camera}/to_timestamp": [(s + n) / FPS for s, n in zip(first, lengths, strict=True)],
        }
    indices = [(episode, frame) for episode, length in enumerate(lengths) for frame in range(length)]
    frames = {
        "action": [[episode + frame / 8, float(frame)] for episode, frame in indices],
        "observation.state": [[1.5 * frame] for _, frame in indices],
        "next.done": [frame == lengths[episode] - 1 for episode, frame in indices],
        "episode_index": [episode for episode, _ in indices],
        "frame_index": [frame for _, frame in indices],
        "task_index": [episode % 2 for episode, _ in indices],
    }
    return Rows(episodes, frames)


def write_info(root: Path, **changes: Any) -> None:
    video = {"dtype": "video", "shape": [64, 64, 3]}
    depth = video | {"info": {"video.is_depth_map": True}}
    counted = {name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "task_index")}
    features = {
        **dict.fromkeys(CAMERAS, video),
        "observation.images.depth": depth,
        "action": {"dtype": "float32", "shape": [2]},
        "observation.state": {"dtype": "float32", "shape": [1]},
        "next.done": {"dtype": "bool", "shape": [1]},
        **counted,
    }
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "splits": {"train": "0:100"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info | changes))


def write_tables(root: Path, rows: Rows) -> None:
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", rows.episodes)
    write_table(root / "data/chunk-000/file-000.parquet", rows.frames)


def video_of(root: Path, camera: int = 0, file: int = 0) -> Path:
    return root / "videos" / CAMERAS[camera] / f"chunk-000/file-{file:03d}.mp4"


def write_dataset(root: Path, lengths: Sequence[int], later: int = 1, codec: str = "mpeg4") -> Path:
    write_info(root)
    write_tables(root, rows_of(lengths, later))
    shared = len(lengths) - later
    for camera in (0, 1):
        write_video(video_of(root, camera), lengths[:shared], camera, codec)
        if later:
            write_video(video_of(root, camera, 1), lengths[shared:], camera + 2, codec)
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "pushing", (*LENGTHS, 2))


def listed(source: Path, out: Path, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings))
    return read_manifest(out)


def test_a_folder_is_recognised_and_every_episode_is_a_clip_of_the_first_camera(dataset: Path, tmp_path: Path) -> None:
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    assert listener.said == [
        f"{dataset}: recognised as a LeRobot dataset",
        f"{dataset}: camera top; --camera NAME or all takes others: wrist",
    ]
    clips = read_manifest(tmp_path / "m.jsonl")
    assert [(clip.id, clip.label, clip.fps) for clip in clips] == [
        (f"episode_{number:06d}", f"push block {number % 2}", FPS) for number in range(4)
    ]
    assert {clip.split for clip in clips} == {"train", "val", "test"}  # the dataset names a single split
    above = listed(tmp_path, tmp_path / "n.jsonl", camera="wrist", label="none")
    assert [(clip.id, clip.label, clip.camera) for clip in above[:1]] == [("pushing/episode_000000", None, CAMERAS[1])]
    write_info(dataset, splits={"train": "0:3", "val": "3:4"})
    assert [clip.split for clip in listed(dataset, tmp_path / "o.jsonl")] == ["train"] * 3 + ["val"]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_are_those_of_the_whole_video_and_rows_those_of_the_table(tmp_path: Path, codec: str) -> None:
    # Episodes begin between key frames, and x264 stores frames in another order than they are shown.
    dataset = write_dataset(tmp_path / "pushing", (*LENGTHS, 2), codec=codec)
    clips = listed(dataset, tmp_path / "m.jsonl", camera="all")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert len(shards) == 8
    for one, other in zip(clips[::2], clips[1::2], strict=True):
        assert (one.split, one.record) == (other.split, other.record)
        assert one.fingerprint != other.fingerprint
    for number, name in enumerate(("top", "wrist")):
        whole = decode_clip(str(video_of(dataset, number)), None, None, GeometrySettings(decoder="pyav")).frames
        begin = 0
        for episode, length in enumerate(LENGTHS):
            clip = shards[f"episode_{episode:06d}/{name}"]
            assert np.array_equal(shards.read(clip), whole[begin : begin + length])
            begin += length
            arrays = shards.arrays(clip)
            assert arrays["action"].tolist() == [[episode + frame / 8, frame] for frame in range(length)]
            assert arrays["done"].tolist() == [[frame == length - 1] for frame in range(length)]
            assert {name: str(rows.dtype) for name, rows in arrays.items()} == {
                "action": "float32",
                "state": "float32",
                "done": "bool",
            }


def test_the_episodes_of_a_video_are_decoded_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "pushing", (5, 5, 10), later=0)  # as LeRobot: each begins with a key frame
    clips = listed(dataset, tmp_path / "m.jsonl")
    opened: list[str] = []
    decoded: list[int | None] = []

    def open_container(path: str) -> Any:
        opened.append(path)
        return original(path)

    def count(video: shared_video.SharedVideo, first: int, stop: int) -> Any:
        for frame in whole(video, first, stop):
            decoded.append(frame.pts)
            yield frame

    original, whole = shared_video.open_container, shared_video.SharedVideo._decoded
    shared_video.open_shared.cache_clear()
    monkeypatch.setattr(shared_video, "open_container", open_container)
    monkeypatch.setattr(shared_video.SharedVideo, "_decoded", count)
    for clip in clips:
        read_clip(clip, GeometrySettings(), tmp_path)
    assert len(opened) == 2  # once for the digests, once to decode
    assert len(decoded) == len({*decoded}) == 20


def test_appending_an_episode_changes_no_other_clip(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "pushing", LENGTHS, later=0)
    before = listed(dataset, tmp_path / "m.jsonl", split="none")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    shutil.rmtree(dataset)
    write_dataset(dataset, (*LENGTHS, 4), later=0)
    after = listed(dataset, tmp_path / "m.jsonl", split="none")
    assert [clip.fingerprint for clip in after[:3]] == [clip.fingerprint for clip in before]
    assert len({clip.fingerprint for clip in after}) == 4
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    assert len(FrameShards(tmp_path / "frames")) == 4
    rows = rows_of((*LENGTHS, 4), 0)
    rows.frames["action"][0] = [9.0, 9.0]
    write_tables(dataset, rows)
    changed = listed(dataset, tmp_path / "m.jsonl", split="none")
    same = [one.fingerprint == other.fingerprint for one, other in zip(after, changed, strict=True)]
    assert same == [False, True, True, True]


def test_ranges_that_disagree_with_rows_or_frames_are_named_failures(dataset: Path, tmp_path: Path) -> None:
    rows = rows_of((*LENGTHS, 2), 1)
    rows.episodes[f"videos/{CAMERAS[0]}/to_timestamp"][0] += 1 / FPS  # one frame more than rows
    rows.episodes["length"][1] = 5  # one less than the table and the video have
    rows.episodes[f"videos/{CAMERAS[0]}/from_timestamp"][2] += 1 / FPS  # beyond the end of the video
    rows.episodes[f"videos/{CAMERAS[0]}/to_timestamp"][2] += 1 / FPS
    write_tables(dataset, rows)
    listed(dataset, tmp_path / "m.jsonl", split="none")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0, max_failures=1)
    assert record.counts["failures_by_reason"] == {"row-count": 3}
    assert [failure.message.partition(".mp4 ")[2] for failure in FrameShards(tmp_path / "frames").failures] == [
        "has 5 frames and 4 rows of its table",
        "has 6 frames and 5 rows of its table",
        "has 13 frames, this recording ends with frame 14",
    ]


def test_a_missing_video_costs_its_own_episodes(dataset: Path, tmp_path: Path) -> None:
    video_of(dataset, 0, 1).unlink()
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", ManifestSettings(split="none"), progress=listener)
    assert "file-001.mp4 does not exist; its clip episode_000003 will be recorded as missing" in listener.said[-1]
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0)
    assert (record.counts["clips"], record.counts["failures_by_reason"]) == (3, {"missing": 1})


def test_what_changed_after_listing_is_a_failure(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl", split="none")
    write_video(video_of(dataset), LENGTHS, 7, "mpeg4")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", num_workers=0, max_failures=1)
    assert record.counts["failures_by_reason"] == {"changed": 3}


def test_wrong_folders_are_one_clear_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.jsonl"
    with pytest.raises(ManifestError, match=r"there is no camera 'front'; the dataset has top, wrist; all takes each"):
        listed(dataset, out, camera="front")
    with pytest.raises(ManifestError, match=r"videos is a part of the LeRobot dataset .*; give .*pushing, or take"):
        listed(dataset / "videos", out)
    assert len(listed(dataset / "videos", out, kind="folder")) == 4
    with pytest.raises(ManifestError, match=r"holds no LeRobot dataset: there is no meta/info.json"):
        listed(dataset / "videos", out, kind="lerobot")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(LVTError, match=r"Parquet needs pyarrow .* pip install 'lvt-pipeline\[parquet\]'"):
            listed(dataset, out)
    write_info(dataset, codebase_version="v2.1")
    with pytest.raises(ManifestError, match=r"has codebase_version v2.1, lvt reads v3; .*convert_dataset_v21_to_v30 "):
        listed(dataset, out)
    write_info(dataset, features={"action": {"dtype": "float32", "shape": [2]}})
    with pytest.raises(ManifestError, match=r"names no camera that is stored as video"):
        listed(dataset, out)
    write_info(dataset, fps="fast")
    with pytest.raises(ManifestError, match=r"are not as in LeRobot v3"):
        listed(dataset, out)
    write_info(dataset)
    episodes = dataset / "meta/episodes/chunk-000/file-000.parquet"
    episodes.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ManifestError, match=r"file-000.parquet is a Git LFS pointer; fetch the file"):
        listed(dataset, out)
    episodes.unlink()
    with pytest.raises(ManifestError, match=r"has no episode"):
        listed(dataset, out)


@pytest.mark.skipif(not (SHARED / "lerobot").exists(), reason="the sample is not here")
def test_a_real_dataset_shows_the_frames_and_actions_of_its_rlds_original(tmp_path: Path) -> None:
    listed(SHARED / "lerobot", tmp_path / "m.jsonl", camera="all")
    listed(SHARED / "rlds", tmp_path / "r.jsonl", camera="image_0,image_1")
    ingest(tmp_path / "m.jsonl", tmp_path / "lerobot", num_workers=0)
    ingest(tmp_path / "r.jsonl", tmp_path / "rlds", num_workers=0)
    ours, theirs = FrameShards(tmp_path / "lerobot"), FrameShards(tmp_path / "rlds")
    assert (len(ours), len(ours.failures)) == (24, 0)
    for clip in ours.clips:
        _, episode, camera = clip.id.split("/")
        other = f"bridge_dataset/1.0.0/bridge_dataset-train-00000/{episode[-3:]}/{camera}"
        assert clip.label == theirs[other].label
        for name in ("action", "state"):
            assert np.array_equal(ours.arrays(clip)[name], theirs.arrays(other)[name])
        error = np.abs(ours.read(clip).astype(int) - theirs.read(other))
        assert error.mean(axis=(1, 2, 3)).max() < 6  # the loss of AV1; another frame of the episode differs more
        if clip.num_frames > 1:
            shifted = np.abs(ours.read(clip)[1:].astype(int) - theirs.read(other)[:-1])
            assert error.mean() < shifted.mean()
