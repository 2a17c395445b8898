"""Folders of pictures and GIFs as clips: order, content, pixels, splits, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import Clip, build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.geometry import lanczos_square
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_video
from tests.conftest import moving_square
from tests.listener import Listener

SETTINGS = IngestSettings(geometry=GeometrySettings(size=16))


def pictures(folder: Path, frames: np.ndarray, pattern: str = "{:04d}.png", first: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(folder / pattern.format(number), quality=95)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number in range(2):
            pictures(tmp_path / "d" / split / "pour" / f"clip{number}", moving_square(number + 5 * (split == "test")))
    return tmp_path / "d"


def listed(source: Path, out: Path, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings))
    return read_manifest(out)


def test_a_folder_of_pictures_is_a_clip(dataset: Path, tmp_path: Path) -> None:
    listener = Listener()
    build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    assert listener.said == [f"{dataset}: recognised as folders of pictures"]
    clips = read_manifest(tmp_path / "m.jsonl")
    assert [(clip.id, clip.split, clip.label, clip.kind, clip.fps) for clip in clips] == [
        ("test/pour/clip0", "test", "pour", "frames", 25.0),
        ("test/pour/clip1", "test", "pour", "frames", 25.0),
        ("train/pour/clip0", "train", "pour", "frames", 25.0),
        ("train/pour/clip1", "train", "pour", "frames", 25.0),
    ]
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=1)
    shards = FrameShards(tmp_path / "frames")
    expected = np.stack([lanczos_square(frame, 16) for frame in moving_square(1)])
    assert np.array_equal(shards.read("train/pour/clip1"), expected)
    assert shards["train/pour/clip1"].fps == 25.0


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    frames = moving_square(3, num_frames=12)
    pictures(tmp_path / "d" / "a", frames, "frame{}.png")  # frame10 after frame9
    listed(tmp_path / "d", tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    expected = np.stack([lanczos_square(frame, 16) for frame in frames])
    assert np.array_equal(FrameShards(tmp_path / "frames").read("a"), expected)


def test_one_folder_of_pictures_alone_is_one_clip(tmp_path: Path) -> None:
    pictures(tmp_path / "walk", moving_square(1))
    assert [clip.id for clip in listed(tmp_path / "walk", tmp_path / "m.jsonl")] == ["walk"]


def test_jpeg_grey_and_transparent_pictures_are_read(tmp_path: Path) -> None:
    frame = moving_square(1)[0]
    pictures(tmp_path / "d" / "jpeg", frame[None], "{}.JPG")
    (tmp_path / "d" / "grey").mkdir()
    Image.fromarray(frame).convert("L").save(tmp_path / "d" / "grey" / "1.png")
    (tmp_path / "d" / "clear").mkdir()
    Image.fromarray(frame).convert("RGBA").save(tmp_path / "d" / "clear" / "1.png")
    listed(tmp_path / "d", tmp_path / "m.jsonl")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert record.counts["failures"] == 0
    shards = FrameShards(tmp_path / "frames")
    expected = lanczos_square(frame, 16).astype(int)
    assert np.array_equal(shards.read("clear")[0], expected)
    assert np.abs(shards.read("jpeg")[0] - expected).mean() < 2
    grey = shards.read("grey")[0]
    assert (grey[..., 0] == grey[..., 1]).all()


def test_content_and_order_decide_and_names_do_not(tmp_path: Path) -> None:
    frames = moving_square(1)
    pictures(tmp_path / "d" / "a", frames)
    pictures(tmp_path / "d" / "b", frames, "shot_{}.png", first=100)
    pictures(tmp_path / "d" / "c", frames[::-1])
    a, b, c = listed(tmp_path / "d", tmp_path / "m.jsonl", split="none")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert listed(tmp_path / "d", tmp_path / "m.jsonl", fps=12.5)[0].fingerprint != a.fingerprint


def test_a_picture_changed_after_listing_is_a_change(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    Image.fromarray(moving_square(50)[0]).save(dataset / "train/pour/clip0/0003.png")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    failure = json.loads((tmp_path / "frames" / "failures.jsonl").read_text())
    assert (failure["id"], failure["reason"]) == ("train/pour/clip0", "changed")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("words"), "0003.png is not a picture, or is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "0003.png is not a picture, or is damaged"),
        (lambda path: Image.new("RGB", (30, 20)).save(path), "0003.png is 30x20, the pictures before it 64x48"),
        (lambda path: Image.new("I;16", (64, 48)).save(path), "0003.png has pixels of type I;16"),
    ],
)
def test_a_spoilt_picture_fails_its_clip_and_is_named(dataset: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(dataset / "train/pour/clip0/0003.png")
    listed(dataset, tmp_path / "m.jsonl")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert (record.counts["clips"], record.counts["failures"]) == (3, 1)
    assert message in json.loads((tmp_path / "frames" / "failures.jsonl").read_text())["message"]


def test_a_lost_or_emptied_folder_is_a_failure_with_a_reason(dataset: Path, tmp_path: Path) -> None:
    listed(dataset, tmp_path / "m.jsonl")
    for path in (dataset / "train/pour/clip0").iterdir():
        path.unlink()
    (dataset / "train/pour/clip1").rename(dataset / "elsewhere")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    lines = [json.loads(line) for line in (tmp_path / "frames" / "failures.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["no-video", "missing"]


def test_folders_of_pictures_and_videos_stand_in_one_csv(dataset: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "d" / "a.gif", moving_square(4), fps=10)
    (tmp_path / "clips.csv").write_text("path,label,end\nd/train/pour/clip0,x,0.2\nd/a.gif,y,\n")
    clips = listed(tmp_path / "clips.csv", tmp_path / "m.jsonl", split="none", fps=20)
    assert [(clip.kind, clip.fps, clip.end) for clip in clips] == [("frames", 20.0, 0.2), ("video", None, None)]
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert [(clip.num_frames, clip.fps) for clip in shards.clips] == [(4, 20.0), (12, 10.0)]


def test_a_gif_gives_its_frames_exactly(tmp_path: Path) -> None:
    # A palette of few colours, so that the GIF itself loses nothing.
    frames = np.zeros((6, 16, 16, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[number : number + 4, 2:8] = (250, 40 * number, 10)
    write_video(tmp_path / "d" / "a.gif", frames, fps=10)
    listed(tmp_path / "d", tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert np.array_equal(shards.read("a"), frames)
    assert shards["a"].decoder.startswith("pyav")


def test_a_folder_without_pictures_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ManifestError, match=r"holds no picture: .* ends in one of .*\.png"):
        build_manifest(tmp_path / "d", tmp_path / "m.jsonl", ManifestSettings(kind="frames"))
