"""Kinetics CSVs, real ones where they are there, with the folders that downloaders leave behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import Clip, build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4
from tests.conftest import moving_square
from tests.listener import Listener

ANNOTATIONS = Path(__file__).parents[2] / "shared" / "annotations"
KINETICS_400 = ANNOTATIONS / "kinetics400_val_head.csv"
KINETICS_600 = ANNOTATIONS / "kinetics600_val_head.csv"
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="the annotations are not there")

ROWS_400 = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,0wR5jVB-WPk,417,427,train,0
"air drumming",--nQbRBEz2s,104,114,validate,1
"air drumming",2cPLjY5AWXU,1,11,test,0
"""
ROWS_600 = """label,youtube_id,time_start,time_end,split
abseiling,yq_M1PMw2hY,38,48,val
answering questions,-_abcdefghi,0,10,val
"""


def files(root: Path, *names: str) -> Path:
    """Files that are no videos: a manifest does not look inside. Each holds its own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listed(source: Path, out: Path, media: Path | None = None, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings), media=media)
    return read_manifest(out)


def test_trimmed_and_whole_videos_are_found_in_any_layout(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS_400)
    media = files(
        tmp_path / "v",
        "abseiling/0wR5jVB-WPk_000417_000427.mp4",  # cut out, in the folder of its class
        "--nQbRBEz2s.mkv",  # the whole video, flat
        "test/air_drumming/2cPLjY5AWXU_000001_000011.webm",
        "2cPLjY5AWXU_000091_000101.mp4",  # another range of the same video is another clip
    )
    clips = listed(tmp_path / "k.csv", tmp_path / "m.jsonl", media)
    assert [(clip.id, Path(clip.source).relative_to(media).as_posix()) for clip in clips] == [
        ("abseiling/0wR5jVB-WPk_000417_000427", "abseiling/0wR5jVB-WPk_000417_000427.mp4"),
        ("air drumming/--nQbRBEz2s_000104_000114", "--nQbRBEz2s.mkv"),
        ("air drumming/2cPLjY5AWXU_000001_000011", "test/air_drumming/2cPLjY5AWXU_000001_000011.webm"),
    ]
    assert [(clip.split, clip.label, clip.start, clip.end) for clip in clips] == [
        ("train", "abseiling", None, None),
        ("val", "air drumming", 104.0, 114.0),
        ("test", "air drumming", None, None),
    ]
    assert dict(clips[1].metadata) == {"youtube_id": "--nQbRBEz2s", "is_cc": "1", "time_start": 104, "time_end": 114}


def test_moving_a_download_around_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS_600)
    names = "yq_M1PMw2hY_000038_000048.mp4", "-_abcdefghi_000000_000010.mp4"
    for name in names:
        for place in (tmp_path / "flat" / name, tmp_path / "deep" / "val" / "some class" / name):
            files(place.parent, place.name)
    flat = build_manifest(tmp_path / "k.csv", tmp_path / "a.jsonl", media=tmp_path / "flat")
    deep = build_manifest(tmp_path / "k.csv", tmp_path / "b.jsonl", media=tmp_path / "deep")
    assert flat.fingerprint == deep.fingerprint


def test_a_folder_of_several_csvs_beside_the_videos_is_one_dataset(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.csv").write_text(ROWS_400)
    (tmp_path / "annotations" / "val.csv").write_text(ROWS_600)
    files(tmp_path, "videos/0wR5jVB-WPk_000417_000427.mp4", "videos/yq_M1PMw2hY.mp4")
    listener = Listener()
    record = build_manifest(tmp_path, tmp_path / "m.jsonl", progress=listener)
    assert listener.said[0] == f"{tmp_path}: recognised as Kinetics annotations"
    assert (record.counts["clips"], record.counts["missing"]) == (5, 3)


def test_missing_downloads_are_counted_and_recorded_by_ingest(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS_400)
    files(tmp_path / "v", "--nQbRBEz2s_000104_000114.txt")  # no video
    write_mp4(tmp_path / "v" / "0wR5jVB-WPk_000417_000427.mp4", moving_square(1), fps=10)
    listener = Listener()
    record = build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl", media=tmp_path / "v", progress=listener)
    assert record.counts["missing"] == 2
    assert [line.partition("; its clip ")[2] for line in listener.said[1:-1]] == [
        f"air drumming/{name} will be recorded as missing (--missing drop leaves it out)"
        for name in ("--nQbRBEz2s_000104_000114", "2cPLjY5AWXU_000001_000011")
    ]
    settings = IngestSettings(geometry=GeometrySettings(size=16))
    made = ingest(tmp_path / "m.jsonl", tmp_path / "frames", settings, num_workers=0, max_failures=0.9)
    assert (made.counts["clips"], made.counts["failures_by_reason"]) == (1, {"missing": 2})
    kept = listed(tmp_path / "k.csv", tmp_path / "m.jsonl", tmp_path / "v", missing="drop")
    assert [clip.id for clip in kept] == ["abseiling/0wR5jVB-WPk_000417_000427"]


def test_all_missing_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS_600)
    with pytest.raises(ManifestError, match=r"none of the 2 clips is in .*yq_M1PMw2hY_000038_000048\.mp4.*--media"):
        build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl", media=files(tmp_path / "v", "other.mp4"))
    assert not (tmp_path / "m.jsonl").exists()


def test_another_table_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text("path,label\na.mp4,x\n")
    settings = ManifestSettings(kind="kinetics")
    with pytest.raises(ManifestError, match=r"k\.csv is not a Kinetics CSV: it needs .*youtube_id, found path, label"):
        build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl", settings)
    with pytest.raises(ManifestError, match=r"nowhere\.csv does not exist"):
        build_manifest(tmp_path / "nowhere.csv", tmp_path / "m.jsonl", settings)


def test_a_row_that_is_repeated_counts_once(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS_600 + "abseiling,yq_M1PMw2hY,38,48,val\n")
    listener = Listener()
    media = files(tmp_path / "v", "yq_M1PMw2hY.mp4")
    record = build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl", media=media, progress=listener)
    assert record.counts["clips"] == 2
    assert any("1 rows repeat a clip" in line for line in listener.said)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,yq_M1PMw2hY,soon,48,val", r"k\.csv:2: time_start='soon' is not a time"),
        ("a,,38,48,val", r"k\.csv:2: youtube_id is empty"),
        ("a,yq_M1PMw2hY,38,48,holdout", r"k\.csv:2: split 'holdout' is not one of train, val, test"),
        ("a,yq_M1PMw2hY,48,38,val", r"ends at 38\.0 s, before it starts at 48\.0 s"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "k.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{row}\n")
    with pytest.raises(ManifestError, match=message):
        build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl", media=files(tmp_path / "v", "yq_M1PMw2hY.mp4"))


def test_a_test_set_without_labels_is_read(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text("youtube_id,time_start,time_end,split\nyq_M1PMw2hY,38,48,test\n")
    clip = listed(tmp_path / "k.csv", tmp_path / "m.jsonl", files(tmp_path / "v", "yq_M1PMw2hY_000038_000048.mp4"))[0]
    assert (clip.id, clip.split, clip.label) == ("yq_M1PMw2hY_000038_000048", "test", None)


def test_the_range_of_a_whole_video_is_what_ingest_decodes(tmp_path: Path) -> None:
    frames = np.zeros((50, 32, 32, 3), np.uint8)
    frames += 4 * np.arange(50, dtype=np.uint8)[:, None, None, None]
    write_mp4(tmp_path / "v" / "yq_M1PMw2hY.mp4", frames, fps=10)
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end,split\na,yq_M1PMw2hY,2,4,val\n")
    listed(tmp_path / "k.csv", tmp_path / "m.jsonl", tmp_path / "v")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", IngestSettings(), num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    shown = shards.read(shards.clips[0])[:, 32, 32].mean(-1)
    assert len(shown) == 20
    assert np.abs(shown - 4 * np.arange(20, 40)).max() < 6


@needs_annotations
@pytest.mark.parametrize(("path", "columns"), [(KINETICS_400, {"is_cc"}), (KINETICS_600, set())])
@pytest.mark.parametrize("is_trimmed", [True, False])
def test_real_annotation_files_parse_row_by_row(
    tmp_path: Path, path: Path, columns: set[str], is_trimmed: bool
) -> None:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 399
    stems = [
        f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}" if is_trimmed
        else row["youtube_id"]
        for row in rows
    ]  # fmt: skip
    media = files(tmp_path / "v", *(f"{stem}.mp4" for stem in stems[:10]))
    listener = Listener()
    record = build_manifest(path, tmp_path / "m.jsonl", media=media, progress=listener)
    assert record.counts["missing"] == 389
    assert len(listener.said) == 2
    assert listener.said[1].startswith("389 of 399 clips have no readable file, each will be recorded as missing")
    clips = read_manifest(tmp_path / "m.jsonl")
    assert [clip.label for clip in clips] == [row["label"] for row in rows]
    assert {clip.split for clip in clips} == {"val"}
    assert [bool(clip.digest) for clip in clips] == [True] * 10 + [False] * 389
    for clip, row in zip(clips[:10], rows, strict=False):
        expected = (None, None) if is_trimmed else (float(row["time_start"]), float(row["time_end"]))
        assert (clip.start, clip.end) == expected
        assert clip.metadata.keys() == {"youtube_id", "time_start", "time_end"} | columns
    assert json.loads((tmp_path / "m.jsonl").read_text().splitlines()[0])["id"] == clips[0].id


def test_a_time_of_thousands_of_digits_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(f"label,youtube_id,time_start,time_end\nx,abc,{'9' * 5000},1\n")
    with pytest.raises(ManifestError, match=r"k\.csv:2: time_start=.* is not a time in seconds"):
        build_manifest(tmp_path / "k.csv", tmp_path / "m.jsonl")
