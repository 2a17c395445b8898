"""Videos and lists behind URLs: ids, digests, the local copies that decoders read, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from lvt_pipeline.errors import DecodeError, LVTError, ManifestError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.ingest.shards import DOWNLOADS_NAME
from lvt_pipeline.manifest.manifest import Clip, build_manifest, manifest_fingerprint, read_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.video import locations
from lvt_pipeline.video.locations import absolute, local_copy, parent_of
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4
from tests.conftest import moving_square

# The bucket lives in this process, so tests that ingest from it decode here too.
SETTINGS = IngestSettings(geometry=GeometrySettings(size=16), clips_per_shard=2)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Any]:
    """memory://bucket with train/pour/0.mp4, train/pour/1.mp4 and test/2.mp4; the same files lie in tmp_path/local."""
    system = fsspec.filesystem("memory")
    for number, name in enumerate(["train/pour/0.mp4", "train/pour/1.mp4", "test/2.mp4"]):
        write_mp4(tmp_path / "local" / name, moving_square(number, 6), fps=10)
        system.pipe_file(f"/bucket/{name}", (tmp_path / "local" / name).read_bytes())
    system.pipe_file("/bucket/notes.txt", b"words")
    system.pipe_file("/bucket/.trash/old.mp4", b"words")
    yield system
    system.rm("/bucket", recursive=True)


def listed(source: str, out: Path, media: str | None = None, **settings: Any) -> list[Clip]:
    build_manifest(source, out, ManifestSettings(**settings), media=media)
    return read_manifest(out)


def test_a_bucket_lists_like_the_folder_it_mirrors(bucket: Any, tmp_path: Path) -> None:
    remote = listed("memory://bucket", tmp_path / "r.jsonl")
    assert [(clip.id, clip.source, clip.label) for clip in remote] == [
        ("test/2", "memory://bucket/test/2.mp4", None),
        ("train/pour/0", "memory://bucket/train/pour/0.mp4", "pour"),
        ("train/pour/1", "memory://bucket/train/pour/1.mp4", "pour"),
    ]
    local = listed(str(tmp_path / "local"), tmp_path / "l.jsonl")
    assert manifest_fingerprint(remote) == manifest_fingerprint(local)
    with_slash = listed("memory://bucket/", tmp_path / "s.jsonl")
    assert [clip.id for clip in with_slash] == [clip.id for clip in remote]


def test_a_pattern_matches_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    assert [clip.id for clip in listed("memory://bucket/train/**/*.mp4", tmp_path / "m.jsonl")] == ["pour/0", "pour/1"]
    with pytest.raises(ManifestError, match="matches no video"):
        build_manifest("memory://bucket/**/*.mkv", tmp_path / "m.jsonl")


def test_rows_in_a_bucket_are_arrays_of_the_video_next_to_them(bucket: Any, tmp_path: Path) -> None:
    with bucket.open("/bucket/train/pour/0.action.npy", "wb") as stream:
        np.save(stream, np.arange(6.0))
    listed("memory://bucket", tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    shards = FrameShards(tmp_path / "frames")
    assert shards.arrays("train/pour/0")["action"][:, 0].tolist() == [*range(6)]
    assert shards.arrays("train/pour/1") == {}


def test_frames_from_a_bucket_equal_those_from_disk(bucket: Any, tmp_path: Path) -> None:
    listed("memory://bucket", tmp_path / "r.jsonl")
    listed(str(tmp_path / "local"), tmp_path / "l.jsonl")
    remote = ingest(tmp_path / "r.jsonl", tmp_path / "remote", SETTINGS, num_workers=0)
    local = ingest(tmp_path / "l.jsonl", tmp_path / "here", SETTINGS, num_workers=0)
    assert remote.fingerprint == local.fingerprint
    for name in ("train-000000.tar", "test-000000.tar"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert not (tmp_path / "remote" / DOWNLOADS_NAME).exists()
    shards = FrameShards(tmp_path / "remote")
    assert shards["test/2"].source == "memory://bucket/test/2.mp4"
    assert ingest(tmp_path / "r.jsonl", tmp_path / "remote", SETTINGS, num_workers=0) == remote


def test_lists_and_media_may_lie_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/bucket/t.csv", b"path,end\ntrain/pour/0.mp4,0.3\ntest/2.mp4,\nmemory://bucket/gone.mp4,\n")
    clips = listed("memory://bucket/t.csv", tmp_path / "m.jsonl", split="none")
    assert [(clip.id, clip.end, bool(clip.digest)) for clip in clips] == [
        ("train/pour/0", 0.3, True),
        ("test/2", None, True),
        ("gone", None, False),
    ]
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert (record.counts["clips"], record.counts["failures_by_reason"]) == (2, {"missing": 1})
    assert FrameShards(tmp_path / "frames")["train/pour/0"].num_frames == 3
    failure = json.loads((tmp_path / "frames" / "failures.jsonl").read_text())
    assert failure["source"] == "memory://bucket/gone.mp4"
    (tmp_path / "local.csv").write_text("path\npour/0.mp4\n")
    media = listed(str(tmp_path / "local.csv"), tmp_path / "n.jsonl", media="memory://bucket/train")
    assert (media[0].id, media[0].source) == ("pour/0", "memory://bucket/train/pour/0.mp4")


def test_a_broken_object_fails_under_its_own_name(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("/bucket/test/words.mp4", b"these are words\n" * 100)
    listed("memory://bucket", tmp_path / "m.jsonl")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    failure = json.loads((tmp_path / "frames" / "failures.jsonl").read_text())
    assert (failure["id"], failure["reason"]) == ("test/words", "unreadable")
    assert failure["message"] == "words.mp4 is not a video, or its index is missing or damaged"


def test_a_missing_object_that_appears_is_read_then(bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\nmemory://bucket/test/2.mp4\nmemory://bucket/late.mp4\n")
    listed(str(tmp_path / "t.csv"), tmp_path / "m.jsonl", split="none")
    ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    bucket.pipe_file("/bucket/late.mp4", bucket.cat_file("/bucket/train/pour/0.mp4"))
    listed(str(tmp_path / "t.csv"), tmp_path / "m.jsonl", split="none")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert (record.counts["clips"], record.counts["failures"]) == (2, 0)


def test_an_object_that_comes_back_is_read_again(bucket: Any, tmp_path: Path) -> None:
    listed("memory://bucket", tmp_path / "m.jsonl")
    content = bucket.cat_file("/bucket/test/2.mp4")
    bucket.rm("/bucket/test/2.mp4")
    assert ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0).counts["failures"] == 1
    bucket.pipe_file("/bucket/test/2.mp4", content)
    assert ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0).counts["failures"] == 0


def test_an_object_that_changed_is_noticed(bucket: Any, tmp_path: Path) -> None:
    before = listed("memory://bucket", tmp_path / "m.jsonl")
    bucket.pipe_file("/bucket/test/2.mp4", bucket.cat_file("/bucket/test/2.mp4")[:-1] + b"?")  # of the same size
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=0)
    assert record.counts["failures_by_reason"] == {"changed": 1}
    assert listed("memory://bucket", tmp_path / "m.jsonl")[0].digest != before[0].digest


def test_unchanged_objects_are_hashed_once(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = locations._digest_stream
    monkeypatch.setattr(locations, "_digest_stream", lambda path: read.append(path.path) or original(path))
    clips = listed("memory://bucket", tmp_path / "m.jsonl")
    assert len(read) == 3
    assert listed("memory://bucket", tmp_path / "m.jsonl") == clips
    assert len(read) == 3
    assert clips[0].digest == digest_file(tmp_path / "local" / "test" / "2.mp4")


def test_file_urls_are_paths(bucket: Any, tmp_path: Path) -> None:
    one = build_manifest(f"file://{tmp_path}/local", tmp_path / "m.jsonl")
    assert build_manifest(tmp_path / "local", tmp_path / "n.jsonl").fingerprint == one.fingerprint
    assert read_manifest(tmp_path / "m.jsonl")[0].source == str(tmp_path / "local" / "test" / "2.mp4")
    record = ingest(tmp_path / "m.jsonl", tmp_path / "frames", SETTINGS, num_workers=1)
    assert record.counts["clips"] == 3


def test_a_copy_is_kept_for_the_next_clip_of_the_same_video_and_no_longer(bucket: Any, tmp_path: Path) -> None:
    first, second = "memory://bucket/train/pour/0.mp4", "memory://bucket/train/pour/1.mp4"
    with local_copy(first, tmp_path / "d") as copy:
        assert Path(copy).read_bytes() == bucket.cat_file("/bucket/train/pour/0.mp4")
    bucket.rm("/bucket/train/pour/0.mp4")
    with local_copy(first, tmp_path / "d") as again:
        assert again == copy
    with local_copy(second, tmp_path / "d"):
        assert len([path for path in (tmp_path / "d").rglob("*") if path.is_file()]) == 1


def test_an_object_larger_than_the_limit_is_a_failure(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "MAX_DOWNLOAD_BYTES", 100)
    with (
        pytest.raises(DecodeError, match=r"has .* bytes, more than fits: at most 100 bytes are copied") as caught,
        local_copy("memory://bucket/test/2.mp4", tmp_path / "d"),
    ):
        pass
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "nonsense://bucket",
            "nonsense://bucket cannot be read through nonsense://: Unsupported",
        ),
        ("memory://nowhere", "memory://nowhere does not exist"),
        ("s3://bucket/videos", "s3://bucket/videos cannot be read: Install s3fs"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_clear_error(tmp_path: Path, url: str, message: str) -> None:
    if url.startswith("s3://") and _has_s3fs():
        pytest.skip("s3fs is installed")
    with pytest.raises(LVTError, match=message):
        build_manifest(url, tmp_path / "m.jsonl")


def _has_s3fs() -> bool:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("kind", ["bair", "frames", "ucf101"])
def test_kinds_that_need_many_small_reads_ask_for_a_local_folder(bucket: Any, tmp_path: Path, kind: Any) -> None:
    with pytest.raises(ManifestError, match="copy it to this machine first"):
        build_manifest("memory://bucket", tmp_path / "m.jsonl", ManifestSettings(kind=kind))


def test_relative_places_count_from_their_folder() -> None:
    assert absolute("s3://bucket/a", "b/../c.mp4") == "s3://bucket/a/c.mp4"
    assert absolute("s3://bucket/a", "s3://other/c.mp4") == "s3://other/c.mp4"
    assert absolute("s3://bucket/a", "/videos/c.mp4") == "/videos/c.mp4"
    assert absolute("/data", "file:///other/a%20b.mp4") == "/other/a b.mp4"
    assert absolute("/data", "../x/c.mp4") == "/x/c.mp4"
    assert parent_of("s3://bucket/a/t.csv") == "s3://bucket/a"


def test_a_url_that_went_through_a_path_is_a_url_still(bucket: Any, tmp_path: Path) -> None:
    assert [clip.id for clip in listed(Path("memory://bucket"), tmp_path / "r.jsonl")] == [  # type: ignore[arg-type]
        "test/2",
        "train/pour/0",
        "train/pour/1",
    ]


def test_hidden_and_other_objects_are_counted(bucket: Any, tmp_path: Path) -> None:
    left_out = build_manifest("memory://bucket", tmp_path / "r.jsonl").counts["not_listed"]
    assert {reason: entry["examples"] for reason, entry in left_out.items()} == {
        "other": ["notes.txt"],
        "hidden": [".trash/old.mp4"],
    }
