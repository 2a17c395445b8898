"""CSV and JSON Lines with any columns, patterns, and how a source is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.manifest import Clip, build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from tests.listener import Listener


def files(root: Path, *names: str) -> Path:
    """Files that are no videos: a manifest does not look inside. Each holds its own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listed(source: Path | str, out: Path, media: Path | None = None, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings), media=media)
    return read_manifest(out)


def test_columns_of_a_csv_may_have_any_name(tmp_path: Path) -> None:
    files(tmp_path / "v", "a.mp4", "b.mp4")
    (tmp_path / "t.csv").write_text("file,action,fold,camera,note\na.mp4,pour,test,left,\nb.mp4,,train,right,good\n")
    clips = listed(
        tmp_path / "t.csv",
        tmp_path / "m.jsonl",
        tmp_path / "v",
        path_column="file",
        label_column="action",
        split_column="fold",
    )
    assert [(clip.id, clip.label, clip.split) for clip in clips] == [("a", "pour", "test"), ("b", None, "train")]
    assert [dict(clip.metadata) for clip in clips] == [{"camera": "left"}, {"camera": "right", "note": "good"}]


def test_a_column_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,action\na.mp4,pour\n")
    with pytest.raises(ManifestError, match=r"has no column 'verb' \(label_column\); found path, action"):
        listed(tmp_path / "t.csv", tmp_path / "m.jsonl", label_column="verb")
    (tmp_path / "t.csv").write_text("file,action\na.mp4,pour\n")
    with pytest.raises(ManifestError, match=r"no column named path, source, video; found file, action; --path-column"):
        listed(tmp_path / "t.csv", tmp_path / "m.jsonl")


def test_json_lines_keep_any_column_with_its_type(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "d/b.mp4")
    rows = [
        {"video": "a.mp4", "label": 3, "start": 1, "end": 2.5, "size": [64, 48], "is_good": False, "note": None},
        {"video": "a.mp4", "start": 3, "camera": {"fov": 0.5}, "kind": "indoor"},
        {"id": "mine", "video": "d/b.mp4", "split": "test"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    clips = listed(tmp_path / "t.jsonl", tmp_path / "m.jsonl")
    assert [(clip.id, clip.label, clip.start, clip.end) for clip in clips] == [
        ("a@1-2.5", "3", 1.0, 2.5),
        ("a@3-end", None, 3.0, None),
        ("mine", "d", None, None),
    ]
    assert [dict(clip.metadata) for clip in clips] == [
        {"size": [64, 48], "is_good": False},
        {"camera": {"fov": 0.5}, "kind": "indoor"},
        {},
    ]
    assert clips[2].split == "test"


def test_a_manifest_is_a_source_too(tmp_path: Path) -> None:
    files(tmp_path, "v/train/a.mp4", "v/val/b.mp4", "v/test/c.mp4")
    (tmp_path / "t.csv").write_text("path,split,note\nv/train/a.mp4,train,x\nv/val/b.mp4,val,\nv/test/c.mp4,test,\n")
    first = build_manifest(tmp_path / "t.csv", tmp_path / "m.jsonl")
    again = build_manifest(tmp_path / "m.jsonl", tmp_path / "n.jsonl")
    assert (tmp_path / "n.jsonl").read_bytes() == (tmp_path / "m.jsonl").read_bytes()
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.mp4"\n', r"t\.jsonl:1: not a JSON object"),
        ('\n["a.mp4"]\n', r"t\.jsonl:2: not a JSON object, found \[\"a.mp4\"\]"),
        ('{"path": "a.mp4"}\n{"path": 3}\n', r"t\.jsonl:2: the column 'path' is empty"),
        ('{"path": "a.mp4", "start": [1]}\n', r"t\.jsonl:1: start=\[1\] is not a time"),
        ('{"path": "a.mp4", "split": "dev"}\n', r"t\.jsonl:1: split 'dev' is not one of"),
        ("\n", "lists no clip; it needs one JSON object per line"),
    ],
)
def test_mistakes_in_json_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    files(tmp_path, "a.mp4")
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ManifestError, match=message):
        build_manifest(tmp_path / "t.jsonl", tmp_path / "m.jsonl")


def test_a_pattern_lists_what_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "v", "a/x.mp4", "a/b/y.mp4", "a/z.avi", "a/odd.bin", "a/.hidden.mp4", "other/w.mp4")
    monkeypatch.chdir(tmp_path)
    clips = listed("v/**/*.mp4", tmp_path / "m.jsonl", split="none")
    assert [(clip.id, clip.label) for clip in clips] == [("a/b/y", "b"), ("a/x", "a"), ("other/w", "other")]
    assert clips[0].source == str(tmp_path / "v" / "a" / "b" / "y.mp4")
    ids = [clip.id for clip in listed(f"{tmp_path}/v/a/*", tmp_path / "m.jsonl", split="none")]
    assert ids == ["x", "z"]  # of everything, the videos
    assert [clip.id for clip in listed("v/a/*.bin", tmp_path / "m.jsonl")] == ["odd"]  # of an ending, all
    with pytest.raises(ManifestError, match=r"v/\*\.mkv matches no video"):
        build_manifest("v/*.mkv", tmp_path / "m.jsonl")


def test_ids_of_a_pattern_equal_those_of_the_folder(tmp_path: Path) -> None:
    files(tmp_path / "v", "a/x.mp4", "a/b/y.mp4", "train/z.mp4")
    folder = build_manifest(tmp_path / "v", tmp_path / "m.jsonl")
    assert build_manifest(f"{tmp_path}/v/**/*.mp4", tmp_path / "n.jsonl").fingerprint == folder.fingerprint


def test_a_folder_whose_name_has_wildcards_is_a_folder(tmp_path: Path) -> None:
    files(tmp_path / "v[1]", "a.mp4")
    assert [clip.id for clip in listed(tmp_path / "v[1]", tmp_path / "m.jsonl")] == ["a"]


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (["a.mp4", "b/0001.png", "c.tfrecords"], "a folder of videos"),
        (["b/0001.png", "b/0002.png"], "folders of pictures"),
        (["train/c.tfrecords", "preview.png"], "BAIR tfrecords"),
        (["a.mp4", "lists/trainlist01.txt"], "class folders with UCF101's split files"),
        (["a.mp4", "notes.csv"], "a folder of videos"),
    ],
)
def test_a_folder_is_recognised_by_what_lies_in_it(tmp_path: Path, names: list[str], recognised: str) -> None:
    source = files(tmp_path / "d", *names)
    listener = Listener()
    with suppress(ManifestError):  # these files are no records and no lists
        build_manifest(source, tmp_path / "m.jsonl", progress=listener)
    assert listener.said[0] == f"{source}: recognised as {recognised}"


def test_a_kind_that_is_asked_for_is_not_second_guessed(tmp_path: Path) -> None:
    source = files(tmp_path / "d", "a.mp4", "lists/trainlist01.txt")
    listener = Listener()
    build_manifest(source, tmp_path / "m.jsonl", ManifestSettings(kind="folder"), progress=listener)
    assert [clip.id for clip in read_manifest(tmp_path / "m.jsonl")] == ["a"]
    assert listener.said == [f"{source}: left out: 1 file of another kind (.txt 1)"]


def test_every_option_of_the_command_arrives(tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]) -> None:
    files(tmp_path / "v", "a.mp4", "b.mp4")
    (tmp_path / "t.csv").write_text("file,action\na.mp4,pour\nb.mp4,stir\ngone.mp4,stir\n")
    code, out, err = lvt(
        *("manifest", "build", tmp_path / "t.csv", "-o", tmp_path / "m.jsonl", "--media", tmp_path / "v"),
        *("--path-column", "file", "--label-column", "action", "--split", "none"),
    )
    assert (code, out) == (0, f"3 clips (3 train, 0 val, 0 test, 1 missing) -> {tmp_path / 'm.jsonl'}\n")
    assert f"{tmp_path / 't.csv'}: recognised as a CSV that lists videos" in err
    assert "gone.mp4 does not exist; its clip gone will be recorded as missing (--missing drop leaves it out)" in err
    code, out, _ = lvt(
        *("manifest", "build", tmp_path / "t.csv", "-o", tmp_path / "m.jsonl", "--media", tmp_path / "v", "--json"),
        *("--kind", "csv", "--path-column", "file", "--missing", "drop"),
    )
    assert (code, json.loads(out)["counts"]["clips"]) == (0, 2)
    assert {clip.label for clip in read_manifest(tmp_path / "m.jsonl")} == {None}


def test_a_pipeline_runs_from_a_list_and_its_media(tmp_path: Path) -> None:
    from lvt_pipeline.workspace.settings import load_settings

    (tmp_path / "pipeline.toml").write_text('videos = "lists/t.csv"\nmedia = "v"\n')
    settings = load_settings(file=tmp_path / "pipeline.toml")
    assert (settings.videos, settings.media) == (str(tmp_path / "lists" / "t.csv"), str(tmp_path / "v"))
    (tmp_path / "pipeline.toml").write_text('videos = "s3://bucket/t.csv"\nmedia = "s3://bucket/v"\n')
    settings = load_settings(file=tmp_path / "pipeline.toml")
    assert (settings.videos, settings.media) == ("s3://bucket/t.csv", "s3://bucket/v")
