"""The list of clips: same videos, same bytes; content decides splits; every mistake names its line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvt_pipeline.errors import ConfigError, ManifestError
from lvt_pipeline.manifest.manifest import Clip, build_manifest, manifest_fingerprint, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.splits import split_by_content
from lvt_pipeline.provenance import digest_file, read_record
from tests.listener import Listener


def files(root: Path, *names: str) -> Path:
    """Files that are no videos: a manifest does not look inside. Each holds its own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def clips_of(source: Path, out: Path, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings))
    return read_manifest(out)


def test_ids_are_relative_paths_and_labels_are_folders(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "b/two.mp4", "a/deep/one.AVI", "top.webm", "notes.txt", ".hidden/x.mp4", "a/.y.mp4")
    clips = clips_of(source, tmp_path / "m.jsonl", split="none")
    assert [(clip.id, clip.label) for clip in clips] == [("a/deep/one", "deep"), ("b/two", "b"), ("top", None)]
    assert {clip.split for clip in clips} == {"train"}
    assert clips[1].source == str(source / "b" / "two.mp4")
    assert clips[1].digest == digest_file(source / "b" / "two.mp4")
    assert {clip.label for clip in clips_of(source, tmp_path / "m.jsonl", label="none")} == {None}


def test_files_that_differ_in_their_ending_alone_keep_it(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "x.mp4", "x.avi", "y.mp4", "z.v2.mp4")
    assert [clip.id for clip in clips_of(source, tmp_path / "m.jsonl")] == ["x.avi", "x.mp4", "y", "z.v2"]


def test_the_same_videos_give_the_same_bytes_and_touch_nothing(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "a.mp4", "b.mp4", "c.mp4")
    first = build_manifest(source, tmp_path / "m.jsonl")
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(tmp_path.glob("m.*"))]
    assert build_manifest(source, tmp_path / "m.jsonl") == first == read_record(tmp_path / "m.jsonl")
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(tmp_path.glob("m.*"))] == before


def test_a_manifest_and_its_videos_may_move_together(tmp_path: Path) -> None:
    files(tmp_path / "old" / "v", "a.mp4", "b/c.mp4")
    build_manifest(tmp_path / "old" / "v", tmp_path / "old" / "lists" / "m.jsonl")
    shutil.move(tmp_path / "old", tmp_path / "new")
    clips = read_manifest(tmp_path / "new" / "lists" / "m.jsonl")
    assert [Path(clip.source).read_text() for clip in clips] == ["a.mp4", "b/c.mp4"]
    assert str(tmp_path) not in (tmp_path / "new" / "lists" / "m.jsonl").read_text()


def test_changed_content_changes_the_fingerprint_and_a_new_place_does_not(tmp_path: Path) -> None:
    one = build_manifest(files(tmp_path / "v", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "m.jsonl").fingerprint
    moved = build_manifest(files(tmp_path / "w", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "n.jsonl").fingerprint
    (tmp_path / "v" / "a.mp4").write_text("something else")
    changed = build_manifest(tmp_path / "v", tmp_path / "m.jsonl").fingerprint
    assert one == moved != changed


def test_folders_named_after_splits_decide(tmp_path: Path) -> None:
    names = ["train/a.mp4", "Validation/b.mp4", "testing/c.mp4", "class/test/d.mp4", "train/dog/e.mp4", "x/y/val/f.mp4"]
    splits = {clip.id: clip.split for clip in clips_of(files(tmp_path / "v", *names), tmp_path / "m.jsonl")}
    assert splits["train/a"] == splits["train/dog/e"] == "train"
    assert (splits["Validation/b"], splits["testing/c"], splits["class/test/d"]) == ("val", "test", "test")
    labels = {clip.id: clip.label for clip in read_manifest(tmp_path / "m.jsonl")}
    assert (labels["train/a"], labels["train/dog/e"]) == (None, "dog")


def test_adding_videos_moves_no_other(tmp_path: Path) -> None:
    source = files(tmp_path / "v", *(f"{number}.mp4" for number in range(60)))
    before = {clip.id: clip.split for clip in clips_of(source, tmp_path / "m.jsonl")}
    files(source, *(f"more/{number}.mp4" for number in range(60)))
    after = {clip.id: clip.split for clip in clips_of(source, tmp_path / "m.jsonl")}
    assert {clip_id: after[clip_id] for clip_id in before} == before
    assert set(before.values()) == {"train", "val", "test"}


def test_equal_content_lies_in_one_split_and_is_reported(tmp_path: Path) -> None:
    source = files(tmp_path / "v", *(f"{number}.mp4" for number in range(40)))
    for number in range(40):
        shutil.copy(source / f"{number}.mp4", source / f"copy-{number}.mp4")
    listener = Listener()
    build_manifest(source, tmp_path / "m.jsonl", progress=listener)
    splits: dict[str, set[str]] = {}
    for clip in read_manifest(tmp_path / "m.jsonl"):
        splits.setdefault(clip.digest, set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    assert listener.said[1].endswith("has the same content as 0")
    assert listener.said[-1] == "40 clips have the same content as another of their split"
    assert len(listener.said) == 7


@given(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=12))
def test_three_contents_or_more_leave_no_split_empty(places: set[int]) -> None:
    digests = {f"{place:016x}{'0' * 48}" for place in places}
    splits, _ = split_by_content(digests, set(), ManifestSettings())
    assert set(splits) == digests
    assert set(splits.values()) == {"train", "val", "test"}


def test_shares_are_about_what_was_asked(tmp_path: Path) -> None:
    digests = {digest_file(path) for path in files(tmp_path, *(f"{n}.mp4" for n in range(400))).iterdir()}
    assigned, _ = split_by_content(digests, set(), ManifestSettings(val_share=0.25, test_share=0.0))
    splits = list(assigned.values())
    assert 70 <= splits.count("val") <= 130
    assert splits.count("test") == 0


def test_a_csv_gives_ranges_labels_and_metadata(tmp_path: Path) -> None:
    files(tmp_path, "clips/a.mp4", "clips/b.mp4")
    table = tmp_path / "clips.csv"
    table.write_text(
        "video,label,split,start,end,quality\nclips/a.mp4,cat,train,0,2.5,good\n"
        "clips/a.mp4,dog,validation,2.5,,\nclips/b.mp4,,test,,,bad\n"
    )
    clips = clips_of(table, tmp_path / "m.jsonl")
    assert [(clip.id, clip.label, clip.split, clip.start, clip.end) for clip in clips] == [
        ("clips/a@0-2.5", "cat", "train", 0, 2.5),
        ("clips/a@2.5-end", "dog", "val", 2.5, None),
        ("clips/b", None, "test", None, None),
    ]
    assert [dict(clip.metadata) for clip in clips] == [{"quality": "good"}, {}, {"quality": "bad"}]
    assert clips[0].fingerprint != clips[1].fingerprint


def test_a_missing_video_of_a_csv_is_listed_without_digest(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path\ngone.mp4\n")
    listener = Listener()
    record = build_manifest(tmp_path / "clips.csv", tmp_path / "m.jsonl", progress=listener)
    assert record.counts["missing"] == 1
    assert "gone.mp4 does not exist; its clip gone will be recorded as missing (--missing drop" in listener.said[1]
    assert read_manifest(tmp_path / "m.jsonl")[0].digest == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,start,end\na.mp4,3,2\n", "ends at 2.0 s, before it starts at 3.0 s"),
        ("path,start\na.mp4,soon\n", r"clips\.csv:2: start='soon' is not a time"),
        ("path,split\na.mp4,dev\n", r"clips\.csv:2: split 'dev' is not one of train, val, test"),
        ("file\na.mp4\n", "has no column named path, source, video; found file"),
        ("path\na.mp4\na.mp4\n", "two clips have the id"),
        ("path\n", "lists no clip"),
    ],
)
def test_mistakes_in_a_csv_are_named(tmp_path: Path, text: str, message: str) -> None:
    files(tmp_path, "a.mp4")
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(ManifestError, match=message):
        build_manifest(tmp_path / "clips.csv", tmp_path / "m.jsonl")


def test_a_source_without_videos_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist; give a folder of videos"):
        build_manifest(tmp_path / "nowhere", tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match=r"holds no video: .* ends in one of .*\.mp4"):
        build_manifest(files(tmp_path / "v", "readme.txt"), tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match=r"is neither a folder nor a \.csv"):
        build_manifest(tmp_path / "v" / "readme.txt", tmp_path / "m.jsonl")


def test_splits_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        ManifestSettings(val_share=0.5, test_share=0.5)


def test_only_id_and_source_are_needed(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4")
    clip = read_manifest(lines(tmp_path / "m.jsonl", {"id": "a", "source": "a.mp4"}, ""))[0]
    assert (clip.split, clip.label, clip.digest) == ("train", None, digest_file(tmp_path / "a.mp4"))
    assert manifest_fingerprint([clip]) == manifest_fingerprint([clip])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{oops", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ({"id": "b"}, "'source' is missing"),
        ({"source": "b.mp4"}, "'id' is missing"),
        ({"id": "a", "source": "b.mp4"}, "the id 'a' is already used in line 1"),
        ({"id": "../b", "source": "b.mp4"}, "is not a relative path"),
        ({"id": "b", "source": "b.mp4", "split": "dev"}, "split 'dev' is not one of train, val, test"),
        ({"id": "b", "source": "b.mp4", "start": 2, "end": 1}, "ends at 1 s, before it starts at 2 s"),
        ({"id": "b", "source": "b.mp4", "start": "2"}, "start='2' is not a time in seconds"),
        ({"id": "b", "source": "b.mp4", "label": 3}, "the label 3 is not a text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = lines(tmp_path / "m.jsonl", {"id": "a", "source": "a.mp4", "digest": "0"}, entry)
    with pytest.raises(ManifestError, match=f"m.jsonl:2: .*{message}"):
        read_manifest(path)


def test_an_empty_or_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="lists no clip"):
        read_manifest(lines(tmp_path / "m.jsonl", "", ""))
    with pytest.raises(ManifestError, match="does not exist; `lvt manifest build` makes one"):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1b[31mb", "a\u2028b", "a\x85b"])
def test_an_id_that_breaks_a_line_is_refused_by_build_and_by_reading(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match="has a line break or control character in it; rename the clip") as built:
        build_manifest(files(tmp_path / "v", "fine.mp4", f"{name}.mp4"), tmp_path / "m.jsonl")
    listed = lines(tmp_path / "n.jsonl", {"id": name, "source": "v/fine.mp4"})
    with pytest.raises(ManifestError, match=r"n\.jsonl:1: the id .* has a line break or control character") as read:
        read_manifest(listed)
    assert all(str(caught.value).isprintable() for caught in (built, read))
    assert not (tmp_path / "m.jsonl").exists()
