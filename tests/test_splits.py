"""Splits: decided by the source or by content, stable while a dataset grows, and no content in two of them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.splits import Earlier, assign_splits, separate_copies, split_by_content
from lvt_pipeline.video.clips import Clip
from tests.listener import Listener

SPLITS = ("train", "val", "test")


def files(root: Path, *names: str) -> Path:
    """Files that are no videos: a manifest does not look inside. Each holds its own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def splits_of(source: Path, out: Path, **settings: Any) -> dict[str, str]:
    build_manifest(source, out, ManifestSettings(**settings))
    return {clip.id: clip.split for clip in read_manifest(out)}


def digest(place: int) -> str:
    return f"{place:016x}{'0' * 48}"


def clip(name: str, split: str, content: str, start: float | None = None, end: float | None = None) -> Clip:
    return Clip(id=name, source=f"/{name}", digest=content, split=split, start=start, end=end)


@pytest.mark.parametrize("seed", range(5))
def test_a_dataset_that_grows_file_by_file_moves_no_clip(tmp_path: Path, seed: int) -> None:
    """The first videos are too few for every split to be filled by chance, so some are moved in: they stay there."""
    source, known = tmp_path / "v", dict[str, str]()
    for number in range(25):
        files(source, f"{seed}-{number}.mp4")
        splits = splits_of(source, tmp_path / "m.jsonl")
        assert {name: splits[name] for name in known} == known
        known = splits
    assert set(known.values()) == {"train", "val", "test"}


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=30), st.integers(1, 5))
def test_what_an_earlier_version_lists_never_moves(places: list[int], step: int) -> None:
    earlier, known = Earlier(), dict[str, str]()
    for count in range(1, len(places) + 1, step):
        digests = {digest(place) for place in places[:count]}
        splits, moved = split_by_content(digests, set(), ManifestSettings(), earlier)
        assert known.items() <= splits.items()
        known, earlier = splits, Earlier(frozenset(digests), moved)


def test_large_datasets_are_split_by_their_content_alone() -> None:
    places = [place * 2**57 for place in range(128)]
    together, moved = split_by_content({digest(place) for place in places}, set(), ManifestSettings())
    assert moved == {}
    for place in places:
        alone, _ = split_by_content({digest(place)}, set(), ManifestSettings())
        assert alone[digest(place)] == together[digest(place)]


def test_other_shares_decide_anew(tmp_path: Path) -> None:
    source = files(tmp_path / "v", *(f"{number}.mp4" for number in range(6)))
    first = splits_of(source, tmp_path / "m.jsonl")
    assert set(splits_of(source, tmp_path / "m.jsonl", test_share=0, val_share=0).values()) == {"train"}
    assert splits_of(source, tmp_path / "m.jsonl") == first


def test_all_ranges_of_a_video_get_one_split_from_its_content(tmp_path: Path) -> None:
    files(tmp_path, *(f"{number}.mp4" for number in range(20)))
    rows = [f"{number}.mp4,{start},{start + 1}" for number in range(20) for start in range(5)]
    (tmp_path / "t.csv").write_text("path,start,end\n" + "\n".join(rows) + "\n")
    splits = splits_of(tmp_path / "t.csv", tmp_path / "m.jsonl")
    assert len(splits) == 100
    for number in range(20):
        assert len({split for name, split in splits.items() if name.startswith(f"{number}@")}) == 1
    assert set(splits.values()) == set(SPLITS)


def test_a_column_and_folders_decide_before_the_content(tmp_path: Path) -> None:
    files(tmp_path, "train/a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "t.csv").write_text("path,split\ntrain/a.mp4,\nb.mp4,Testing\nc.mp4,validate\n")
    assert splits_of(tmp_path / "t.csv", tmp_path / "m.jsonl") == {"train/a": "train", "b": "test", "c": "val"}


def test_content_that_a_source_puts_into_two_splits_stays_in_the_test_split(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "train/a.mp4", "train/b.mp4", "val/c.mp4", "test/d.mp4")
    shutil.copy(source / "test/d.mp4", source / "train/copy of d.mp4")
    shutil.copy(source / "test/d.mp4", source / "val/copy of d.mp4")
    shutil.copy(source / "val/c.mp4", source / "train/copy of c.mp4")
    shutil.copy(source / "train/a.mp4", source / "train/copy of a.mp4")
    listener = Listener()
    record = build_manifest(source, tmp_path / "m.jsonl", progress=listener)
    clips = {clip.id: clip.split for clip in read_manifest(tmp_path / "m.jsonl")}
    assert list(clips) == ["test/d", "train/a", "train/b", "train/copy of a", "val/c"]
    assert record.counts["left_out"] == 3
    left_out = "has the same content as {} and is left out: one is {}, the other {}"
    assert listener.said[1:] == [
        "val/copy of d " + left_out.format("test/d", "val", "test"),
        "train/copy of d " + left_out.format("test/d", "train", "test"),
        "train/copy of c " + left_out.format("val/c", "train", "val"),
        "train/copy of a has the same content as train/a",
    ]


def test_a_copy_that_no_folder_decides_joins_the_other(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "test/a.mp4", *(f"{number}.mp4" for number in range(5)))
    shutil.copy(source / "test/a.mp4", source / "copy.mp4")
    splits = splits_of(source, tmp_path / "m.jsonl")
    assert splits["copy"] == splits["test/a"] == "test"


def test_ranges_of_a_video_may_lie_in_two_splits_unless_they_overlap() -> None:
    clips = [
        clip("a", "train", "x", 0, 8),
        clip("b", "test", "x", 8, 10),
        clip("c", "train", "x", 9, None),
        clip("d", "train", "x", 3, 5),
        clip("e", "val", "y"),
    ]
    kept, left_out = separate_copies(clips)
    assert [item.id for item in kept] == ["a", "b", "d", "e"]
    assert [(one.id, other.id) for one, other in left_out] == [("c", "b")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SPLITS), st.sampled_from("xyz"), st.one_of(st.none(), st.integers(0, 5)), st.integers(6, 9)
        ),
        max_size=15,
    )
)
def test_nothing_that_stays_shares_content_across_splits(rows: list[tuple[str, str, int | None, int]]) -> None:
    clips = [clip(str(number), *row) for number, row in enumerate(rows)]
    kept, left_out = separate_copies(clips)
    assert sorted([*kept, *(one for one, _ in left_out)], key=lambda item: int(item.id)) == clips
    for one, other in itertools.combinations(kept, 2):
        if one.digest == other.digest and one.split != other.split:
            assert (one.end or 99) <= (other.start or 0) or (other.end or 99) <= (one.start or 0)
    assert [item for item in clips if item.split == "test"] == [item for item in kept if item.split == "test"]


def test_missing_files_are_no_copies_of_each_other() -> None:
    clips = [clip("a", "train", ""), clip("b", "test", "")]
    assert separate_copies(clips) == (clips, [])
    assigned, _ = assign_splits([clip("a", "", ""), clip("b", "", "")], ManifestSettings())
    assert {item.split for item in assigned} <= set(SPLITS)
