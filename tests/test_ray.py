"""The same bytes from workers of a Ray cluster, whatever dies. Real Ray, two cores, some nodes on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvt_pipeline.cli import run as lvt
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ray_runner import OBJECT_STORE_BYTES, RayRunner
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import EncodeSettings, SampleSettings
from lvt_pipeline.manifest.manifest import build_manifest
from tests.listener import Listener
from tests.ray_workers import Sabotage, SabotagedRunner
from tests.test_encoding import make_frames, make_model, make_run, shards_of
from tests.test_filled_splits import video
from tests.test_ingest import SETTINGS, contents
from tests.toy_work import FRAMES, ToyWork, make_toy_work

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and processes of Ray
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = str(Path(__file__).parent.parent)
SMALL = EncodeSettings(batch_size=8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_FRAMES", 16)


@pytest.fixture(autouse=True)
def no_ray_left() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "vqvae", make_model())


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("data") / "frames")


@pytest.fixture(scope="module")
def whole(frames: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The codes that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "SHARD_FRAMES", 16)
        encode_dataset(frames, run, out, SMALL, device="cpu")
    return shards_of(out)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Five videos, one of which is broken."""
    for number in range(5):
        video(tmp_path / "videos" / "train" / f"{number}.mp4", number)
    (tmp_path / "videos" / "train" / "4.mp4").write_bytes(b"broken")
    build_manifest(tmp_path / "videos", tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def test_ray_makes_the_frames_that_this_process_makes(manifest: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    record = ingest(manifest, tmp_path / "ray", SETTINGS, runner=RayRunner(num_workers=2))
    assert signal.getsignal(signal.SIGTERM) == before
    ingest(manifest, tmp_path / "here", SETTINGS, num_workers=0)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert record.counts == FrameShards(tmp_path / "here").record.counts
    assert record.counts["failures_by_reason"] == {"unreadable": 1}


# What Ray cannot be used for ------------------------------------------------------------------------------------------


def test_what_ray_cannot_do_is_one_line(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ingest", "--manifest", str(manifest), "-o", str(tmp_path / "frames"), "--size", "16"]
    assert lvt([*command, "--ray-address", "auto"]) == 2
    assert "--ray-address and --workers are for --runner ray" in capsys.readouterr().err
    assert lvt([*command, "--runner", "ray", "--plan-only"]) == 2
    assert "a job array needs no --runner" in capsys.readouterr().err
    assert lvt([*command, "--runner", "ray", "--shard-mb", "1"]) == 1
    assert "use --clips-per-shard" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lvt_pipeline.jobs.ray_runner")
    assert lvt([*command, "--runner", "ray"]) == 1
    assert "--runner ray needs Ray; install it with: pip install 'lvt-pipeline[ray]'" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_one_line(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(LVTError, match=r"no Ray cluster answers at 127\.0\.0\.1:1; start one with `ray start --head`"):
        ingest(manifest, tmp_path / "frames", SETTINGS, runner=RayRunner("127.0.0.1:1"))


@pytest.mark.slow
def test_a_path_that_a_node_does_not_see_is_refused_before_anything_starts(
    frames: Path, run: Path, tmp_path: Path
) -> None:
    descriptor = os.open(frames.parent, os.O_RDONLY)
    only_here = Path(f"/proc/self/fd/{descriptor}/frames")  # another process has no such descriptor
    with pytest.raises(LVTError, match=r"node .* does not see /proc/self/fd/.*; use a file system that all"):
        encode_dataset(only_here, run, tmp_path / "s", SMALL, device="cpu", runner=RayRunner(num_workers=1))
    os.close(descriptor)
    assert not list((tmp_path / "s").glob("codes/c/*"))


# Every stage ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_makes_the_codes_samples_and_videos_that_this_process_makes(
    frames: Path, run: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    ray, heard = RayRunner(num_workers=2), Listener()
    report = encode_dataset(frames, run, tmp_path / "codes", SMALL, device="cpu", runner=ray, progress=heard)
    assert shards_of(tmp_path / "codes") == whole
    assert report.limited_by in ("read", "encode", "write")
    assert report.provenance is not None
    assert min(report.phases.values()) > 0
    work: ToyWork = make_toy_work(tmp_path)
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=None, samples_per_clip=2)
    for name, options in (("ray", {"runner": ray}), ("here", {})):
        sample_clips(work.prior, work.codes, tmp_path / name / "s", settings, device="cpu", batch_size=3, **options)
        decode_store(work.codes, work.vqvae, tmp_path / name / "v", device="cpu", **options)
    assert shards_of(tmp_path / "ray" / "s") == shards_of(tmp_path / "here" / "s")
    assert open_codes(tmp_path / "ray" / "s").fingerprint == open_codes(tmp_path / "here" / "s").fingerprint
    assert contents(tmp_path / "ray" / "v") == contents(tmp_path / "here" / "v")
    assert len(list((tmp_path / "ray" / "v").rglob("*.mp4"))) == 8


@pytest.mark.slow
def test_lines_of_ray_are_not_in_the_json_output(frames: Path, run: Path, tmp_path: Path) -> None:
    places = ["--frames", str(frames), "--vqvae", str(run), "-o", str(tmp_path / "s"), "--device", "cpu"]
    command = [sys.executable, "-m", "lvt_pipeline", "encode-dataset", *places, "--runner", "ray", "--workers", "1"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["generation"] == 1


@pytest.mark.slow
def test_lvt_run_makes_the_same_work_directory_with_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        video(tmp_path / "videos" / f"{number}.mp4", number)
    settings = (
        "ingest.geometry.size=16",
        "vqvae.model={stem_width=8, code_width=16, residual_width=8, codebook_size=16}",
        "vqvae.training={max_steps=2, batch_size=4}",
        "prior.model={frames=4, subscale=[4, 1, 1], width=16, head_width=8, num_heads=2, embedding_width=8}",
        "prior.training={max_steps=2, batch_size=2}",
        "sample={frames=4, priming_frames=2, num_clips=2}",
        "evaluate.frames=4",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    for name, more in (("ray", ["--runner", "ray", "--workers", "2"]), ("here", [])):
        places = ["--videos", str(tmp_path / "videos"), "--work-dir", str(tmp_path / name), "--until", "decode"]
        assert lvt(["run", *places, *options, "--device", "cpu", *more]) == 0, capsys.readouterr().err
    for place in ("frames", "data.zarr/codes", "samples.zarr/codes"):
        assert contents(tmp_path / "ray" / place) == contents(tmp_path / "here" / place)


# When something dies --------------------------------------------------------------------------------------------------


def attempts_in(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text() or "{}") for path in folder.iterdir() if "-" in path.name}


@pytest.mark.slow
@pytest.mark.parametrize("action", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_in_a_shard_is_replaced(
    frames: Path,
    run: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    action: str,
) -> None:
    (tmp_path / "attempts").mkdir()
    sabotage = Sabotage(str(tmp_path / "attempts"), action, attempts=2, plans=2)
    runner = SabotagedRunner(sabotage, max_seconds=5.0 if action == "hang" else None)
    encode_dataset(frames, run, tmp_path / "s", SMALL, device="cpu", runner=runner)
    assert shards_of(tmp_path / "s") == whole
    attempts = attempts_in(tmp_path / "attempts")
    assert sorted(int(name.rpartition("-")[2]) for name in attempts) == [1] * 6 + [2, 2, 3, 3]
    time.sleep(2)  # Ray reports deaths from a thread of its own
    assert capsys.readouterr().out == ""  # which belongs to --json


@pytest.mark.slow
def test_a_shard_that_fails_three_times_ends_the_run_and_finished_work_is_kept(
    frames: Path, run: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "attempts").mkdir()
    runner = SabotagedRunner(Sabotage(str(tmp_path / "attempts"), "die", attempts=99))
    with pytest.raises(LVTError, match=r"codes/c/\d/0/0/0 was tried 3 times and failed: its worker ended"):
        encode_dataset(frames, run, tmp_path / "s", SMALL, device="cpu", runner=runner)
    finished = {name: data for name, data in shards_of(tmp_path / "s").items() if "/c/" in name}
    assert finished.items() <= whole.items()
    encode_dataset(frames, run, tmp_path / "s", SMALL, device="cpu")
    assert shards_of(tmp_path / "s") == whole


@pytest.mark.slow
def test_a_node_that_is_removed_costs_the_shard_that_it_was_making(
    frames: Path, run: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    attempts = tmp_path / "attempts"
    attempts.mkdir()

    def remove() -> None:
        while not (found := list(attempts.glob("*-1"))) or not found[0].read_text():
            time.sleep(0.01)
        node = json.loads(found[0].read_text())["node"]
        cluster.remove_node(next(one for one in nodes if one.node_id == node), allow_graceful=False)
        (attempts / "go").touch()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        encode_dataset(
            frames, run, tmp_path / "s", SMALL, device="cpu", runner=SabotagedRunner(Sabotage(str(attempts), "wait"))
        )
    finally:
        thread.join()
        ray.shutdown()
        cluster.shutdown()
    assert shards_of(tmp_path / "s") == whole
    facts = attempts_in(attempts)
    (again,) = [name for name in facts if name.endswith("-2")]
    assert facts[again]["node"] != facts[again.replace("-2", "-1")]["node"]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from lvt_pipeline.errors import LVTError
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.settings import EncodeSettings
from tests.ray_workers import Sabotage, SabotagedRunner
encoding.SHARD_FRAMES = 16
try:
    runner = SabotagedRunner(Sabotage({attempts!r}, "wait", plans=99), num_workers=1)
    frames, run, out = (Path(name) for name in ({frames!r}, {run!r}, {out!r}))
    encode_dataset(frames, run, out, EncodeSettings(batch_size=8), device="cpu", runner=runner)
except LVTError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_can_be_started_again_anywhere(
    frames: Path, run: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals
) -> None:
    attempts, out = tmp_path / "attempts", tmp_path / "s"
    attempts.mkdir()
    script = DRIVER.format(root=ROOT, attempts=str(attempts), frames=str(frames), run=str(run), out=str(out))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while not list(attempts.glob("*-1")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        (attempts / "go").touch()
        while not list(out.glob("codes/c/*/0/0/0")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        (attempts / "go").unlink()
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert number == signal.SIGKILL or "shards are finished; run the same command again to resume" in errors
    finished = len(list(out.glob("codes/c/*/0/0/0")))
    assert 1 <= finished < 6
    (attempts / "go").touch()
    assert subprocess.run(command, cwd=tmp_path, timeout=200).returncode == 0
    assert shards_of(out) == whole


@pytest.mark.slow
def test_gpus_are_given_to_the_workers_of_networks_one_each(
    frames: Path, run: Path, whole: dict[str, bytes], manifest: Path, tmp_path: Path
) -> None:
    import ray

    ray.init(num_cpus=4, num_gpus=2, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
    for name in ("encode", "ingest"):
        (tmp_path / name).mkdir()
    runner = SabotagedRunner(Sabotage(str(tmp_path / "encode"), "meet"), num_workers=None)  # type: ignore[arg-type]
    encode_dataset(frames, run, tmp_path / "s", SMALL, device="auto", runner=runner)
    assert shards_of(tmp_path / "s") == whole
    used = {(facts["pid"], *facts["gpus"], facts["device"]) for facts in attempts_in(tmp_path / "encode").values()}
    assert sorted(gpu for _, gpu, _ in used) == [0, 1]
    assert {device for *_, device in used} == {"auto"}
    ingest(manifest, tmp_path / "f", SETTINGS, runner=SabotagedRunner(Sabotage(str(tmp_path / "ingest"), "meet")))
    assert {tuple(facts["gpus"]) for facts in attempts_in(tmp_path / "ingest").values()} == {()}
    with pytest.raises(LVTError, match="Ray assigns GPUs to workers; use --device cuda instead of cuda:1"):
        encode_dataset(frames, run, tmp_path / "t", SMALL, device="cuda:1", runner=RayRunner())
