"""UCF101: class folders, and the official lists that say which videos are for training and testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lvt_pipeline.errors import ConfigError, ManifestError
from lvt_pipeline.manifest.manifest import Clip, build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from tests.listener import Listener

VIDEOS = [
    f"{name}/v_{name}_g{group:02d}_c01.avi" for name in ("ApplyEyeMakeup", "Archery", "YoYo") for group in range(1, 5)
]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """As the two archives unpack: UCF-101/Class/video.avi and ucfTrainTestlist/*.txt."""
    root = tmp_path / "ucf"
    for name in VIDEOS:
        path = root / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 Archery\r\n3 YoYo\r\n")
    numbers = {"ApplyEyeMakeup": 1, "Archery": 2, "YoYo": 3}
    for fold in (1, 2, 3):
        is_test = {name: f"_g{fold:02d}_" in name for name in VIDEOS}
        train = [f"{name} {numbers[name.split('/')[0]]}" for name in VIDEOS if not is_test[name]]
        (lists / f"trainlist{fold:02d}.txt").write_text("\r\n".join(train) + "\r\n")
        (lists / f"testlist{fold:02d}.txt").write_text("\n".join(name for name in VIDEOS if is_test[name]) + "\n")
    return root


def listed(source: Path, out: Path, media: Path | None = None, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings), media=media)
    return read_manifest(out)


@pytest.mark.parametrize("fold", [None, 1, 2, 3])
def test_the_lists_of_a_fold_decide_the_splits(dataset: Path, tmp_path: Path, fold: int | None) -> None:
    clips = listed(dataset, tmp_path / "m.jsonl", fold=fold)
    assert [clip.id for clip in clips] == [name.removesuffix(".avi") for name in VIDEOS]
    assert [clip.label for clip in clips] == [name.split("/")[0] for name in VIDEOS]
    assert [clip.split for clip in clips] == ["test" if f"_g{fold or 1:02d}_" in name else "train" for name in VIDEOS]


def test_ids_and_splits_do_not_depend_on_where_lists_and_videos_lie(dataset: Path, tmp_path: Path) -> None:
    listener = Listener()
    one = build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    two = build_manifest(dataset / "ucfTrainTestlist", tmp_path / "n.jsonl", media=dataset / "UCF-101")
    assert one.fingerprint == two.fingerprint
    assert listener.said == [f"{dataset}: recognised as class folders with UCF101's split files"]


def test_class_folders_without_lists_are_a_folder_of_videos(dataset: Path, tmp_path: Path) -> None:
    clips = listed(dataset / "UCF-101", tmp_path / "m.jsonl")
    assert [(clip.id, clip.label) for clip in clips] == [
        (name.removesuffix(".avi"), name.split("/")[0]) for name in VIDEOS
    ]


def test_missing_and_unlisted_videos_are_told(dataset: Path, tmp_path: Path) -> None:
    (dataset / "UCF-101" / VIDEOS[0]).unlink()
    (dataset / "UCF-101" / "Archery" / "mine.avi").write_text("mine")
    listener = Listener()
    record = build_manifest(dataset, tmp_path / "m.jsonl", progress=listener)
    assert any(f"{VIDEOS[0]} does not exist; its clip" in line for line in listener.said)
    assert any(
        "videos in neither list, whose split their content decides: 1 (Archery/mine.avi)" in x for x in listener.said
    )
    assert (record.counts["clips"], record.counts["missing"]) == (13, 1)
    missing = next(clip for clip in read_manifest(tmp_path / "m.jsonl") if not clip.digest)
    assert (missing.id, missing.split) == (VIDEOS[0].removesuffix(".avi"), "test")


def test_lists_that_contradict_themselves_are_named(dataset: Path, tmp_path: Path) -> None:
    lists = dataset / "ucfTrainTestlist"
    original = (lists / "testlist01.txt").read_text()
    (lists / "testlist01.txt").write_text(original + VIDEOS[1])
    with pytest.raises(ManifestError, match=r"testlist01\.txt:4: .*g02_c01\.avi is already in the list of train"):
        build_manifest(dataset, tmp_path / "m.jsonl")
    (lists / "testlist01.txt").write_text("YoYo\n")
    with pytest.raises(ManifestError, match=r"testlist01\.txt:1: 'YoYo' is not Class/video\.avi"):
        build_manifest(dataset, tmp_path / "m.jsonl")
    (lists / "testlist01.txt").write_text(original)
    (lists / "classInd.txt").write_text("1 Archery\n2 ApplyEyeMakeup\n3 YoYo\n")
    with pytest.raises(ManifestError, match=r"trainlist01\.txt:1: ApplyEyeMakeup is not class 1 of"):
        build_manifest(dataset, tmp_path / "m.jsonl")


def test_what_is_not_there_is_one_clear_error(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none of the 12 videos in .* is in .*nowhere: looked for"):
        build_manifest(dataset / "ucfTrainTestlist", tmp_path / "m.jsonl", media=tmp_path / "nowhere")
    (dataset / "ucfTrainTestlist" / "testlist02.txt").unlink()
    with pytest.raises(ManifestError, match=r"testlist02\.txt does not exist"):
        build_manifest(dataset, tmp_path / "m.jsonl", ManifestSettings(fold=2))
    with pytest.raises(ManifestError, match=r"holds no trainlist01\.txt"):
        build_manifest(dataset / "UCF-101", tmp_path / "m.jsonl", ManifestSettings(kind="ucf101"))
    with pytest.raises(ConfigError, match="fold=4 must be from 1 to 3"):
        ManifestSettings(fold=4)
