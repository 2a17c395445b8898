"""Ingest: every clip in the shards or among the failures, nothing done twice, killed runs end with the same bytes."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lvt_pipeline.errors import ArtefactError, BusyError, LVTError, OverBudget
from lvt_pipeline.frames.records import receipts_in
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest import shards as ingest_shards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.ingest.shards import DecodedPayload, DecodeTask, decode_task
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.storage import exclusive_lock
from lvt_pipeline.video.clips import Note
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
GEOMETRY = GeometrySettings(size=16)
SETTINGS = IngestSettings(geometry=GEOMETRY, clips_per_shard=2)
EXIT_STOPPED = 75


def video(path: Path, seed: int, num_frames: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (1, 20, 24, 3), np.uint8)
    frames = np.concatenate([np.roll(noise, index, axis=2) for index in range(num_frames)])
    write_mp4(path, frames, fps=10)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for index in range(5):
        video(tmp_path / "videos" / "train" / f"{index}.mp4", index)
    video(tmp_path / "videos" / "val" / "v.mp4", 10)
    video(tmp_path / "videos" / "test" / "t.mp4", 11)
    return tmp_path / "videos"


@pytest.fixture
def manifest(videos: Path, tmp_path: Path) -> Path:
    return listed(videos)


def listed(videos: Path) -> Path:
    build_manifest(videos, videos.parent / "m.jsonl")
    return videos.parent / "m.jsonl"


def contents(out: Path) -> dict[str, bytes]:
    """Everything but the record, which tells when it was made."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


class Decodes:
    """Which sources were decoded, in place of the worker's function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        original = ingest_shards.decode_task

        def remember(task: Any) -> Any:
            self.names.append(Path(task.clip.source).stem)
            return original(task)

        monkeypatch.setattr(ingest_shards, "decode_task", remember)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    return Decodes(monkeypatch)


def test_every_clip_lands_in_a_shard_of_its_split(manifest: Path, tmp_path: Path, videos: Path) -> None:
    record = ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=2)
    shards = FrameShards(tmp_path / "frames")
    assert [clip.id for clip in shards.clips] == [*(f"train/{index}" for index in range(5)), "val/v", "test/t"]
    assert sorted(path.name for path in (tmp_path / "frames").glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]
    expected = decode_clip(str(videos / "train" / "3.mp4"), None, None, GEOMETRY).frames
    assert np.array_equal(shards.read("train/3"), expected)
    assert (record.counts["clips"], record.counts["frames"], record.counts["failures"]) == (7, 42, 0)
    assert record.fingerprint == shards.fingerprint
    assert shards["train/3"].source == str(videos / "train" / "3.mp4")


def test_workers_and_codecs_do_not_change_frames_or_bytes(manifest: Path, tmp_path: Path) -> None:
    ingest(manifest, tmp_path / "one", SETTINGS, num_workers=0)
    ingest(manifest, tmp_path / "two", SETTINGS, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    png = IngestSettings(geometry=GEOMETRY, clips_per_shard=2, codec="png")
    ingest(manifest, tmp_path / "png", png, num_workers=0)
    one, packed = FrameShards(tmp_path / "one"), FrameShards(tmp_path / "png")
    assert all(np.array_equal(one.read(clip), packed.read(clip.id)) for clip in one.clips)
    assert one.fingerprint == packed.fingerprint


def test_running_again_changes_nothing(manifest: Path, tmp_path: Path, decodes: Decodes) -> None:
    first = ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()}
    decodes.names.clear()
    assert ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0) == first
    assert decodes.names == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()} == before


def add_a_clip(videos: Path) -> None:
    video(videos / "train" / "2b.mp4", 20)


def change_a_clip(videos: Path) -> None:
    video(videos / "train" / "1.mp4", 21)


def remove_a_clip(videos: Path) -> None:
    (videos / "train" / "0.mp4").unlink()


def rename_a_clip(videos: Path) -> None:
    (videos / "train" / "0.mp4").rename(videos / "train" / "z.mp4")


def move_a_clip_to_another_split(videos: Path) -> None:
    (videos / "train" / "4.mp4").rename(videos / "val" / "4.mp4")


@pytest.mark.parametrize(
    ("change", "decoded"),
    [
        (add_a_clip, ["2b"]),
        (change_a_clip, ["1"]),
        (remove_a_clip, []),
        (rename_a_clip, []),
        (move_a_clip_to_another_split, []),
    ],
)
def test_an_update_decodes_only_what_is_new_and_equals_a_fresh_run(
    manifest: Path, videos: Path, tmp_path: Path, decodes: Decodes, change: Callable[[Path], None], decoded: list[str]
) -> None:
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    change(videos)
    decodes.names.clear()
    updated = ingest(listed(videos), tmp_path / "frames", SETTINGS, num_workers=0)
    assert decodes.names == decoded
    fresh = ingest(manifest, tmp_path / "fresh", SETTINGS, num_workers=0)
    assert contents(tmp_path / "frames") == contents(tmp_path / "fresh")
    assert (updated.fingerprint, updated.outputs) == (fresh.fingerprint, fresh.outputs)


@pytest.mark.parametrize(
    ("settings", "num_decoded"),
    [
        (IngestSettings(geometry=GeometrySettings(size=8), clips_per_shard=2), 7),
        (IngestSettings(geometry=GeometrySettings(size=16, max_frames=3), clips_per_shard=2), 7),
        (IngestSettings(geometry=GEOMETRY, clips_per_shard=3), 0),
        (IngestSettings(geometry=GEOMETRY, clips_per_shard=2, codec="png"), 0),
    ],
)
def test_other_settings_redo_what_they_must_and_equal_a_fresh_run(
    manifest: Path, tmp_path: Path, decodes: Decodes, settings: IngestSettings, num_decoded: int
) -> None:
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    decodes.names.clear()
    ingest(manifest, tmp_path / "frames", settings, num_workers=0)
    assert len(decodes.names) == num_decoded
    ingest(manifest, tmp_path / "fresh", settings, num_workers=0)
    assert contents(tmp_path / "frames") == contents(tmp_path / "fresh")


def test_an_interrupted_update_leaves_the_old_frames_readable_and_can_be_finished(
    manifest: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames"
    before = ingest(manifest, out, SETTINGS, num_workers=0)
    for index in range(5):
        video(videos / "train" / f"{index}.mp4", 30 + index)
    listed(videos)
    original, calls = ingest_shards.stage_shard, []

    def breaks(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ingest_shards, "stage_shard", breaks)
        ingest(manifest, out, SETTINGS, num_workers=0)
    assert FrameShards(out).fingerprint == before.fingerprint
    assert len(list((out / "next").rglob("*.tar"))) == 2

    decodes = Decodes(monkeypatch)
    ingest(manifest, out, SETTINGS, num_workers=0)
    assert decodes.names == ["4"]
    ingest(manifest, tmp_path / "fresh", SETTINGS, num_workers=0)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_lost_shard_is_made_again(manifest: Path, tmp_path: Path, decodes: Decodes) -> None:
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    before = contents(tmp_path / "frames")
    (tmp_path / "frames" / "train-000001.tar").unlink()
    decodes.names.clear()
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    assert decodes.names == ["2", "3"]
    assert contents(tmp_path / "frames") == before


# Failures


@pytest.fixture
def mixed(videos: Path) -> Path:
    """Good clips and one of each kind that fails."""
    (videos / "train" / "empty.mp4").touch()
    (videos / "train" / "text.mp4").write_text("not a video\n" * 50)
    data = video(videos / "train" / "cut.mp4", 40, num_frames=30).read_bytes()
    (videos / "train" / "cut.mp4").write_bytes(data[: len(data) // 2])
    return listed(videos)


def test_failures_have_reasons_and_the_others_are_kept(mixed: Path, tmp_path: Path) -> None:
    record = ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=1)
    lines = [json.loads(line) for line in (tmp_path / "frames" / "failures.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {
        "train/cut": "truncated",
        "train/empty": "unreadable",
        "train/text": "unreadable",
    }
    assert set(lines[0]) == {"id", "source", "reason", "message", "decoder"}
    assert lines[0]["source"] == "../videos/train/cut.mp4"
    assert record.counts["failures_by_reason"] == {"unreadable": 2, "truncated": 1}
    assert record.counts["clips"] == len(FrameShards(tmp_path / "frames").clips) == 7
    assert {failure.id for failure in FrameShards(tmp_path / "frames").failures} == {line["id"] for line in lines}


def test_the_command_ends_with_a_table_of_reasons(mixed: Path, tmp_path: Path, lvt: Any) -> None:
    code, text, _ = lvt("ingest", "--manifest", mixed, "-o", tmp_path / "frames", "--size", 16, "--workers", 1)
    assert code == 0
    first, *table = text.splitlines()
    assert first.startswith("7 clips, 42 frames, 3 failed (see ")
    assert [line.split() for line in table] == [["unreadable", "2"], ["truncated", "1"]]


def test_failures_are_remembered_until_asked_for_or_changed(
    mixed: Path, videos: Path, tmp_path: Path, decodes: Decodes
) -> None:
    ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=0)
    decodes.names.clear()
    ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=0)
    assert decodes.names == []
    before = contents(tmp_path / "frames")
    ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=0, retry_failed=True)
    assert sorted(decodes.names) == ["cut", "empty", "text"]
    assert contents(tmp_path / "frames") == before
    decodes.names.clear()
    video(videos / "train" / "text.mp4", 41)
    record = ingest(listed(videos), tmp_path / "frames", SETTINGS, num_workers=0)
    assert decodes.names == ["text"]
    assert record.counts["failures"] == 2


def test_too_many_failures_finish_and_then_complain(mixed: Path, tmp_path: Path) -> None:
    for _ in range(2):  # running again does not make it better
        with pytest.raises(OverBudget, match=r"3 of 10 clips failed \(2 unreadable, 1 truncated\)") as caught:
            ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=0, max_failures=0.2)
        assert caught.value.exit_code == 3
    assert len(FrameShards(tmp_path / "frames").clips) == 7


def hangs_or_crashes_on_some(task: DecodeTask) -> list[DecodedPayload]:
    """A worker's function that meets files of the worst kinds."""
    if task.clip.source.endswith("train/0.mp4"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if task.clip.source.endswith("train/1.mp4"):
        return len(bytearray(64 << 30))  # type: ignore[return-value]
    if task.clip.source.endswith("train/3.mp4"):
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_task(task)


def test_clips_that_hang_or_crash_are_recorded_and_can_be_retried(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ingest_shards, "decode_task", hangs_or_crashes_on_some)
        record = ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=2, clip_seconds=2.0, worker_memory=4 << 30)
    assert record.counts["clips"] == 4
    failures = {failure.id: failure for failure in FrameShards(tmp_path / "frames").failures}
    assert {name: failure.reason for name, failure in failures.items()} == {
        "train/0": "timeout",
        "train/1": "out-of-memory",
        "train/3": "crashed",
    }
    assert failures["train/3"].message == "the worker process was killed by SIGSEGV"
    assert ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0).counts["failures"] == 3
    assert ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0, retry_failed=True).counts["failures"] == 0
    ingest(manifest, tmp_path / "fresh", SETTINGS, num_workers=0)
    assert contents(tmp_path / "frames") == contents(tmp_path / "fresh")


def test_a_dataset_without_one_good_video_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").write_text(f"{name} is no video")
    for _ in range(2):
        with pytest.raises(LVTError, match=r"0 of 3 clips could be decoded \(3 unreadable\), for example \w: "):
            ingest(listed(tmp_path / "videos"), tmp_path / "frames", SETTINGS, num_workers=0)
    with pytest.raises(ArtefactError, match="is not finished"):
        FrameShards(tmp_path / "frames")
    assert len((tmp_path / "frames" / "failures.jsonl").read_text().splitlines()) == 3


def test_videos_that_all_fail_leave_older_frames_alone(manifest: Path, videos: Path, tmp_path: Path) -> None:
    before = ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    for path in videos.rglob("*.mp4"):
        path.write_text(f"{path} is no video")
    with pytest.raises(LVTError, match="0 of 7 clips could be decoded"):
        ingest(listed(videos), tmp_path / "frames", SETTINGS, num_workers=0)
    assert FrameShards(tmp_path / "frames").fingerprint == before.fingerprint


def test_a_video_that_changed_after_the_manifest_is_not_passed_off_as_the_old_one(
    manifest: Path, videos: Path, tmp_path: Path
) -> None:
    video(videos / "train" / "0.mp4", 50)
    (videos / "train" / "1.mp4").unlink()
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    failures = {failure.id: failure for failure in FrameShards(tmp_path / "frames").failures}
    assert {name: failure.reason for name, failure in failures.items()} == {
        "train/0": "changed",
        "train/1": "missing",
    }
    assert "run `lvt manifest build` again" in failures["train/0"].message


def test_a_missing_video_is_read_once_it_is_there(manifest: Path, videos: Path, tmp_path: Path) -> None:
    shutil.move(videos / "train" / "0.mp4", tmp_path / "away.mp4")
    assert ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0).counts["failures"] == 1
    shutil.move(tmp_path / "away.mp4", videos / "train" / "0.mp4")
    assert ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0).counts["failures"] == 0


def test_short_clips_fail_when_more_frames_are_asked_for(videos: Path, tmp_path: Path, decodes: Decodes) -> None:
    video(videos / "train" / "short.mp4", 60, num_frames=2)
    out, four = tmp_path / "frames", IngestSettings(geometry=GEOMETRY, clips_per_shard=2, min_frames=4)
    ingest(listed(videos), out, SETTINGS, num_workers=0)
    decodes.names.clear()
    assert ingest(listed(videos), out, four, num_workers=0).counts["failures_by_reason"] == {"too-short": 1}
    assert decodes.names == []
    ingest(listed(videos), tmp_path / "fresh", four, num_workers=0)
    assert contents(out) == contents(tmp_path / "fresh")


# Stopping


RUN = """
import sys
from pathlib import Path
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.ingest.shards import DecodedPayload, DecodeTask, decode_task
from lvt_pipeline.errors import LVTError
try:
    settings = IngestSettings(geometry=GeometrySettings(size=16), clips_per_shard=1)
    ingest(Path(sys.argv[1]), Path(sys.argv[2]), settings, num_workers=2)
except LVTError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    original = video(tmp_path / "videos" / "train" / "00.mp4", 0, num_frames=4)
    for index in range(1, 40):  # other bytes, the same pictures: a comment behind the last box
        comment = f"{index:03d}".encode()
        copy = original.with_name(f"{index:02d}.mp4")
        copy.write_bytes(original.read_bytes() + (8 + len(comment)).to_bytes(4) + b"free" + comment)
    manifest, out = listed(tmp_path / "videos"), tmp_path / "frames"
    settings = IngestSettings(geometry=GEOMETRY, clips_per_shard=1)
    command = [sys.executable, "-c", RUN, str(manifest), str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(out.glob("next/*/*-000001.json")):
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        process.send_signal(number)
        process.communicate()
    assert process.returncode == (EXIT_STOPPED if number == signal.SIGTERM else -signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in receipts_in(out)}
    assert 2 <= len(finished) < 40
    ingest(manifest, out, settings, num_workers=0)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    ingest(manifest, tmp_path / "fresh", settings, num_workers=0)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_second_writer_is_turned_away(manifest: Path, tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "frames"), pytest.raises(BusyError, match="another process is writing"):
        ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)


def test_a_folder_that_holds_something_else_is_not_written_to(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ArtefactError, match=r"is not empty and thesis\.txt is not ours"):
            ingest(manifest, tmp_path / "home", SETTINGS, num_workers=0, overwrite=overwrite)


def test_overwrite_decodes_everything_again(manifest: Path, tmp_path: Path, decodes: Decodes) -> None:
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0)
    before = contents(tmp_path / "frames")
    decodes.names.clear()
    ingest(manifest, tmp_path / "frames", SETTINGS, num_workers=0, overwrite=True)
    assert len(decodes.names) == 7
    assert contents(tmp_path / "frames") == before


def test_progress_counts_every_clip_once(mixed: Path, tmp_path: Path) -> None:
    class Counter:
        def __init__(self) -> None:
            self.total, self.done = 0, 0

        def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Any:
            self.total, self.done = total or 0, done
            return nullcontext(self)

        def advance(self, amount: int = 1, **facts: Any) -> None:
            self.done += amount

        def say(self, line: str) -> None:
            raise AssertionError(line)

    for _ in range(2):
        counter = Counter()
        ingest(mixed, tmp_path / "frames", SETTINGS, num_workers=0, progress=counter)
        assert (counter.done, counter.total) == (10, 10)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not here")
def test_real_clips_of_many_kinds(tmp_path: Path) -> None:
    names = ["broken/corrupted.mp4", "broken/sample_av1.mp4", "phone/video_90.mov", "signing/eat.mkv"]
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIPS / name, tmp_path / "videos" / name)
    record = ingest(listed(tmp_path / "videos"), tmp_path / "frames", num_workers=2)
    shards = FrameShards(tmp_path / "frames")
    assert record.counts["failures_by_reason"] == {"damaged": 1}
    assert {clip.id: (clip.num_frames, clip.decoder.split()[0]) for clip in shards.clips} == {
        "broken/sample_av1": (30, "pyav"),
        "phone/video_90": (3, "pyav"),
        "signing/eat": (47, "pyav"),
    }
    assert shards.read("signing/eat").shape == (47, 64, 64, 3)


def test_a_note_reaches_the_receipt_the_summary_and_the_json(
    tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "wide.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for grey in range(0, 200, 40):
            picture = np.full((32, 32, 3), grey, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    video(tmp_path / "videos" / "square.mp4", seed=1)
    assert lvt("manifest", "build", tmp_path / "videos", "-o", tmp_path / "m.jsonl")[0] == 0
    command = ("ingest", "--manifest", tmp_path / "m.jsonl", "-o", tmp_path / "frames", "--workers", 0)
    code, output_text, _ = lvt(*command)
    assert code == 0
    assert output_text.splitlines()[1:] == ["decoded, but unusual:", "  non-square-pixels       1"]
    text = "pixels are 4/3 as wide as high and are taken as square"
    notes = {clip.id: clip.notes for clip in FrameShards(tmp_path / "frames").clips}
    assert notes == {"wide": (Note("non-square-pixels", text),), "square": None}
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "frames").glob("*-*.json")]
    assert [clip["notes"] for receipt in receipts for clip in receipt["clips"] if "notes" in clip] == [
        [{"kind": "non-square-pixels", "text": text}]
    ]
    assert json.loads(lvt(*command, "--json")[1])["counts"]["notes"] == {"non-square-pixels": 1}
