"""A listing accounts for everything it passes over, opens regular files only and never stops at one odd entry."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.walk import describe_left_out
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.read import read_clip
from lvt_pipeline.video.settings import GeometrySettings
from tests.listener import Listener

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 414429\n"


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def pictures(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03d}.png")
    return folder


def built(source: Path | str, out: Path, **settings: Any) -> tuple[list[str], dict[str, Any], str]:
    """Ids, what was passed over, and the line that says so."""
    listener = Listener()
    record = build_manifest(source, out, ManifestSettings(**settings), progress=listener)
    lines = [line for line in listener.said if ": left out: " in line]
    left_out = record.counts["not_listed"]
    assert lines == ([f"{source}: {describe_left_out(left_out)}"] if left_out else [])
    return [clip.id for clip in read_manifest(out)], left_out, "".join(lines)


def test_every_entry_is_listed_or_counted(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "a.mp4", "b.mxf", "c.f4v", "d.divx", "e.ogg", "notes.txt", "more.TXT", "LICENSE")
    files(source, "list.m3u8", "x.tfrecord", ".hidden/x.mp4")
    pictures(source / "run" / "clip1")
    pictures(source / "run" / "clip2")
    (source / "gone.mp4").symlink_to("nowhere.mp4")
    (source / "again").symlink_to(source / "run")
    (source / "lfs.mp4").write_text(POINTER)
    ids, left_out, line = built(source, tmp_path / "m.jsonl")
    assert ids == ["a", "b", "c", "d", "e"]
    assert {reason: entry["count"] for reason, entry in left_out.items()} == {
        "pictures": 2,
        "records": 1,
        "git-lfs": 1,
        "playlists": 1,
        "broken-link": 1,
        "linked-again": 1,
        "other": 3,
        "hidden": 1,
    }
    assert left_out["other"]["endings"] == {".txt": 2, "no ending": 1}
    assert left_out["pictures"]["examples"] in (["run/clip1", "run/clip2"], ["again/clip1", "again/clip2"])
    assert "2 folders of pictures (" in line
    assert "list them with --kind frames" in line
    assert "1 Git LFS pointer (lfs.mp4; fetch the files with `git lfs pull`)" in line


def test_three_examples_are_given_of_many(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "a.mp4", *(f"{number}.m3u8" for number in range(9)))
    _, left_out, line = built(source, tmp_path / "m.jsonl")
    assert left_out["playlists"] == {"count": 9, "examples": ["0.m3u8", "1.m3u8", "2.m3u8"]}
    assert "9 playlists and scripts (0.m3u8, 1.m3u8, 2.m3u8, ...; list the videos themselves)" in line


def test_the_manifest_in_its_own_folder_is_not_counted(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "b.mp4")
    first = built(tmp_path, tmp_path / "m.jsonl")
    assert built(tmp_path, tmp_path / "m.jsonl")[1].get("other") is first[1].get("other") is None


def test_a_record_counts_what_is_passed_over_today(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "a.mp4")
    assert built(source, tmp_path / "m.jsonl")[1] == {}
    files(source, "b.txt")
    assert built(source, tmp_path / "m.jsonl")[1]["other"]["count"] == 1


# Only regular files are opened --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [".", "**/*.mp4", "t.csv", "t.jsonl"])
def test_a_pipe_is_never_opened(tmp_path: Path, source: str) -> None:
    files(tmp_path / "v", "v/a.mp4")
    os.mkfifo(tmp_path / "v" / "v" / "pipe.mp4")
    os.mkfifo(tmp_path / "v" / "pipe.csv")
    files(tmp_path / "v")
    (tmp_path / "v" / "t.csv").write_text("path\nv/a.mp4\nv/pipe.mp4\n")
    (tmp_path / "v" / "t.jsonl").write_text('{"path": "v/a.mp4"}\n{"path": "v/pipe.mp4"}\n')
    code = (
        "import sys; from pathlib import Path\n"
        "from lvt_pipeline.manifest.manifest import *; from tests.listener import *\n"
        "heard = Listener(); build_manifest(sys.argv[1], Path(sys.argv[2]), progress=heard)\n"
        "print([clip.id for clip in read_manifest(Path(sys.argv[2]))], heard.said)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "v" / source), str(tmp_path / "m.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # it must not wait
    assert "'v/a'" in done.stdout or "'a'" in done.stdout
    assert any(words in done.stdout for words in ("pipe, socket or device", "pipes, sockets", "it is a named pipe"))


def test_a_device_or_socket_among_pictures_is_not_a_frame(tmp_path: Path) -> None:
    clip = pictures(tmp_path / "v" / "clip")
    os.mkfifo(clip / "009.png")
    (clip / "x.png").mkdir()
    ids, left_out, _ = built(tmp_path / "v", tmp_path / "m.jsonl")
    assert ids == ["clip"]
    assert left_out["special"]["examples"] == ["clip/009.png"]


# Odd entries cost themselves -----------------------------------------------------------------------------------------


def unprivileged() -> list[str]:
    """What starts a command that cannot read everything: root can."""
    return [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
def test_folders_and_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    files(tmp_path / "v", "train/run/1.mp4", "train/walk/1.mp4", "train/walk/2.mp4")
    (tmp_path / "v" / "train" / "run").chmod(0)
    (tmp_path / "v" / "train" / "walk" / "2.mp4").chmod(0)
    command = [*unprivileged(), sys.executable, "-m", "lvt_pipeline", "manifest", "build", tmp_path / "v", "-o"]
    try:
        done = subprocess.run([*command, tmp_path / "m.jsonl"], capture_output=True, text=True, check=True)
    finally:
        (tmp_path / "v" / "train" / "run").chmod(stat.S_IRWXU)
    text = " ".join((done.stdout + done.stderr).split())
    assert "1 entry that cannot be read (train/run; check owner and mode)" in text
    assert "2.mp4 cannot be read: permission denied" in text
    assert [clip.id for clip in read_manifest(tmp_path / "m.jsonl")] == ["train/walk/1", "train/walk/2"]


def test_paths_that_are_too_long_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "deep", "top.mp4")
    monkeypatch.chdir(tmp_path / "deep")
    for _ in range(22):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    Path("bottom.mp4").write_text("x")
    monkeypatch.chdir(tmp_path)
    ids, left_out, _ = built(tmp_path / "deep", tmp_path / "m.jsonl")
    assert ids == ["top"]
    assert left_out["too-long"]["count"] == 1
    subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)


def test_a_name_that_is_not_utf_8_costs_itself_only(tmp_path: Path) -> None:
    source = files(tmp_path / "v", "a.mp4")
    try:
        Path(os.fsdecode(os.fsencode(source) + b"/\xff.mp4")).write_text("x")
    except OSError:
        pytest.skip("this file system stores UTF-8 only")
    ids, left_out, line = built(source, tmp_path / "m.jsonl")
    assert ids == ["a"]
    assert left_out["not-utf-8"]["count"] == 1
    line.encode()


def test_a_clip_with_a_broken_link_is_left_out_and_not_shortened(tmp_path: Path) -> None:
    pictures(tmp_path / "v" / "whole")
    (pictures(tmp_path / "v" / "part") / "009.png").symlink_to("gone.png")
    ids, left_out, line = built(tmp_path / "v", tmp_path / "m.jsonl")
    assert ids == ["whole"]
    assert left_out["incomplete"]["examples"] == ["part"]
    assert "restore the missing pictures" in line


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tiff"])
def test_animated_pictures_are_left_out_and_never_reduced_to_their_first(tmp_path: Path, name: str) -> None:
    pictures(tmp_path / "v" / "whole")
    frames = [Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)) for number in range(3)]
    (tmp_path / "v" / "film").mkdir()
    frames[0].save(tmp_path / "v" / "film" / name, save_all=True, append_images=frames[1:])
    ids, left_out, line = built(tmp_path / "v", tmp_path / "m.jsonl")
    assert ids == ["whole"]
    assert left_out["animated"] == {"count": 1, "examples": [f"film/{name}"]}
    assert "convert them to videos" in line
    shutil.rmtree(tmp_path / "v" / "whole")
    with pytest.raises(ManifestError, match="1 animated picture"):
        build_manifest(tmp_path / "v", tmp_path / "m.jsonl")


# Causes and remedies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("sub", "is a folder without pictures; name a video"),
        ("link.mp4", "is a broken link"),
        ("gone.mp4", "does not exist"),
        ("lfs.mp4", "is a Git LFS pointer; fetch the file with `git lfs pull`"),
        ("pictures", "holds a broken link: 009.png"),
    ],
)
def test_a_row_without_a_usable_file_gets_its_cause(tmp_path: Path, path: str, problem: str) -> None:
    files(tmp_path, "sub/a.mp4", "ok.mp4")
    (tmp_path / "link.mp4").symlink_to("nowhere")
    (tmp_path / "lfs.mp4").write_text(POINTER)
    (pictures(tmp_path / "pictures") / "009.png").symlink_to("nowhere")
    (tmp_path / "c.csv").write_text(f"path\nok.mp4\n{path}\n")
    listener = Listener()
    build_manifest(tmp_path / "c.csv", tmp_path / "m.jsonl", progress=listener)
    assert any(line.startswith(f"{tmp_path / path} {problem}") for line in listener.said), listener.said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"path;label\na.mp4;x\n", "separates its columns with semicolons; save it with commas"),
        ("c.csv", b"path\tlabel\na.mp4\tx\n", "separates its columns with tabs"),
        ("v.m3u8", b"#EXTM3U\n", "is a playlist or a script"),
        ("c.csv", b"path\nlist.m3u8\n", "lists no video; left out: 1 playlist or script"),
        ("v/a.tfrecords", b"", "1 empty record file"),
        ("v/a.tfrecords", b"\x1f\x8b\x08\x00" + bytes(40), "1 compressed record file .*gzip -d"),
        ("v/a.tfrecords", POINTER.encode(), "1 Git LFS pointer .*git lfs pull"),
        ("v/a.mp4", POINTER.encode(), "1 Git LFS pointer .*git lfs pull"),
    ],
)
def test_what_cannot_be_listed_is_named_with_its_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    source = tmp_path / name if "/" not in name else (tmp_path / name).parent
    with pytest.raises(ManifestError, match=message) as caught:
        build_manifest(source, tmp_path / "m.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("pipe.mp4", "unreadable", "it is a named pipe"),
        ("lfs.mp4", "unreadable", "git lfs pull"),
        ("folder.mp4", "unreadable", "it is a folder"),
        ("gone.mp4", "missing", "does not exist"),
    ],
)
def test_a_clip_that_is_not_a_regular_file_fails_with_its_cause(
    tmp_path: Path, name: str, reason: str, message: str
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "lfs.mp4").write_text(POINTER)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(DecodeError, match=message) as caught:
        read_clip(Clip(id="a", source=str(tmp_path / name), digest=""), GeometrySettings(), tmp_path)
    assert caught.value.reason == reason


def test_a_broken_link_as_a_source_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "v").symlink_to("nowhere")
    with pytest.raises(ManifestError, match="is a broken link"):
        build_manifest(tmp_path / "v", tmp_path / "m.jsonl")


def test_line_separators_in_captions_and_labels_survive(tmp_path: Path) -> None:
    files(tmp_path / "v", *(f"{number}.mp4" for number in range(3)))
    rows = "".join(f"v/{number}.mp4,one{char}two,a{char}b\n" for number, char in enumerate("\u2028\u2029\u0085"))
    (tmp_path / "c.csv").write_text(f"path,caption,label\n{rows}")
    build_manifest(tmp_path / "c.csv", tmp_path / "m.jsonl")
    clips = read_manifest(tmp_path / "m.jsonl")
    assert [(clip.metadata["caption"], clip.label) for clip in clips] == [
        (f"one{char}two", f"a{char}b") for char in "\u2028\u2029\u0085"
    ]


@pytest.mark.parametrize("char", "\u2028\u2029\u0085")
def test_line_separators_in_names_are_refused_in_one_line(tmp_path: Path, char: str) -> None:
    with pytest.raises(ManifestError, match=r"line break or control character.*rename the clip") as caught:
        build_manifest(files(tmp_path / "v", f"a{char}b.mp4"), tmp_path / "m.jsonl")
    assert len(str(caught.value).splitlines()) == 1
