"""Files of rows next to videos and in tables: which are found, what they give, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import DEFAULTS, ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_video
from lvt_pipeline.workspace.clip_changes import changes_of_videos
from tests.listener import Listener

FRAMES = 6
ACTIONS = np.arange(2.0 * FRAMES).reshape(FRAMES, 2)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        grey = 40 * number + 8 * np.arange(FRAMES, dtype=np.uint8)
        frames = np.tile(grey[:, None, None, None], (1, 64, 64, 3))
        write_video(folder / f"clip-{number}.mp4", frames, 10)
        np.save(folder / f"clip-{number}.action.npy", ACTIONS + number)
    np.save(folder / "clip-0.gripper-open.npy", np.arange(FRAMES) % 2)
    return folder


def listed(source: Path, out: Path) -> list[Any]:
    build_manifest(source, out, ManifestSettings(split="none"))
    return read_manifest(out)


def frames_of(manifest: Path, settings: IngestSettings = DEFAULTS, max_failures: float = 0) -> FrameShards:
    ingest(manifest, manifest.with_suffix(""), settings, num_workers=0, max_failures=max_failures)
    return FrameShards(manifest.with_suffix(""))


def test_files_beside_a_video_are_its_arrays(videos: Path, tmp_path: Path) -> None:
    np.save(videos / "clip-9.action.npy", ACTIONS)  # of no video
    listener = Listener()
    build_manifest(videos, tmp_path / "m.jsonl", ManifestSettings(split="none"), progress=listener)
    assert listener.said[-1].endswith("left out: 1 file of another kind (.npy 1)")
    shards = frames_of(tmp_path / "m.jsonl")
    assert [sorted(shards.arrays(clip)) for clip in shards.clips] == [
        ["action", "gripper-open"],
        ["action"],
        ["action"],
    ]
    for number, clip in enumerate(shards.clips):
        rows = shards.arrays(clip)["action"]
        assert rows.dtype == np.float32
        assert np.array_equal(rows, ACTIONS + number)
    assert shards.arrays("clip-0")["gripper-open"].tolist() == [[0], [1], [0], [1], [0], [1]]
    by_pattern = listed(Path(f"{videos}/clip-*.mp4"), tmp_path / "n.jsonl")
    assert [clip.arrays for clip in by_pattern] == [clip.arrays for clip in read_manifest(tmp_path / "m.jsonl")]


def test_ranges_and_strides_keep_the_rows_of_their_frames(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,start,end,action\nvideos/clip-1.mp4,0.2,0.6,videos/clip-1.action.npy\n")
    listed(tmp_path / "t.csv", tmp_path / "m.jsonl")
    shards = frames_of(tmp_path / "m.jsonl", IngestSettings(geometry=GeometrySettings(stride=2)))
    assert shards.arrays(shards.clips[0])["action"].tolist() == [[5.0, 6.0], [9.0, 10.0]]
    listed(videos, tmp_path / "n.jsonl")
    cut = frames_of(tmp_path / "n.jsonl", IngestSettings(geometry=GeometrySettings(clip_seconds=0.3)))
    assert [cut.arrays(clip)["action"][0, 0] for clip in cut.clips] == [0.0, 6.0, 1.0, 7.0, 2.0, 8.0]


def write_csv(path: Path) -> None:
    path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in ACTIONS))


def write_plain_csv(path: Path) -> None:
    path.write_text("".join(f"{x},{y}\n" for x, y in ACTIONS))


def write_parquet(path: Path) -> None:
    columns = {"x": ACTIONS[:, 0], "y": [[value] for value in ACTIONS[:, 1]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", write_csv), ("b.csv", write_plain_csv), ("c.parquet", write_parquet)],
    ids=["named columns", "plain", "parquet"],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_column_of_a_table_names_files_of_rows(
    videos: Path, tmp_path: Path, name: str, write: Callable[[Path], None], form: str
) -> None:
    write(videos / name)
    rows = [
        {"path": "clip-0.mp4", "velocity": name, "note": "first"},
        {"path": "clip-1.mp4", "velocity": "", "note": ""},
    ]
    if form == "csv":
        text = "path,velocity,note\n" + "".join(f"{row['path']},{row['velocity']},{row['note']}\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (videos / f"table.{form}").write_text(text)
    clips = listed(videos / f"table.{form}", tmp_path / "m.jsonl")
    assert [dict(clip.metadata) for clip in clips] == [{"note": "first"}, {}]
    shards = frames_of(tmp_path / "m.jsonl")
    assert np.array_equal(shards.arrays("clip-0")["velocity"], ACTIONS)
    assert shards.arrays("clip-1") == {}
    again = listed(tmp_path / "m.jsonl", tmp_path / "n.jsonl")  # a manifest is a source
    assert [clip.fingerprint for clip in again] == [clip.fingerprint for clip in clips]


def test_another_number_of_rows_than_frames_is_a_failure(videos: Path, tmp_path: Path) -> None:
    np.save(videos / "clip-1.action.npy", ACTIONS[:-1])
    listed(videos, tmp_path / "m.jsonl")
    (failure,) = frames_of(tmp_path / "m.jsonl", max_failures=1).failures
    assert (failure.reason, failure.message) == ("row-count", "clip-1.mp4 has 6 frames and 5 rows of action")


def test_new_rows_are_a_change_of_their_clip_alone(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.jsonl"
    before = listed(videos, out)
    np.save(videos / "clip-1.action.npy", ACTIONS)
    assert str(changes_of_videos(str(videos), out, ManifestSettings(split="none"))) == "1 clip changed"
    (failure,) = frames_of(out, max_failures=1).failures
    assert (failure.id, failure.reason) == ("clip-1", "changed")
    after = listed(videos, out)
    same = [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)]
    assert same == [True, False, True]
    assert np.array_equal(frames_of(out).arrays("clip-1")["action"], ACTIONS)


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (None, "missing", "clip-1.action.npy does not exist"),
        (b"\x93NUMPY nonsense", "unreadable", "clip-1.action.npy does not hold rows of numbers"),
        (b"", "unreadable", "clip-1.action.npy does not hold rows of numbers"),
    ],
    ids=["missing", "damaged", "empty"],
)
def test_files_that_cannot_be_read_cost_their_clip(
    videos: Path, tmp_path: Path, content: bytes | None, reason: str, message: str
) -> None:
    rows = [f"clip-{number}.mp4,clip-{number}.action.npy\n" for number in (0, 1)]
    (videos / "t.csv").write_text("".join(["path,action\n", *rows]))
    (videos / "clip-1.action.npy").unlink()
    if content is not None:
        (videos / "clip-1.action.npy").write_bytes(content)
    listed(videos / "t.csv", tmp_path / "m.jsonl")
    (failure,) = frames_of(tmp_path / "m.jsonl", max_failures=1).failures
    assert (failure.id, failure.reason) == ("clip-1", reason)
    assert failure.message.endswith(message)


def test_wrong_names_are_refused_with_their_line(videos: Path, tmp_path: Path) -> None:
    (videos / "t.csv").write_text("path,my action\nclip-0.mp4,clip-0.action.npy\n")
    with pytest.raises(ManifestError, match=r"t.csv:2: 'my action': 'clip-0.action.npy' does not name an array"):
        listed(videos / "t.csv", tmp_path / "m.jsonl")
    (videos / "t.jsonl").write_text('{"path": "clip-0.mp4", "arrays": ["clip-0.action.npy"]}\n')
    with pytest.raises(ManifestError, match=r"t.jsonl:1: the arrays .* are not a JSON object"):
        listed(videos / "t.jsonl", tmp_path / "m.jsonl")
