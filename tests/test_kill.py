"""kill -9 at any moment: the same command goes on, ends with the same bytes, and little is done twice.

The commands run as real processes, forked from one that has imported everything, so that a run takes a fraction of a
second. Each process logs how many frames it has encoded, or clips it has decoded. Every second kill comes at an exact
place of the work, so that all stages are met at any speed; the others come at random moments: before, between, inside
and after writes.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.frames.records import receipts_in
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.video.write import write_mp4
from tests.forked_commands import SECONDS, SHARD_FRAMES, fork_server, run_command
from tests.test_encoding import make_frames, make_model, make_run
from tests.toy_work import FRAMES, make_toy_work

BATCH = 4
LENGTHS = {f"train/{number}": 5 + 7 * number % 23 for number in range(16)}
NUM_FRAMES = sum(LENGTHS.values())
CLIPS_PER_SHARD, NUM_VIDEOS = 2, 16
WAYS = ("at a place", "at any moment", "at a place", "after some work")
TIMES = ("seconds", "finished", "command", "digest")  # the digest is that of a root with its times


# Killing -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return fork_server()


@dataclass
class Killer:
    """Runs one command again and again, killing it, and counts what was done twice.

    Attributes:
        command: of `lvt`, without the output.
        total: units of work in a complete output.
        finished: how many units of work are finished in an output, and the files they lie in.
        check: what must hold for a complete output.
        lost: by kill, units of work done by the killed process that the next one had to do again.
        stages: by kill, how many units were done, those of earlier processes included.
    """

    context: ForkServerContext
    folder: Path
    command: list[str]
    total: int
    finished: Callable[[Path], tuple[int, dict[Path, int]]]
    check: Callable[[Path], None] = lambda out: None
    lost: list[int] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)

    def start(self, out: Path, killed_at: int | None = None) -> ForkServerProcess:
        arguments = ([*self.command, "-o", str(out)], str(self.log))
        process = self.context.Process(target=run_command, args=arguments, kwargs={"killed_at": killed_at})
        process.start()
        return process

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def done(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def uninterrupted(self, out: Path) -> float:
        """A run that nobody kills; its seconds."""
        began = time.monotonic()
        process = self.start(out)
        process.join(SECONDS)
        assert process.exitcode == 0
        return time.monotonic() - began

    def kill_often(self, out: Path, num_kills: int, seconds: float, seed: int) -> int:
        """Kill the command again and again; when it ends first, begin a new output.

        Args:
            seconds: a whole run takes.

        Returns:
            how many outputs were completed on the way; the last one, at `out`, is complete too.
        """
        generator = np.random.default_rng(seed)
        places = [self.total * kill // num_kills for kill in range(num_kills)]
        outputs = 0
        while len(self.lost) < num_kills:
            place, way = max(1, places[len(self.lost)]), WAYS[len(self.lost) % len(WAYS)]
            if way == "at a place" and self.finished(out)[0] >= place:
                shutil.rmtree(out)
            before, units, files = self.done(), *self.finished(out)
            process = self.start(out, killed_at=before + place - units if way == "at a place" else None)
            if way == "at a place":
                process.join(SECONDS)
            elif way == "at any moment":
                process.join(generator.uniform(0, seconds))
            else:  # in the middle of the work, however long the start takes
                wanted = before + int(generator.integers(1, self.total - units + 1)) if units < self.total else 0
                while process.is_alive() and self.done() < wanted:
                    time.sleep(0.0005)
                process.join(generator.uniform(0, 0.02))
            process.kill()
            process.join()
            if process.exitcode == 0:
                assert way != "at a place", "it ended before that place"
                outputs += 1
                self.check(out)
                shutil.rmtree(out)
                seconds *= 0.9  # the run that was measured met a busier machine
                continue
            assert process.exitcode == -signal.SIGKILL
            now, left = self.finished(out)
            assert {file: left.get(file) for file in files} == files, "a finished file was touched again"
            self.lost.append(self.done() - before - (now - units))
            self.stages.append(units + self.done() - before)
        self.uninterrupted(out)
        self.check(out)
        return outputs + 1


def contents(out: Path) -> dict[str, Any]:
    """Every file, records without the times that they were made at."""
    files: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        if file.is_file():
            data: Any = file.read_bytes()
            if file in (out / "zarr.json", out / "provenance.json"):
                data = timeless(json.loads(data))
            elif file.name == "README.md":
                data = None  # says when; `lvt verify` compares it with the digest in the root
            files[file.relative_to(out).as_posix()] = data
    return files


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: timeless(item) for key, item in value.items() if key not in TIMES}
        return {key: item for key, item in kept.items() if not key.endswith("README.md")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def identities(files: Iterable[Path]) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in files}


# Encode ---------------------------------------------------------------------------------------------------------------


def finished_shards(out: Path) -> tuple[int, dict[Path, int]]:
    """Frames in finished shards, and the shards."""
    files = identities((out / "codes/c").glob("*/0/0/0"))
    frames = sum(min(SHARD_FRAMES, NUM_FRAMES - SHARD_FRAMES * int(file.parts[-4])) for file in files)
    return frames, files


def kill_encodes(processes: ForkServerContext, folder: Path, num_kills: int) -> Killer:
    actions = {name: np.random.default_rng(length).normal(size=(length, 3)) for name, length in LENGTHS.items()}
    frames = make_frames(folder / "frames", LENGTHS, arrays={"action": actions})
    run = make_run(folder / "vqvae", make_model())
    command = ["encode-dataset", "--frames", str(frames), "--vqvae", str(run), "--batch-size", str(BATCH)]
    killer = Killer(processes, folder, [*command, "--device", "cpu"], NUM_FRAMES, finished_shards)
    killer.uninterrupted(folder / "whole")  # the first process pays for what the others find loaded
    shutil.rmtree(folder / "whole")
    seconds = killer.uninterrupted(folder / "whole")
    whole = contents(folder / "whole")

    def check(out: Path) -> None:
        assert contents(out) == whole
        assert open_codes(out).generation == 1

    killer.check = check
    killer.kill_often(folder / "out", num_kills, seconds, seed=num_kills)
    # What a kill costs: the shard on its way to the disk, and what was encoded of the next one.
    assert max(killer.lost) <= 2 * SHARD_FRAMES
    return killer


def test_a_killed_encode_ends_with_the_same_bytes_and_redoes_little(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    killer = kill_encodes(processes, tmp_path, num_kills=6)
    assert len(set(killer.stages)) >= 2  # kills at different stages of the work


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_encode_survives_200_kills(processes: ForkServerContext, tmp_path: Path) -> None:
    killer = kill_encodes(processes, tmp_path, num_kills=200)
    assert len(set(killer.stages)) >= 8
    assert np.mean(killer.lost[1::2]) <= SHARD_FRAMES  # at random: at a place, what is not written yet is always lost


@pytest.mark.parametrize("num_kills", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_import_of_codes_ends_with_the_same_bytes(
    processes: ForkServerContext, tmp_path: Path, num_kills: int
) -> None:
    generator = np.random.default_rng(0)
    for clip_id, length in LENGTHS.items():
        file = tmp_path / "folder" / f"{clip_id}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, generator.integers(0, 300, (length, 3, 4, 2)))
    command = ["import-codes", str(tmp_path / "folder"), "--codebook-size", "300"]
    killer = Killer(processes, tmp_path, command, NUM_FRAMES, finished_shards)
    killer.uninterrupted(tmp_path / "warm")
    seconds = killer.uninterrupted(tmp_path / "whole")
    whole = contents(tmp_path / "whole")

    def check(out: Path) -> None:
        assert contents(out) == whole

    killer.check = check
    killer.kill_often(tmp_path / "out", num_kills, seconds, seed=num_kills)
    assert open_codes(tmp_path / "out").generation == 1


# Sample and decode ----------------------------------------------------------------------------------------------------


def finished_samples(out: Path) -> tuple[int, dict[Path, int]]:
    """Samples in finished shards, one each, and the shards."""
    files = identities((out / "codes/c").glob("*/0/0/0"))
    return len(files), files


def finished_videos(out: Path) -> tuple[int, dict[Path, int]]:
    """Videos that the list of finished files names."""
    listed = out / "files.jsonl"
    lines = listed.read_bytes().splitlines() if listed.exists() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(out / json.loads(line)["file"])
    return len(set(found)), identities(path for path in set(found) if path.exists())


def kill(killer: Killer, num_kills: int) -> None:
    """Kill a command often; it ends with the bytes of an uninterrupted one, and loses one unit of work a kill."""
    killer.uninterrupted(killer.folder / "warm")
    seconds = killer.uninterrupted(killer.folder / "whole")
    whole = contents(killer.folder / "whole")

    def check(out: Path) -> None:
        assert contents(out) == whole

    killer.check = check
    killer.kill_often(killer.folder / "out", num_kills, seconds, seed=num_kills)
    assert max(killer.lost) <= 1
    assert len(set(killer.stages)) >= 2


@pytest.mark.parametrize("num_kills", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_sample_ends_with_the_same_bytes(processes: ForkServerContext, tmp_path: Path, num_kills: int) -> None:
    work = make_toy_work(tmp_path)
    command = ["sample", "--prior", str(work.prior), "--codes", str(work.codes), "--frames", str(FRAMES)]
    command += ["--priming-frames", "2", "--samples-per-clip", "3", "--batch-size", "1", "--device", "cpu"]
    kill(Killer(processes, tmp_path, command, 9, finished_samples), num_kills)


@pytest.mark.parametrize("num_kills", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_decode_ends_with_the_same_bytes(processes: ForkServerContext, tmp_path: Path, num_kills: int) -> None:
    work = make_toy_work(tmp_path)
    command = ["decode", "--codes", str(work.codes), "--vqvae", str(work.vqvae), "--device", "cpu"]
    kill(Killer(processes, tmp_path, command, 8, finished_videos), num_kills)


# Ingest ---------------------------------------------------------------------------------------------------------------


def finished_clips(out: Path) -> tuple[int, dict[Path, int]]:
    """Clips in finished shards of frames, and their files."""
    receipts = receipts_in(out)
    clips = sum(len(json.loads(receipt.read_bytes())["clips"]) for receipt in receipts)
    return clips, {Path(file.name): time for file, time in identities(receipts).items()}  # wherever they are


def kill_ingests(processes: ForkServerContext, folder: Path, num_kills: int, workers: int) -> Killer:
    for number in range(NUM_VIDEOS):
        noise = np.random.default_rng(number).integers(0, 256, (4, 20, 24, 3), np.uint8)
        write_mp4(folder / "videos" / "train" / f"{number:02d}.mp4", noise, fps=10)
    build_manifest(folder / "videos", folder / "m.jsonl")
    command = ["ingest", "--manifest", str(folder / "m.jsonl"), "--workers", str(workers), "--size", "16"]
    killer = Killer(
        processes, folder, [*command, "--clips-per-shard", str(CLIPS_PER_SHARD)], NUM_VIDEOS, finished_clips
    )
    killer.uninterrupted(folder / "whole")
    shutil.rmtree(folder / "whole")
    seconds = killer.uninterrupted(folder / "whole")
    whole = contents(folder / "whole")

    def check(out: Path) -> None:
        assert contents(out) == whole

    killer.check = check
    killer.kill_often(folder / "out", num_kills, seconds, seed=num_kills)
    # Decoded and not yet in a shard: the shard being filled, and the clips that workers may be ahead of it.
    assert max(killer.lost) <= CLIPS_PER_SHARD + max(CLIPS_PER_SHARD, 2 * workers)
    return killer


def test_a_killed_ingest_ends_with_the_same_bytes_and_redoes_little(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    killer = kill_ingests(processes, tmp_path, num_kills=6, workers=0)
    assert len(set(killer.stages)) >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_ingest_with_workers_survives_200_kills(processes: ForkServerContext, tmp_path: Path) -> None:
    killer = kill_ingests(processes, tmp_path, num_kills=200, workers=2)
    assert len(set(killer.stages)) >= 6
