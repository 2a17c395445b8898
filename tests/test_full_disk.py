"""A full disk, a target that cannot be written, a signal: one clear line, the right exit code, and an intact store.

The same command goes on when the cause is gone, and ends with the bytes of a run that nothing happened to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.verify import verify_store
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.video.write import write_mp4
from tests.forked_commands import Limits, fork_server, outcome_of, run_command
from tests.test_encoding import make_frames, make_model, make_run
from tests.test_kill import contents

Lvt = Callable[..., tuple[int, str, str]]
NOBODY = 65534
LENGTHS = {"train/a": 30, "train/b": 50, "val/c": 20}
MORE = {**LENGTHS, "train/d": 60, "train/e": 70}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and changing users is for the superuser")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return fork_server()


@pytest.fixture(scope="module")
def given() -> Iterator[Path]:
    """Frames, more frames, a tokenizer and a manifest, where every user can read them."""
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    folder.chmod(0o755)
    make_frames(folder / "frames", LENGTHS)
    make_frames(folder / "more", MORE)
    make_run(folder / "vqvae", make_model())
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (8, 32, 32, 3), np.uint8)
        write_mp4(folder / "videos" / "train" / f"{number}.mp4", noise, fps=10)
    build_manifest(folder / "videos", folder / "m.jsonl")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 72 KiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=72k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_FRAMES", 16)


def encode(given: Path, out: Path, frames: str = "frames") -> list[str]:
    command = ["encode-dataset", "--frames", given / frames, "--vqvae", given / "vqvae", "-o", out]
    return [str(part) for part in [*command, "--batch-size", 4, "--device", "cpu"]]


def ingest(given: Path, out: Path) -> list[str]:
    command = ["ingest", "--manifest", given / "m.jsonl", "--size", 32, "--workers", 0, "--clips-per-shard", 1]
    return [str(part) for part in [*command, "-o", out]]


def assert_one_line(code: int, error: str, *words: str, expected: int = 1) -> None:
    assert code == expected, error
    said = [line for line in error.splitlines() if line.startswith("lvt: ")]
    assert len(said) == 1, error
    assert error.strip().endswith(said[0])  # a table of changes may come first
    assert "Traceback" not in error
    for word in words:
        assert word in error


# Full disk ------------------------------------------------------------------------------------------------------------


@as_root
def test_an_encode_onto_a_full_disk_goes_on_when_there_is_room(
    given: Path, small_disk: Path, tmp_path: Path, lvt: Lvt
) -> None:
    store = small_disk / "data.zarr"
    (small_disk / "ballast").write_bytes(bytes(40 * 1024))
    code, _, error = lvt(*encode(given, store))
    assert_one_line(code, error, "the disk is full; free some space and run the same command again")
    assert not list(store.rglob("*.partial"))
    (small_disk / "ballast").unlink()
    remount(small_disk, "size=10m")
    assert lvt(*encode(given, store))[0] == 0
    assert lvt(*encode(given, tmp_path / "whole"))[0] == 0
    assert contents(store) == contents(tmp_path / "whole")


@as_root
@pytest.mark.parametrize("kibibytes", range(4, 44, 8))
def test_a_store_on_a_full_disk_keeps_what_is_published(
    given: Path, small_disk: Path, tmp_path: Path, lvt: Lvt, kibibytes: int
) -> None:
    store = small_disk / "data.zarr"
    remount(small_disk, "size=10m")
    assert lvt(*encode(given, store))[0] == 0
    before = {clip_id: open_codes(store)[clip_id] for clip_id in LENGTHS}
    blocks = os.statvfs(small_disk)
    used = (blocks.f_blocks - blocks.f_bfree) * blocks.f_frsize // 1024
    remount(small_disk, f"size={used + kibibytes}k")
    code, _, error = lvt(*encode(given, store, "more"))
    assert_one_line(code, error, "the disk is full; free some space and run the same command again")
    current = open_codes(store)
    assert current.generation == 1
    assert all(np.array_equal(current[clip_id], codes) for clip_id, codes in before.items())
    remount(small_disk, "size=10m")
    assert lvt(*encode(given, store, "more"))[0] == 0
    assert verify_store(store).problems == ()
    assert lvt(*encode(given, tmp_path / "fresh", "more"))[0] == 0
    fresh, grown = open_codes(tmp_path / "fresh"), open_codes(store)
    assert grown.fingerprint == fresh.fingerprint
    assert all(np.array_equal(grown[clip_id], fresh[clip_id]) for clip_id in MORE)


@as_root
def test_an_ingest_onto_a_full_disk_goes_on_when_there_is_room(
    given: Path, small_disk: Path, tmp_path: Path, lvt: Lvt
) -> None:
    code, _, error = lvt(*ingest(given, small_disk / "frames"))
    assert_one_line(code, error, "the disk is full; free some space and run the same command again")
    assert not list(small_disk.rglob("*.partial"))
    remount(small_disk, "size=10m")
    assert lvt(*ingest(given, small_disk / "frames"))[0] == 0
    fresh = tmp_path / "other" / "frames"  # as deep as the first: paths of sources are relative
    assert lvt(*ingest(given, fresh))[0] == 0
    assert contents(small_disk / "frames") == contents(fresh)


def test_a_limit_on_file_sizes_is_like_a_full_disk(processes: ForkServerContext, given: Path, tmp_path: Path) -> None:
    store = tmp_path / "data.zarr"
    code, error = outcome_of(processes, encode(given, store), tmp_path, Limits(file_bytes=1200))
    assert_one_line(code, error, "the file-size limit is reached")
    assert not list(store.rglob("*.partial"))
    assert outcome_of(processes, encode(given, store), tmp_path)[0] == 0
    assert outcome_of(processes, encode(given, tmp_path / "whole"), tmp_path)[0] == 0
    assert contents(store) == contents(tmp_path / "whole")


# Targets that cannot be written ---------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("command", [encode, ingest])
def test_a_read_only_disk_is_one_line(
    given: Path, small_disk: Path, lvt: Lvt, command: Callable[[Path, Path], list[str]]
) -> None:
    remount(small_disk, "ro")
    code, _, error = lvt(*command(given, small_disk / "out"))
    assert_one_line(code, error, "the file system is read-only; choose another output folder")


@as_root
def test_a_store_on_a_read_only_disk_is_read_and_not_extended(
    given: Path, small_disk: Path, tmp_path: Path, lvt: Lvt
) -> None:
    store = small_disk / "data.zarr"
    assert lvt(*encode(given, store))[0] == 0
    remount(small_disk, "ro")
    assert lvt(*encode(given, store), "--dry-run")[0] == 0
    code, _, error = lvt(*encode(given, store, "more"))
    assert_one_line(code, error, "is not writable; check its owner and mode, or choose another output folder")
    assert lvt("export", store, "--format", "memmap", "-o", tmp_path / "out")[0] == 0
    assert len(open_codes(store)) == 3


@as_root
def test_a_lost_permission_is_one_line_and_the_store_stays_readable(processes: ForkServerContext, given: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        nobody = Limits(user=NOBODY)
        store = folder / "data.zarr"
        assert outcome_of(processes, encode(given, store), folder, nobody) == (0, "")
        for part in (store, store / "codes", store / "codes" / "c"):
            part.chmod(0o555)
            code, error = outcome_of(processes, encode(given, store, "more"), folder, nobody)
            assert_one_line(code, error, "check")
            part.chmod(0o755)
            assert len(open_codes(store)) == 3
        assert outcome_of(processes, encode(given, store, "more"), folder, nobody) == (0, "")
        assert len(open_codes(store)) == 5


# Memory and signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_too_little_memory_for_a_pass_is_one_line(
    given: Path, tmp_path: Path, lvt: Lvt, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(VQVAE, "encode", refuse)
    code, _, said = lvt(*encode(given, tmp_path / "s"))
    assert_one_line(code, said, "not enough memory to encode 4 frames at a time", "--batch-size")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_an_encode_with_its_code_and_the_next_run_goes_on(
    processes: ForkServerContext, given: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    store, errors, pause = tmp_path / "data.zarr", tmp_path / "errors", tmp_path / "log.pause"
    pause.touch()
    process = processes.Process(
        target=run_command, args=(encode(given, store, "more"), str(tmp_path / "log"), str(errors))
    )
    process.start()
    while not list((store / "codes/c").glob("*/0/0/0")):
        assert process.is_alive(), errors.read_text()
        time.sleep(0.001)
    os.kill(process.pid or 0, number)
    pause.unlink()
    process.join(60)
    assert_one_line(process.exitcode or 0, errors.read_text(), "run the same command again to resume", expected=code)
    finished = len(list((store / "codes/c").glob("*/0/0/0")))
    assert 1 <= finished < 15
    done = (tmp_path / "log").stat().st_size
    assert outcome_of(processes, encode(given, store, "more"), tmp_path)[0] == 0
    assert (tmp_path / "log").stat().st_size - done == sum(MORE.values()) - 16 * finished
    assert outcome_of(processes, encode(given, tmp_path / "whole", "more"), tmp_path)[0] == 0
    assert contents(store) == contents(tmp_path / "whole")
