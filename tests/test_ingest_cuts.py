"""Ingest where one video gives several clips and shards are full by size: whole, stable, resumed, incremental."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest import shards as ingest_shards
from lvt_pipeline.jobs.ingest import space as disk_space
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4
from lvt_pipeline.workspace.why import _changed_source
from tests.test_ingest import Decodes, contents, listed, video

PLAIN = GeometrySettings(size=16)
CUT = IngestSettings(geometry=GeometrySettings(size=16, clip_seconds=0.5), clips_per_shard=2)
# A frame takes 768 bytes, so 13 frames fill a shard, and 12 do not, though they do with the header of their file.
BY_SIZE = IngestSettings(geometry=PLAIN, shard_mb=0.0093)
BOTH = IngestSettings(geometry=GeometrySettings(size=16, clip_seconds=0.5), shard_mb=0.009, codec="webp")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for index, num_frames in enumerate([12, 6, 3, 14, 6]):
        video(tmp_path / "videos" / "train" / f"{index}.mp4", index, num_frames)
    video(tmp_path / "videos" / "val" / "v.mp4", 10, 7)
    return tmp_path / "videos"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    return Decodes(monkeypatch)


def test_one_line_gives_several_clips_that_are_the_frames_of_the_video(videos: Path, tmp_path: Path) -> None:
    record = ingest(listed(videos), tmp_path / "frames", CUT, num_workers=1)
    shards = FrameShards(tmp_path / "frames")
    assert [clip.id for clip in shards.clips if clip.id.startswith("train/0")] == [
        "train/0@00000.000",
        "train/0@00000.500",
        "train/0@00001.000",
    ]
    whole = decode_clip(str(videos / "train" / "0.mp4"), None, None, PLAIN).frames
    pieces = [shards.read(f"train/0@{begins}") for begins in ("00000.000", "00000.500", "00001.000")]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert record.counts["frames"] == 48
    assert len({clip.fingerprint for clip in shards.clips}) == len(shards.clips)
    # Pieces of one video lie in one shard.
    for clip in shards.clips:
        assert clip.part is not None
        assert len({other.shard for other in shards.clips if other.part and other.part.of == clip.part.of}) == 1


def test_a_video_whose_pieces_are_not_all_there_is_made_again(videos: Path, tmp_path: Path, decodes: Decodes) -> None:
    out = tmp_path / "frames"
    ingest(listed(videos), out, CUT, num_workers=0)
    before = contents(out)
    receipt = json.loads((out / "train-000000.json").read_text())
    receipt["clips"] = [clip for clip in receipt["clips"] if clip["id"] != "train/0@00000.500"]
    (out / "train-000000.json").write_text(json.dumps(receipt))
    decodes.names.clear()
    ingest(listed(videos), out, CUT, num_workers=0)
    assert decodes.names == ["0", "1"]  # nothing of a shard that differs from its receipt is used
    assert contents(out) == before


class Change(NamedTuple):
    make: Callable[[Path], object]
    decoded: list[str]


CHANGES = [
    Change(lambda videos: video(videos / "train" / "1b.mp4", 20, 9), ["1b"]),
    Change(lambda videos: video(videos / "train" / "1.mp4", 21, 11), ["1"]),
    Change(lambda videos: (videos / "train" / "0.mp4").unlink(), []),
    Change(lambda videos: (videos / "train" / "0.mp4").rename(videos / "train" / "z.mp4"), []),
    Change(lambda videos: (videos / "train" / "3.mp4").rename(videos / "val" / "3.mp4"), []),
    Change(lambda videos: (videos / "train" / "2.mp4").write_text("no video"), ["2"]),
]


@pytest.mark.parametrize("settings", [CUT, BY_SIZE, pytest.param(BOTH, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES, ids=["add", "change", "remove", "rename", "move", "break"])
def test_an_update_decodes_only_what_is_new_and_equals_a_fresh_run(
    videos: Path, tmp_path: Path, decodes: Decodes, settings: IngestSettings, change: Change
) -> None:
    first = ingest(listed(videos), tmp_path / "frames", settings, num_workers=0)
    decodes.names.clear()
    assert ingest(listed(videos), tmp_path / "frames", settings, num_workers=0) == first
    assert decodes.names == []
    change.make(videos)
    updated = ingest(listed(videos), tmp_path / "frames", settings, num_workers=0)
    assert decodes.names == change.decoded
    fresh = ingest(listed(videos), tmp_path / "fresh", settings, num_workers=0)
    assert contents(tmp_path / "frames") == contents(tmp_path / "fresh")
    assert (updated.fingerprint, updated.outputs) == (fresh.fingerprint, fresh.outputs)


@pytest.mark.parametrize("settings", [CUT, BY_SIZE])
@pytest.mark.parametrize("broken_off", [1, 2])
def test_an_update_that_was_broken_off_is_finished_to_the_same_bytes(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decodes: Decodes,
    settings: IngestSettings,
    broken_off: int,
) -> None:
    out = tmp_path / "frames"
    before = ingest(listed(videos), out, settings, num_workers=0)
    for index in range(5):
        video(videos / "train" / f"{index}.mp4", 30 + index, 8 + 2 * index)
    original, calls = ingest_shards.stage_shard, []

    def breaks(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > broken_off:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ingest_shards, "stage_shard", breaks)
        ingest(listed(videos), out, settings, num_workers=0)
    assert FrameShards(out).fingerprint == before.fingerprint
    waiting = len(list((out / "next").rglob("*.tar")))
    assert waiting == broken_off
    video(videos / "train" / "3.mp4", 50, 9)  # and the plan changes once more
    decodes.names.clear()
    ingest(listed(videos), out, settings, num_workers=0)
    assert "0" not in decodes.names
    ingest(listed(videos), tmp_path / "fresh", settings, num_workers=0)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_shard_is_full_at_its_size_and_none_is_empty(videos: Path, tmp_path: Path) -> None:
    (videos / "train" / "9.mp4").write_text("no video")
    ingest(listed(videos), tmp_path / "frames", BY_SIZE, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    by_shard: dict[str, list[int]] = {}
    for clip in shards.clips:
        by_shard.setdefault(clip.shard, []).append(clip.num_frames)
    assert by_shard == {
        "train-000000.tar": [12, 6],
        "train-000001.tar": [3, 14],
        "train-000002.tar": [6],
        "val-000000.tar": [7],
    }
    assert sorted(path.name for path in (tmp_path / "frames").glob("*.tar")) == sorted(by_shard)


def test_other_ways_to_cut_shards_decode_nothing_again(videos: Path, tmp_path: Path, decodes: Decodes) -> None:
    out = tmp_path / "frames"
    ingest(listed(videos), out, IngestSettings(geometry=PLAIN), num_workers=0)
    decodes.names.clear()
    packed = IngestSettings(geometry=PLAIN, shard_mb=0.003, codec="webp")
    for settings in (BY_SIZE, packed, BY_SIZE, IngestSettings(geometry=PLAIN, clips_per_shard=1)):
        ingest(listed(videos), out, settings, num_workers=0)
        assert decodes.names == []
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        ingest(listed(videos), tmp_path / "fresh", settings, num_workers=0)
        assert contents(out) == contents(tmp_path / "fresh")
        decodes.names.clear()


def test_jpeg_frames_are_other_frames(videos: Path, tmp_path: Path, decodes: Decodes) -> None:
    out = tmp_path / "frames"
    raw = ingest(listed(videos), out, IngestSettings(geometry=PLAIN), num_workers=0)
    decodes.names.clear()
    jpeg = ingest(listed(videos), out, IngestSettings(geometry=PLAIN, codec="jpeg"), num_workers=0)
    assert len(decodes.names) == 6
    assert jpeg.fingerprint != raw.fingerprint


def test_a_video_whose_pieces_are_all_too_short_fails(videos: Path, tmp_path: Path, decodes: Decodes) -> None:
    settings = IngestSettings(geometry=CUT.geometry, min_frames=5)
    ingest(listed(videos), tmp_path / "frames", settings, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert {clip.num_frames for clip in shards.clips} == {5}
    assert [(failure.id, failure.reason) for failure in shards.failures] == [("train/2", "too-short")]
    decodes.names.clear()
    ingest(listed(videos), tmp_path / "frames", CUT, num_workers=0)  # with shorter ones too
    assert len(decodes.names) == 6
    ingest(listed(videos), tmp_path / "fresh", CUT, num_workers=0)
    assert contents(tmp_path / "frames") == contents(tmp_path / "fresh")


def test_pieces_know_their_line_when_asked_why_they_are_stale(videos: Path, tmp_path: Path) -> None:
    ingest(listed(videos), tmp_path / "frames", CUT, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    piece = shards["train/0@00000.500"]
    assert _changed_source(listed(videos), piece, shards) == []
    video(videos / "train" / "0.mp4", 60, 12)
    assert "source content" in _changed_source(listed(videos), piece, shards)[0]


# Files that were cut short


@pytest.fixture
def cut_short(videos: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_mp4(videos / "train" / "cut.mp4", noise, fps=10)  # its index is in front
    data = (videos / "train" / "cut.mp4").read_bytes()
    (videos / "train" / "cut.mp4").write_bytes(data[: len(data) // 2])
    return videos


def test_a_file_cut_short_is_kept_when_asked_and_said_to_be_short(cut_short: Path, tmp_path: Path, lvt: Any) -> None:
    manifest = listed(cut_short)
    failed = ingest(manifest, tmp_path / "frames", IngestSettings(geometry=PLAIN), num_workers=0)
    assert failed.counts["failures_by_reason"] == {"truncated": 1}
    message = FrameShards(tmp_path / "frames").failures[0].message
    assert message.startswith("cut.mp4 is cut short: there are ")
    assert " of the 4.00 s that its header announces, and 20 of 40 frames; --on-truncated keep" in message
    options = ("--manifest", manifest, "-o", tmp_path / "frames", "--size", 16, "--workers", 1)
    code, text, _ = lvt("ingest", *options, "--on-truncated", "keep")
    assert code == 0
    assert "1 of files cut short" in text
    clip = FrameShards(tmp_path / "frames")["train/cut"]
    assert 15 < clip.num_frames <= 20  # what was in the middle of being written cannot be decoded
    assert clip.truncated is not None
    assert clip.truncated.startswith("there are ")


# Room on the disk


def test_a_disk_without_room_is_found_before_anything_is_decoded(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodes: Decodes
) -> None:
    monkeypatch.setattr(disk_space, "MANY_LINES", 6)
    needed = 48 * 16 * 16 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, needed - 1))  # type: ignore[attr-defined]
    with pytest.raises(LVTError, match=r"the frames of 6 clips need about .* GB free; make room, .*--no-space-check"):
        ingest(listed(videos), tmp_path / "frames", IngestSettings(geometry=PLAIN), num_workers=0)
    assert decodes.names == []
    ingest(listed(videos), tmp_path / "frames", IngestSettings(geometry=PLAIN), num_workers=0, check_space=False)
    ingest(listed(videos), tmp_path / "frames", IngestSettings(geometry=PLAIN), num_workers=0)  # nothing to decode


def test_a_disk_with_just_enough_room_is_enough(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "MANY_LINES", 6)
    needed = 48 * 16 * 16 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, needed))  # type: ignore[attr-defined]
    ingest(listed(videos), tmp_path / "frames", IngestSettings(geometry=PLAIN), num_workers=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 30},
        {"size": 2},
        {"stride": 0},
        {"clip_seconds": 0.0},
        {"clip_seconds": float("nan")},
        {"split_scenes": 300.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GeometrySettings(**wrong)
