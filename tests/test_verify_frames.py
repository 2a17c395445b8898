"""Damaged frames are never used without notice: they are found at the first read, listed, and made again."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.errors import ArtefactError, MismatchError
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.verify import verify_frames
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.repair import repair_frames
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import ManifestSettings, build_manifest
from lvt_pipeline.video.write import write_mp4


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def frames_of(root: Path, codec: Any = "raw") -> Path:
    samples = [FrameSample.from_array(f"c{number}", pixels(number), codec=codec) for number in range(3)]
    write_frames(root, samples, stage="test", settings={}, inputs={}, clips_per_shard=2)
    return root


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("codec", ["raw", "png", "webp", "jpeg"])
@pytest.mark.parametrize("where", [600, 1700, 2100, -9000])
def test_a_flipped_bit_is_found_before_a_frame_is_used(tmp_path: Path, codec: str, where: int) -> None:
    root = frames_of(tmp_path / "frames", codec)
    flip(root / "train-000000.tar", where)
    shards = FrameShards(root)
    for read in (shards.read, lambda name: shards.payload(shards[name])):
        with pytest.raises(ArtefactError, match=r"train-000000\.tar is damaged: .*lvt verify .* --repair"):
            read("c0")
    assert len(shards.read("c2")) == 4  # another shard
    report = verify_frames(root)
    assert [(problem.shard, problem.clips) for problem in report.problems] == [("train-000000.tar", ["c0", "c1"])]


def test_a_shard_is_hashed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvt_pipeline.frames import verify

    hashed: list[str] = []
    original = verify.digest_file
    monkeypatch.setattr(verify, "digest_file", lambda path: hashed.append(path.name) or original(path))
    shards = FrameShards(frames_of(tmp_path / "frames"))
    for name in ("c0", "c1", "c0", "c2"):
        shards.read(name)
        pickle.loads(pickle.dumps(shards)).read(name)
    assert hashed == ["train-000000.tar", "train-000001.tar"]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    changed = change(content)
    size = len(path.read_bytes())
    text = json.dumps(content if changed is None else changed)
    path.write_text(text + " " * (size - len(text)))  # the record knows the size


def entry(name: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content["clips"][0].__setitem__(name, value)


@pytest.mark.parametrize(
    "change",
    [
        entry("offset", 1024),
        entry("offset", -1),
        entry("offset", 10**15),
        entry("nbytes", 10**15),
        entry("num_frames", 10**12),
        entry("height", 10**9),
        entry("width", 16.0),
        entry("fps", "ten"),
        entry("fps", 0),
        entry("codec", "gif"),
        entry("split", "holdout"),
        entry("label", [1]),
        entry("id", "another"),
        entry("key", "c1"),
        entry("fingerprint", 7),
        entry("arrays", {"action": [0, 10**12]}),
        entry("arrays", [1, 2]),
        entry("part", {"of": "x"}),
        entry("notes", [{"kind": "rate"}]),
        entry("unknown", 1),
        lambda content: content["clips"].pop(),
        lambda content: content.__setitem__("shard", "../x.tar"),
        lambda content: content.__setitem__("digest", None),
        lambda content: content.__setitem__("format", [1]),
        lambda content: [content],
        lambda content: "text",
        lambda content: content.__setitem__("failures", [{"id": 1}]),
        lambda content: content.__setitem__("clips", {"a": 1}),
    ],
)
def test_a_receipt_edited_by_hand_is_one_line(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    root = frames_of(tmp_path / "frames")
    edit(root / "train-000000.json", change)
    with pytest.raises(ArtefactError) as caught:
        FrameShards(root).read("c0")
        FrameShards(root).read("c1")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def videos(root: Path, **settings: Any) -> Path:
    for number in range(3):
        (root / "v").mkdir(parents=True, exist_ok=True)
        write_mp4(root / "v" / f"{number}.mp4", pixels(number), fps=10)
    build_manifest(root / "v", root / "m.jsonl", ManifestSettings(**settings))
    ingest(root / "m.jsonl", root / "frames", IngestSettings(clips_per_shard=1), num_workers=0)
    return root / "frames"


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != "provenance.json"}


def test_damaged_shards_are_made_again_from_their_videos(tmp_path: Path) -> None:
    root = videos(tmp_path)
    before = contents(root)
    damaged = sorted(root.glob("*.tar"))
    flip(damaged[0], 1200)
    damaged[1].unlink()
    damaged[2].with_suffix(".json").write_bytes(b"\xff")
    report = repair_frames(root, tmp_path / "m.jsonl", num_workers=0)
    assert {problem.shard for problem in report.problems} == {path.name for path in damaged}
    assert contents(root) == before
    assert verify_frames(root).problems == []
    assert repair_frames(root, tmp_path / "m.jsonl").problems == []


def test_repair_needs_the_manifest_of_the_frames(tmp_path: Path) -> None:
    root = videos(tmp_path)
    flip(next(root.glob("*.tar")), 1200)
    shutil.rmtree(tmp_path / "v", ignore_errors=True)
    (tmp_path / "w").mkdir()
    write_mp4(tmp_path / "w" / "0.mp4", pixels(9), fps=10)
    build_manifest(tmp_path / "w", tmp_path / "n.jsonl")
    with pytest.raises(MismatchError, match="give the right manifest"):
        repair_frames(root, tmp_path / "n.jsonl")


def test_clips_are_never_copied_from_a_damaged_shard(tmp_path: Path) -> None:
    root = videos(tmp_path, split="none")
    sound = FrameShards(root)
    expected = {clip.id: sound.read(clip) for clip in sound.clips}
    for shard in root.glob("*.tar"):
        flip(shard, -12_000)
    ingest(tmp_path / "m.jsonl", root, IngestSettings(clips_per_shard=3), num_workers=0)
    for clip_id, frames in expected.items():
        assert np.array_equal(FrameShards(root).read(clip_id), frames)


def test_the_command_lists_problems_and_repairs_them(tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]) -> None:
    root = videos(tmp_path)
    code, out, _ = lvt("verify", str(root))
    assert (code, "is sound: 3 shards" in out) == (0, True)
    flip(next(root.glob("*.tar")), 1200)
    code, _, err = lvt("verify", str(root))
    assert (code, "1 damaged shard" in err) == (1, True)
    repair = ["verify", str(root), "--repair", "--manifest", str(tmp_path / "m.jsonl"), "--workers", "0"]
    code, out, _ = lvt(*repair)
    assert (code, "is sound again: 1 of 3 shards" in out) == (0, True)
