"""`lvt doctor`: every check does the real thing, and what is broken is one line and exit code 1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvt_pipeline.workspace import doctor
from lvt_pipeline.workspace.doctor import examine

pytestmark = pytest.mark.filterwarnings(  # webdataset leaves its files to the garbage collector
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

NAMES = [
    *("python", "packages", "torch", "devices", "decoders", "code store", "webdataset", "training"),
    "worker processes",
    *("shared memory", "disk"),
]


def test_a_machine_that_runs_these_tests_passes_every_check(tmp_path: Path) -> None:
    checks = examine(tmp_path / "not" / "there" / "yet")
    assert [check.name for check in checks] == NAMES
    assert all(check.is_ok for check in checks), checks
    details = {check.name: check.detail for check in checks}
    assert "decord and pyav" in details["decoders"]
    assert "gloo" in details["torch"]
    assert details["training"].startswith("one step of a tokenizer and of a prior, and a sample, took ")
    assert "start method" in details["worker processes"]
    assert f"in {tmp_path}, " in details["disk"]
    assert "MiB/s" in details["disk"]
    assert not list(tmp_path.iterdir())


def broken(*arguments: Any, **options: Any) -> Any:
    raise OSError("it does not\nwork here")


@pytest.mark.parametrize(
    ("name", "module", "attribute"),
    [
        ("decoders", "lvt_pipeline.video.decode", "decode_clip"),
        ("code store", "lvt_pipeline.codes.shard_file", "create_array"),
        ("worker processes", "lvt_pipeline.jobs.ingest.workers", "run_isolated"),
        ("training", "lvt_pipeline.training.vqvae", "train_vqvae"),
        ("packages", "lvt_pipeline.workspace.doctor", "version"),
        ("shared memory", "lvt_pipeline.workspace.doctor", "shared_memory_bytes"),
    ],
)
def test_what_does_not_work_is_named_and_the_rest_is_checked(
    name: str,
    module: str,
    attribute: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lvt: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.setattr(f"{module}.{attribute}", broken)
    code, out, errors = lvt("doctor", "--folder", tmp_path)
    assert code == 1
    # Without a code store no prior can be trained either.
    names = [name, "training"] if name == "code store" else [name]
    assert f"{', '.join(names)} failed" in errors
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert failed[0] == f"FAIL  {name:20} OSError: it does not work here"
    assert [line.split("  ")[1] for line in failed] == names
    assert len(out.splitlines()) == len(NAMES)


def test_changed_frames_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvt_pipeline.video import decode as videos

    decode = videos.decode_clip

    def darker(*arguments: Any) -> Any:
        clip = decode(*arguments)
        clip.frames[:] = clip.frames // 2
        return clip

    monkeypatch.setattr(videos, "decode_clip", darker)
    found = next(check for check in examine(tmp_path) if check.name == "decoders")
    assert not found.is_ok
    assert "decord gave back changed frames" in found.detail


def test_too_little_shared_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "shared_memory_bytes", lambda: 64 * 2**20)
    found = next(check for check in examine(tmp_path) if check.name == "shared memory")
    assert found.is_ok
    assert found.detail == "64 MiB free (low: data loading workers may fail)"


def test_facts_come_as_json(tmp_path: Path, lvt: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = lvt("doctor", "--folder", tmp_path, "--json")
    assert code == 0
    assert [check["name"] for check in json.loads(out)["checks"]] == NAMES
