"""Job arrays: processes that share the shards of a plan make the bytes that one process makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvt_pipeline.cli import run as lvt
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.jobs import encode as encoding
from tests.test_encoding import make_frames, make_model, make_run, shards_of

SHARD_FRAMES = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "vqvae", make_model())


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("data") / "frames")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_FRAMES", SHARD_FRAMES)


def encode(frames: Path, run: Path, out: Path, *options: str) -> int:
    places = ["--frames", frames, "--vqvae", run, "-o", out]
    return lvt(["encode-dataset", *map(str, places), "--device", "cpu", "--batch-size", "8", *options])


def test_an_array_makes_the_store_that_one_process_makes(
    frames: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "array"
    assert encode(frames, run, out, "--plan-only") == 0
    assert "0 removed; 6 of 6 shards are missing" in capsys.readouterr().out
    assert encode(frames, run, out, "--shards", "2/4") == 0
    assert len(list((out / "codes/c").iterdir())) == 2  # shards 1 and 5
    assert "4 of 6 shards are missing" in capsys.readouterr().out
    assert encode(frames, run, out, "--publish") == 1
    missing = "4 of 6 shards are missing (codes/c/0/0/0/0, codes/c/2/0/0/0, codes/c/3/0/0/0, codes/c/4/0/0/0)"
    assert missing in capsys.readouterr().err
    for part in ("1/4", "2/4", "4/4", "3/4", "3/4"):
        assert encode(frames, run, out, "--shards", part) == 0
    assert encode(frames, run, out, "--publish") == 0
    assert encode(frames, run, tmp_path / "whole") == 0
    assert shards_of(out) == shards_of(tmp_path / "whole")
    one, other = (open_codes(path) for path in (out, tmp_path / "whole"))
    assert (one.fingerprint, one.provenance.counts) == (other.fingerprint, other.provenance.counts)


def test_a_step_of_an_array_that_has_nothing_to_do_succeeds(
    frames: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert encode(frames, run, out) == 0
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    for step in (["--plan-only"], ["--shards", "1/2"], ["--shards", "2/2"], ["--publish"]):
        capsys.readouterr()
        assert encode(frames, run, out, *step, "--json") == 0
        assert json.loads(capsys.readouterr().out)["num_missing"] == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before


def test_shards_are_refused_without_their_plan(
    frames: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert encode(frames, run, out, "--shards", "1/2") == 1
    assert "does not wait for this plan" in capsys.readouterr().err
    assert not out.exists()
    assert encode(frames, run, out, "--plan-only") == 0
    assert encode(frames, run, out, "--shards", "1/2", "--batch-size", "9") == 1
    error = capsys.readouterr().err
    assert "does not wait for this plan: it was finished, another one took its place, or --plan-only did not" in error
    assert shards_of(out).keys() == {"codes/zarr.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "0/4"], "'0/4' is not a part such as 1/8"),
        (["--shards", "5/4"], "'5/4' is not a part"),
        (["--shards", "3"], "'3' is not a part"),
        (["--shards", "1/4", "--publish"], "are steps of their own; give one of them"),
        (["--publish", "--overwrite"], "--overwrite belongs to --plan-only"),
        (["--plan-only", "--repair"], "--repair is not a step of a job array"),
    ],
)
def test_steps_that_make_no_sense_are_refused_as_usage(
    frames: Path, run: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(frames, run, tmp_path / "s", *options) == 2
    assert message in capsys.readouterr().err
