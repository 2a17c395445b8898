"""A clip that cannot be decoded is not the only one of its split: another takes its place and keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest import folder
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import ManifestSettings, build_manifest, read_manifest
from lvt_pipeline.manifest.splits import Earlier, fill_empty_splits
from lvt_pipeline.video.clips import SPLITS, Clip
from lvt_pipeline.video.write import write_mp4
from tests.listener import Listener


def video(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8), fps=10)


def dataset(root: Path, count: int = 12) -> Path:
    """Videos, of which every one that is listed in val or test is broken."""
    for number in range(count):
        video(root / f"{number:02d}.mp4", number)
    build_manifest(root, root.parent / "m.jsonl")
    for clip in read_manifest(root.parent / "m.jsonl"):
        if clip.split != "train":
            Path(clip.source).write_bytes(b"broken" + clip.id.encode())
    return root


def ingested(root: Path, out: str = "frames", **options: object) -> tuple[dict[str, str], Listener]:
    heard = Listener()
    settings = IngestSettings(clips_per_shard=4)
    ingest(root / "m.jsonl", root / out, settings, num_workers=0, progress=heard, **options)  # type: ignore[arg-type]
    return {clip.id: clip.split for clip in FrameShards(root / out).clips}, heard


def listed(root: Path) -> dict[str, str]:
    """The manifest of the broken dataset; contents that changed may have other splits."""
    build_manifest(root / "v", root / "m.jsonl")
    return {clip.id: clip.split for clip in read_manifest(root / "m.jsonl")}


def test_twelve_clips_have_clips_to_train_validate_and_test_on(tmp_path: Path) -> None:
    dataset(tmp_path / "v")
    splits = listed(tmp_path)
    broken = {clip_id for clip_id in splits if (tmp_path / "v" / f"{clip_id}.mp4").read_bytes().startswith(b"broken")}
    for clip_id in set(splits) - broken:  # all sound clips are in train: val and test hold broken ones only
        if splits[clip_id] != "train":
            (tmp_path / "v" / f"{clip_id}.mp4").unlink()
    found, heard = ingested(tmp_path)
    assert set(found.values()) == set(SPLITS)
    assert not broken & set(found)
    again, _ = ingested(tmp_path)
    assert again == found
    moved = [line for line in heard.said if "of which no other clip could be decoded" in line]
    assert len(moved) == sum(found[clip_id] != splits.get(clip_id) for clip_id in found)


def clips(*splits: str, split_by: str | None = "content", first: int = 0) -> list[Clip]:
    return [
        Clip(id=f"c{number}", source="", digest=f"{number:064x}", split=split, split_by=split_by)
        for number, split in enumerate(splits, start=first)
    ]


def splits_of(lines: list[Clip]) -> list[str]:
    return [clip.split for clip in lines]


def test_a_split_is_filled_from_one_that_keeps_clips() -> None:
    lines, moved = fill_empty_splits(clips("train", "train", "train", "val", "test"), {"c3"})
    assert sorted(splits_of(lines)) == ["test", "train", "train", "val", "val"]
    assert list(moved.values()) == ["val"]
    assert fill_empty_splits(clips("train", "val", "test"), {"c1"})[1] == {}  # nothing to spare


def test_what_was_moved_stays_and_what_was_there_never_moves() -> None:
    before = clips("train", "train", "train", "val", "test")
    first, moved = fill_empty_splits(before, {"c3"})
    grown = [*before, *clips(*["train"] * 5, "val", "val", first=5)]
    contents = frozenset(clip.digest for clip in before)
    lines, still = fill_empty_splits(grown, {"c3"}, Earlier(contents, moved))
    assert lines[:5] == first
    assert still == moved
    lines, moved = fill_empty_splits(before, {"c4"}, Earlier(contents))
    assert (lines, moved) == (before, {})


def test_splits_that_a_user_gave_stay() -> None:
    before = clips("train", "train", "train", "val", "test", split_by=None)
    assert fill_empty_splits(before, {"c3"}) == (before, {})


def test_copies_and_ranges_of_a_video_move_together() -> None:
    same = [Clip(id=f"r{n}", source="", digest="f" * 64, split="train", split_by="content") for n in range(3)]
    lines, moved = fill_empty_splits([*same, *clips("val", "train")], {"c0"})
    assert {clip.split for clip in lines[:3]} in ({"train"}, {"val"})
    assert len(moved) == 1


@pytest.mark.parametrize("folder", ["val", "test"])
def test_folders_named_after_splits_are_explicit(tmp_path: Path, folder: str) -> None:
    for number in range(4):
        video(tmp_path / "v" / "train" / f"{number}.mp4", number)
    (tmp_path / "v" / folder).mkdir()
    (tmp_path / "v" / folder / "x.mp4").write_bytes(b"broken")
    listed(tmp_path)
    found, _ = ingested(tmp_path)
    assert set(found.values()) == {"train"}


def test_an_interrupted_fill_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for number in range(6):
        video(tmp_path / "v" / f"{number}.mp4", number)
    lines = listed(tmp_path)
    lonely = next(clip_id for clip_id, split in lines.items() if split == "val")
    text = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "v" / f"{lonely}.mp4").write_bytes(b"broken")
    ingested(tmp_path)
    shutil.copytree(tmp_path / "frames", tmp_path / "killed")
    for name in ("provenance.json", "val-000000.json", "val-000000.tar"):
        (tmp_path / "killed" / name).unlink()
    ingested(tmp_path, "killed")
    for path in (tmp_path / "frames").iterdir():
        if path.name != "provenance.json":
            assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
    assert text == (tmp_path / "m.jsonl").read_text()


def test_a_crash_while_frames_are_published_does_not_forget_what_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        video(tmp_path / "v" / f"{number}.mp4", number)
    lonely = next(clip_id for clip_id, split in listed(tmp_path).items() if split == "val")
    (tmp_path / "v" / f"{lonely}.mp4").write_bytes(b"broken")
    first, _ = ingested(tmp_path)
    lines = (tmp_path / "m.jsonl").read_text().splitlines(keepends=True)
    for number in range(6, 30):  # more clips to choose from
        video(tmp_path / "v" / f"{number}.mp4", number)
    build_manifest(tmp_path / "v", tmp_path / "grown.jsonl", ManifestSettings(val_share=0.0))
    more = (tmp_path / "grown.jsonl").read_text().splitlines(keepends=True)
    known = {clip.id for clip in read_manifest(tmp_path / "m.jsonl")}
    more = [line for line in more if json.loads(line)["id"] not in known]
    (tmp_path / "m.jsonl").write_text("".join(lines + more))

    def crash(storage: object, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_commit", crash)
        with pytest.raises(KeyboardInterrupt):
            ingested(tmp_path)
    assert not (tmp_path / "frames" / "provenance.json").exists()
    after, _ = ingested(tmp_path)
    assert {clip_id: after[clip_id] for clip_id in first} == first
    assert [clip_id for clip_id, split in after.items() if split == "val"] == [
        clip_id for clip_id, split in first.items() if split == "val"
    ]
    assert not (tmp_path / "frames" / ".publishing.json").exists()


def test_a_manifest_without_free_splits_has_no_marks(tmp_path: Path) -> None:
    video(tmp_path / "v" / "a.mp4", 1)
    build_manifest(tmp_path / "v", tmp_path / "m.jsonl", ManifestSettings(split="none"))
    assert "split_by" not in (tmp_path / "m.jsonl").read_text()
