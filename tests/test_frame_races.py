"""Several processes, or one that wakes up late, make the same frame shards: what a receipt names never changes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.errors import StoreError
from lvt_pipeline.frames.records import FrameSample, shard_name
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.verify import verify_frames
from lvt_pipeline.frames.writer import stage_shard
from lvt_pipeline.job import Job
from lvt_pipeline.jobs.ingest import shards as ingest_shards
from lvt_pipeline.jobs.ingest.folder import begin_plan, finished_shards, publish
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.ingest.shards import Decoding, PlannedShard, ShardMaker, ShardTask
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.progress import _SilentBar
from lvt_pipeline.storage import Place
from lvt_pipeline.video.settings import GeometrySettings
from tests.test_filled_splits import video
from tests.test_ingest import contents

ROOT = str(Path(__file__).parent.parent)
SETTINGS = IngestSettings(geometry=GeometrySettings(size=16), clips_per_shard=2)
NUM_SHARDS = 30

# Both processes make every shard, each of its own frames, and meet before each of them at a file.
ATTEMPT = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lvt_pipeline.frames.writer import stage_shard
    from tests.test_frame_races import NUM_SHARDS, sample, shard_name
    out, meeting, name, other = Path({out!r}), Path({meeting!r}), {name!r}, {other!r}
    for number in range(NUM_SHARDS):
        (meeting / f"{{name}}-{{number}}").touch()
        while not (meeting / f"{{other}}-{{number}}").exists():
            time.sleep(0.0002)
        samples = [sample(number, {shift})]
        print(stage_shard(out / "next" / "plan", shard_name("train", number), samples, [], root=out).digest)
"""


def sample(number: int, shift: int) -> FrameSample:
    return FrameSample.from_array(f"clip{number}", np.full((3, 8, 8, 3), number + shift, np.uint8))


def test_two_processes_that_make_every_shard_at_the_same_time_make_one_folder(tmp_path: Path) -> None:
    out, meeting = tmp_path / "frames", tmp_path / "meeting"
    meeting.mkdir()
    begin_plan(out, "plan", {})
    attempts = []
    for name, other, shift in (("a", "b", 0), ("b", "a", 100)):
        names = {"root": ROOT, "out": str(out), "meeting": str(meeting), "name": name, "other": other, "shift": shift}
        script = textwrap.dedent(ATTEMPT).format(**names)
        attempts.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True))
    receipts = [process.communicate(timeout=100)[0].split() for process in attempts]
    assert [process.returncode for process in attempts] == [0, 0]
    shards = list(finished_shards(out))
    assert receipts[0] == receipts[1] == [shard.receipt.digest for shard in shards]
    assert len({*(out / "next" / "plan").glob("*.tar")}) == NUM_SHARDS  # the losers removed theirs
    publish(out, shards, Job(stage="ingest", version=1, kind="frames").recorder({}, {}), {})
    assert not verify_frames(out).problems
    frames = FrameShards(out)
    for number in range(NUM_SHARDS):
        assert np.unique(frames.read(f"clip{number}")).tolist() in ([number], [number + 100])
    assert sorted(path.name for path in out.glob("*.tar")) == [shard_name("train", n) for n in range(NUM_SHARDS)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for number in range(4):
        video(tmp_path / "videos" / "train" / f"{number}.mp4", number)
    build_manifest(tmp_path / "videos", tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def plan_in(out: Path) -> str:
    return str(json.loads((out / "next" / "plan.json").read_bytes())["plan"])


def attempt(out: Path, plan: str, manifest: Path) -> None:
    """Make the first shard of a plan."""
    lines = read_manifest(manifest)[:2]
    maker = ShardMaker(out, plan, SETTINGS, Decoding(0, 60.0, None))
    with maker.decoding(lines, _SilentBar(), lambda: False):
        maker.make(ShardTask(PlannedShard(shard_name("train", 0), lines), {}))


def broken_off(manifest: Path, out: Place, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """An ingest that ends after some shards."""
    calls = []

    def breaks(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return stage_shard(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ingest_shards, "stage_shard", breaks)
        ingest(manifest, out, SETTINGS, num_workers=0)


def test_an_attempt_that_wakes_up_after_the_commit_changes_no_byte(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames"
    broken_off(manifest, out, monkeypatch, after=1)
    plan = plan_in(out)
    ingest(manifest, out, SETTINGS, num_workers=0)
    before = contents(out)
    with pytest.raises(StoreError, match="does not wait for this plan: it was finished, another one took its place"):
        attempt(out, plan, manifest)
    monkeypatch.setattr(ingest_shards, "read_plan", lambda out: (plan, {}))  # it had looked just before the commit
    attempt(out, plan, manifest)
    assert {name: data for name, data in contents(out).items() if not name.startswith("next/")} == before
    monkeypatch.undo()
    ingest(manifest, out, SETTINGS, num_workers=0)
    assert contents(out) == before


def test_a_late_attempt_of_an_abandoned_plan_meets_no_shard_of_another_plan(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "frames"
    broken_off(manifest, out, monkeypatch, after=0)
    abandoned = plan_in(out)
    older = read_manifest(manifest)
    video(tmp_path / "videos" / "train" / "0.mp4", 10)  # other content: the first shard is another one
    build_manifest(tmp_path / "videos", tmp_path / "new.jsonl")
    broken_off(tmp_path / "new.jsonl", out, monkeypatch, after=1)
    plan = plan_in(out)
    assert plan != abandoned
    waiting = contents(out / "next" / plan)
    assert older != read_manifest(tmp_path / "new.jsonl")
    with pytest.raises(StoreError, match="another one took its place"):
        attempt(out, abandoned, manifest)
    with monkeypatch.context() as patch:
        patch.setattr(ingest_shards, "read_plan", lambda out: (abandoned, {}))
        attempt(out, abandoned, manifest)
    assert contents(out / "next" / plan) == waiting
    ingest(tmp_path / "new.jsonl", out, SETTINGS, num_workers=0)
    ingest(tmp_path / "new.jsonl", tmp_path / "fresh", SETTINGS, num_workers=0)
    assert contents(out) == contents(tmp_path / "fresh")
