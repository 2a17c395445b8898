"""Frames in a bucket: ingest writes the files of a local folder, whatever dies, is lost or happens at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.verify import verify_frames
from lvt_pipeline.frames.writer import stage_shard
from lvt_pipeline.jobs.ingest import folder
from lvt_pipeline.jobs.ingest import shards as ingest_shards
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.storage import Place, as_place, objects, open_storage
from lvt_pipeline.video.settings import GeometrySettings
from tests.object_stores import Proxy, connect, files_in, new_url, proxy_to
from tests.test_filled_splits import video
from tests.test_frame_races import broken_off

Lvt = Callable[..., tuple[int, str, str]]
ROOT = str(Path(__file__).parents[1])
SETTINGS = IngestSettings(geometry=GeometrySettings(size=16), clips_per_shard=2)
COMMAND = ["--size", "16", "--clips-per-shard", "2", "--workers", "0"]


@pytest.fixture
def url(bucket: Place) -> Place:
    return bucket / "frames"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Seven videos in four shards; one of them is broken."""
    for number in range(5):
        video(tmp_path / "videos" / "train" / f"{number}.mp4", number)
    video(tmp_path / "videos" / "val" / "v.mp4", 10)
    (tmp_path / "videos" / "test").mkdir()
    video(tmp_path / "videos" / "test" / "t.mp4", 11)
    (tmp_path / "videos" / "train" / "3.mp4").write_bytes(b"broken")
    return listed(tmp_path)


def listed(root: Path, name: str = "m.jsonl") -> Path:
    build_manifest(root / "videos", root / name)
    return root / name


def shown(place: Place) -> dict[str, object]:
    """Every file of a folder of frames. Of receipts and failures without sources, of the record without times."""
    found: dict[str, object] = {}
    for name, data in files_in(place).items():
        if name == "provenance.json":
            record = json.loads(data)
            for key in ("seconds", "finished", "command", "outputs"):
                record.pop(key)
            found[name] = record
        elif name.endswith(".json"):
            receipt = json.loads(data)
            for entry in [*receipt["clips"], *receipt["failures"]]:
                assert Path(entry.pop("source")).name.endswith(".mp4")
            found[name] = receipt
        elif name == "failures.jsonl":
            found[name] = [{**json.loads(line), "source": ""} for line in data.splitlines()]
        else:
            found[name] = data
    return found


def is_whole(url: Place, manifest: Path, local: Path) -> bool:
    """Whether the frames at a URL are those that a new local folder gets, and sound."""
    ingest(manifest, local, SETTINGS, num_workers=0)
    assert not verify_frames(url).problems
    assert shown(url) == shown(local)
    ours, theirs = FrameShards(url), FrameShards(local)
    assert [clip.source for clip in ours.clips] == [clip.source for clip in theirs.clips]
    assert all(np.array_equal(ours.read(clip.id), theirs.read(clip.id)) for clip in theirs.clips)
    return True


class Decoded(pytest.MonkeyPatch):
    """Which lines this process decodes until the block ends."""

    def __enter__(self) -> Self:
        self.ids, original = list[str](), ingest_shards.decode_task

        def decode(task: ingest_shards.DecodeTask) -> object:
            self.ids.append(task.clip.id)
            return original(task)

        self.setattr(ingest_shards, "decode_task", decode)
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def test_a_bucket_gets_the_files_of_a_local_folder_and_a_second_run_writes_nothing(
    url: Place, proxy: Proxy, manifest: Path, tmp_path: Path, lvt: Lvt
) -> None:
    code, out, err = lvt("ingest", "--manifest", manifest, "-o", url, *COMMAND)
    assert (code, err) == (0, ""), err
    assert f"6 clips, 24 frames, 1 failed (see {url}/failures.jsonl) -> {url}" in out
    assert (proxy.counts["PUT"], proxy.counts["LIST"]) == (4 * 5 + 4, 8)  # docs/clusters.md
    assert is_whole(url, manifest, tmp_path / "local")
    assert FrameShards(url).record.outputs.keys() == FrameShards(tmp_path / "local").record.outputs.keys()
    before = files_in(url)
    proxy.counts.clear()
    assert lvt("ingest", "--manifest", manifest, "-o", url, *COMMAND)[0] == 0
    assert files_in(url) == before
    assert proxy.counts["PUT"] == 1  # the plan
    assert ingest(manifest, str(url), SETTINGS, num_workers=0).fingerprint == FrameShards(url).fingerprint


def test_a_dataset_that_grows_is_brought_up_to_date_and_only_new_clips_are_decoded(
    url: Place, manifest: Path, tmp_path: Path
) -> None:
    ingest(manifest, url, SETTINGS, num_workers=0)
    (tmp_path / "videos" / "train" / "1.mp4").unlink()
    video(tmp_path / "videos" / "train" / "4.mp4", 40)
    video(tmp_path / "videos" / "val" / "w.mp4", 41)
    newer = listed(tmp_path, "newer.jsonl")
    with Decoded() as decoded:
        ingest(newer, url, SETTINGS, num_workers=0)
    assert sorted(decoded.ids) == ["train/4", "val/w"]
    assert is_whole(url, newer, tmp_path / "local")
    ingest(newer, url, replace(SETTINGS, clips_per_shard=50), num_workers=0)
    assert len([name for name in files_in(url) if name.endswith(".tar")]) == 3  # one for each split


def test_a_damaged_shard_is_not_copied_from(url: Place, manifest: Path, tmp_path: Path) -> None:
    ingest(manifest, url, SETTINGS, num_workers=0)
    tar = files_in(url)["train-000000.tar"]
    open_storage(url).replace("train-000000.tar", b"x" * len(tar))
    (tmp_path / "videos" / "train" / "1.mp4").unlink()
    ingest(listed(tmp_path), url, SETTINGS, num_workers=0)
    assert is_whole(url, tmp_path / "m.jsonl", tmp_path / "local")


def test_a_shard_that_is_gone_is_made_again(url: Place, manifest: Path, tmp_path: Path) -> None:
    ingest(manifest, url, SETTINGS, num_workers=0)
    open_storage(url).delete(["train-000000.tar"])
    with Decoded() as decoded:
        ingest(manifest, url, SETTINGS, num_workers=0)
    assert decoded.ids == ["train/0", "train/1"]
    assert is_whole(url, manifest, tmp_path / "local")


def test_no_receipt_is_ever_next_to_the_tar_of_another(
    url: Place, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(manifest, url, SETTINGS, num_workers=0)
    original = objects.ObjectStorage.move
    video(tmp_path / "videos" / "train" / "1.mp4", 40)

    def moves_tars_only(storage: objects.ObjectStorage, source: str, name: str) -> bool:
        if name.endswith(".json"):
            raise KeyboardInterrupt
        return original(storage, source, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(objects.ObjectStorage, "move", moves_tars_only)
        ingest(listed(tmp_path), url, SETTINGS, num_workers=0)
    there = [shard.name for shard in folder.finished_shards(url) if not shard.is_staged]
    assert there == ["test-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]
    ingest(tmp_path / "m.jsonl", url, SETTINGS, num_workers=0)
    assert is_whole(url, tmp_path / "m.jsonl", tmp_path / "local")


def test_a_damaged_shard_is_repaired_in_the_bucket(url: Place, manifest: Path, tmp_path: Path, lvt: Lvt) -> None:
    ingest(manifest, url, SETTINGS, num_workers=0)
    tar = files_in(url)["train-000000.tar"]
    open_storage(url).replace("train-000000.tar", b"x" * len(tar))
    code, out, _ = lvt("verify", url)
    assert (code, out.startswith("train-000000.tar: its SHA-256 is ")) == (1, True)
    code, out, err = lvt("verify", url, "--repair", "--manifest", manifest, "--workers", 0)
    assert (code, f"{url} is sound again: 1 of 5 shards were made again" in out) == (0, True), err
    assert files_in(url)["train-000000.tar"] == tar
    assert is_whole(url, manifest, tmp_path / "local")


def test_a_second_attempt_of_a_shard_takes_the_one_that_is_there(url: Place) -> None:
    samples = [[FrameSample.from_array("clip", np.full((3, 8, 8, 3), shade, np.uint8))] for shade in (1, 2)]
    first, second = (stage_shard(url / "next" / "plan", "train-000000.tar", one, [], root=url) for one in samples)
    assert first == second
    names = [name for name in files_in(url) if name.endswith(".tar")]
    assert names == [f"next/plan/train-000000.{(first.digest or '')[:16]}.tar"]


# What dies, and what is lost ------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from lvt_pipeline.jobs.ingest import folder, shards
    from lvt_pipeline.jobs.ingest.ingest import ingest
    from tests.test_remote_frames import SETTINGS
    module, name = {module}, {name!r}
    original, calls = getattr(module, name), []
    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) > {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(module, name, killed)
    ingest(Path({manifest!r}), {url!r}, SETTINGS, num_workers=0)
"""


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        ("shards", "stage_shard", 2),
        ("folder", "_publish_shard", 2),
        ("folder", "write_failures", 0),
        ("folder", "_commit", 0),
    ],
)
def test_a_killed_run_is_not_a_finished_folder_and_resumes_to_the_same_files(
    url: Place, manifest: Path, tmp_path: Path, lvt: Lvt, module: str, name: str, after: int
) -> None:
    names = {"module": module, "name": name, "after": after}
    script = textwrap.dedent(KILLED).format(root=ROOT, manifest=str(manifest), url=str(url), **names)
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ArtefactError, match="is not finished; run the same `lvt ingest` command again"):
        FrameShards(url)
    code, out, _ = lvt("inspect", url)
    assert code == 0
    assert "frames (unfinished)" in out
    with Decoded() as decoded:
        ingest(manifest, url, SETTINGS, num_workers=0)
    assert len(decoded.ids) == (3 if name == "stage_shard" else 0)
    assert is_whole(url, manifest, tmp_path / "local")


def test_a_lost_answer_to_each_write_changes_nothing(url: Place, proxy: Proxy, manifest: Path, tmp_path: Path) -> None:
    with proxy.losing_first_writes() as lost:
        ingest(manifest, url, SETTINGS, num_workers=0)
    assert len(lost) > 12
    assert is_whole(url, manifest, tmp_path / "local")


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("bucket", "there is no bucket elsewhere; create it"),
        ("key", "the server refused the key for bucket; check AWS_ACCESS_KEY_ID"),
        ("connection", "no answer from the server; check the connection"),
    ],
)
def test_a_server_that_refuses_is_one_line(
    url: Place, proxy: Proxy, manifest: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch, cause: str, message: str
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 1)
    objects.connection.cache_clear()
    proxy.status = 403 if cause == "key" else 0
    if cause == "connection":
        proxy.loses = lambda method, path: True
    place = as_place("s3://elsewhere/frames") if cause == "bucket" else url
    code, out, err = lvt("ingest", "--manifest", manifest, "-o", place, *COMMAND)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert message in err


# Several processes ----------------------------------------------------------------------------------------------------

HELPING = """
    import sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from lvt_pipeline.jobs.ingest.ingest import ingest
    from tests.test_remote_frames import SETTINGS
    print(ingest(Path({manifest!r}), {url!r}, SETTINGS, num_workers=0).fingerprint)
"""


def several_ingests(url: Place, manifest: Path, count: int) -> None:
    script = textwrap.dedent(HELPING).format(root=ROOT, manifest=str(manifest), url=str(url))
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, env={**os.environ}, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    made = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * count
    assert {*made} == {FrameShards(url).fingerprint}


def test_two_processes_of_one_command_make_one_folder(url: Place, manifest: Path, tmp_path: Path) -> None:
    several_ingests(url, manifest, 2)
    assert is_whole(url, manifest, tmp_path / "local")


def test_whoever_comes_second_to_the_commit_takes_the_record_that_is_there(
    url: Place, manifest: Path, tmp_path: Path
) -> None:
    """Another process with the same plan publishes everything while this one is about to do so, at any step."""
    others = []
    for step in ("_publish_shard", "write_failures", "_commit"):
        place, original = url.with_name(step), getattr(folder, step)
        with pytest.MonkeyPatch.context() as patch:

            def comes_second(*arguments: object, at: Place = place, of: object = original) -> object:
                patch.undo()
                others.append(ingest(manifest, at, SETTINGS, num_workers=0))
                return of(*arguments)  # type: ignore[operator]

            patch.setattr(folder, step, comes_second)
            record = ingest(manifest, place, SETTINGS, num_workers=0)
        assert (record.fingerprint, record.seconds) == (others[-1].fingerprint, others[-1].seconds)
        assert is_whole(place, manifest, tmp_path / step)


def test_another_command_is_refused_and_takes_the_finished_shards_once_the_plan_is_deleted(
    url: Place, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(manifest, url, monkeypatch, after=3)
    before = files_in(url)
    video(tmp_path / "videos" / "val" / "w.mp4", 12)
    newer = listed(tmp_path, "newer.jsonl")
    with pytest.raises(StoreError, match=r"another `lvt ingest` has not finished .*/next/plan.json: its finished"):
        ingest(newer, url, SETTINGS, num_workers=0)
    assert files_in(url) == before
    ingest(manifest, url, SETTINGS, num_workers=0, retry_failed=True)  # the same command for all that
    broken_off(newer, url, monkeypatch, after=0)
    open_storage(url).delete(["next/plan.json"])
    ingest(manifest, url, SETTINGS, num_workers=0)
    assert is_whole(url, manifest, tmp_path / "local")


def test_a_job_array_makes_the_folder_that_one_process_makes(
    url: Place, manifest: Path, tmp_path: Path, lvt: Lvt
) -> None:
    command = ["ingest", "--manifest", manifest, "-o", url, *COMMAND]
    assert lvt(*command, "--plan-only")[1] == f"5 of 5 shards are missing in {url}\n"
    assert lvt(*command, "--shards", "1/2")[0] == 0
    code, _, err = lvt(*command, "--publish")
    assert (code, "2 of 5 shards are missing (train-000001.tar, val-000000.tar)" in err) == (1, True), err
    assert lvt(*command, "--shards", "2/2")[0] == 0
    assert lvt(*command, "--publish")[0] == 0
    assert is_whole(url, manifest, tmp_path / "local")


@pytest.mark.parametrize("store", ["google", pytest.param("azurite", marks=pytest.mark.slow)])
def test_stores_of_google_and_azure_get_the_same_files(
    request: pytest.FixtureRequest, store: str, manifest: Path, tmp_path: Path, lvt: Lvt
) -> None:
    url = as_place(request.getfixturevalue(store)) / "frames"
    several_ingests(url, manifest, 2)
    assert is_whole(url, manifest, tmp_path / "local")
    video(tmp_path / "videos" / "train" / "1.mp4", 40)
    assert lvt("ingest", "--manifest", listed(tmp_path), "-o", url, *COMMAND)[0] == 0
    assert is_whole(url, tmp_path / "m.jsonl", tmp_path / "newer")
    code, _, err = lvt("ingest", "--manifest", manifest, "-o", f"{str(url)[:5]}elsewhere/frames", *COMMAND)
    assert (code, "failed: there is no bucket elsewhere; create it, or correct the URL" in err) == (1, True), err


@pytest.mark.slow
def test_ray_makes_the_folder_that_one_process_makes(url: Place, manifest: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from lvt_pipeline.jobs.ray_runner import RayRunner

    ingest(manifest, url, SETTINGS, runner=RayRunner(num_workers=2))
    ray.shutdown()
    assert is_whole(url, manifest, tmp_path / "local")


@pytest.mark.slow
def test_seaweedfs_gives_the_same_files(
    weed: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with proxy_to(weed) as proxy:
        connect(proxy.address, monkeypatch)
        url = as_place(new_url()) / "frames"
        test_a_lost_answer_to_each_write_changes_nothing(url, proxy, manifest, tmp_path / "lost")
        for number in range(5):
            several_ingests(url.with_name(f"several{number}"), manifest, 3)
            assert is_whole(url.with_name(f"several{number}"), manifest, tmp_path / f"several{number}")
