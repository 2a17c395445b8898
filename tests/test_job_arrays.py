"""Job arrays: processes that share the shards of a plan make the bytes that one process makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvt_pipeline.cli import run as lvt
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from tests.test_encoding import make_frames, make_model, make_run, shards_of
from tests.test_filled_splits import video
from tests.test_ingest import contents

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


# Ingest ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Ten videos of ten seconds and splits, of which two are broken; that of `val` is alone in its split."""
    for number in range(10):
        video(tmp_path / "videos" / f"{number}.mp4", number)
    build_manifest(tmp_path / "videos", tmp_path / "m.jsonl")
    lonely = next(clip for clip in read_manifest(tmp_path / "m.jsonl") if clip.split == "val")
    for source in (lonely.source, str(tmp_path / "videos" / "7.mp4")):
        Path(source).write_bytes(b"broken" + source.encode())
    return tmp_path / "m.jsonl"


def ingest(manifest: Path, out: Path, *options: str) -> int:
    places = ["--manifest", manifest, "-o", out]
    return lvt(["ingest", *map(str, places), "--size", "16", "--clips-per-shard", "2", "--workers", "0", *options])


def test_an_array_makes_the_frames_that_one_process_makes(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "array"
    assert ingest(manifest, out, "--plan-only") == 0
    assert "6 of 6 shards are missing" in capsys.readouterr().out
    for part in ("1/4", "3/4", "4/4"):
        assert ingest(manifest, out, "--shards", part) == 0
    assert ingest(manifest, out, "--publish") == 1
    error = capsys.readouterr().err
    assert "cannot be published: 2 of 6 shards are missing (train-000001.tar, test-000000.tar)" in error
    assert not list(out.glob("*.tar"))
    assert ingest(manifest, out, "--shards", "2/4") == 0
    assert ingest(manifest, out, "--shards", "2/4") == 0
    assert ingest(manifest, out, "--publish") == 0
    assert ingest(manifest, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")
    shards = FrameShards(out)
    assert {clip.split for clip in shards.clips} == {"train", "val", "test"}  # a clip was moved into `val`
    assert len(shards.failures) == 2
    assert shards.record.counts == FrameShards(tmp_path / "whole").record.counts
    before = contents(out)
    for step in (["--plan-only"], ["--shards", "1/2"], ["--publish"]):
        assert ingest(manifest, out, *step) == 0
    assert contents(out) == before


def test_frame_shards_are_refused_without_their_plan(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest(manifest, tmp_path / "frames", "--shards", "1/2") == 1
    assert "does not wait for this plan" in capsys.readouterr().err
    assert ingest(manifest, tmp_path / "frames", "--plan-only") == 0
    assert ingest(manifest, tmp_path / "frames", "--shards", "1/2", "--fps", "5") == 1
    assert "does not wait for this plan" in capsys.readouterr().err
    assert ingest(manifest, tmp_path / "frames", "--plan-only", "--shard-mb", "1") == 1
    assert "use --clips-per-shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "0/4"], "'0/4' is not a part such as 1/8"),
        (["--shards", "5/4"], "'5/4' is not a part"),
        (["--shards", "3"], "'3' is not a part"),
        (["--shards", "1/4", "--publish"], "are steps of their own; give one of them"),
        (["--publish", "--overwrite"], "--overwrite belongs to --plan-only"),
        (["--plan-only", "--repair"], "--repair is not for job arrays"),
    ],
)
def test_steps_that_make_no_sense_are_refused_as_usage(
    frames: Path, run: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(frames, run, tmp_path / "s", *options) == 2
    assert message in capsys.readouterr().err
