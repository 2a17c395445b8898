"""What users get wrong, and bad luck: one clear line, the right exit code, and nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lvt_pipeline.errors import LVTError
from tests.conftest import tiny_options

Lvt = Callable[..., tuple[int, str, str]]
PROGRAM = "import sys; from lvt_pipeline.cli import main; main(sys.argv[1:])"


def assert_one_line(result: tuple[int, str, str], *words: str, code: int = 1) -> None:
    found, _, err = result
    assert found == code, err
    lines = [line for line in err.splitlines() if line.startswith("lvt: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


def test_missing_folder_is_named(tmp_path: Path, lvt: Lvt) -> None:
    result = lvt("run", "--videos", tmp_path / "nowhere", "--work-dir", tmp_path / "work")
    assert_one_line(result, "nowhere", "does not exist")


def test_empty_folder_is_named(tmp_path: Path, lvt: Lvt) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(lvt("run", "--videos", tmp_path / "empty", "--work-dir", tmp_path / "work"), "empty", "video")


def test_folder_without_one_decodable_clip_says_why(tmp_path: Path, lvt: Lvt) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "videos" / name).write_text(f"no video {name}\n" * 50)
    result = lvt("run", "--videos", tmp_path / "videos", "--work-dir", tmp_path / "work", "--workers", "0")
    assert_one_line(result, "unreadable")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["clips.jsonl:2", "JSON"]),
        ('{"id": "x"}', ["clips.jsonl:2", "source"]),
        ('{"id": "a", "source": "a.mp4"}', ["clips.jsonl:2", "a"]),
        ('{"id": "b", "source": "b.mp4", "split": "exam"}', ["clips.jsonl:2", "exam"]),
    ],
)
def test_bad_manifest_line_is_named_with_file_and_line(tmp_path: Path, lvt: Lvt, line: str, words: list[str]) -> None:
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"id": "a", "source": "a.mp4"}\n' + line + "\n")
    assert_one_line(lvt("ingest", "--manifest", manifest, "-o", tmp_path / "frames"), *words)


def test_too_many_failures_finish_and_end_with_exit_code_3(toy_videos: Path, tmp_path: Path, lvt: Lvt) -> None:
    assert lvt("manifest", "build", toy_videos, "-o", tmp_path / "clips.jsonl")[0] == 0
    options = ["--size", 32, "--workers", 0, "--max-failures", 0.01]
    result = lvt("ingest", "--manifest", tmp_path / "clips.jsonl", "-o", tmp_path / "frames", *options)
    assert_one_line(result, "1 of 11", code=3)
    assert (tmp_path / "frames" / "provenance.json").exists()


def test_store_of_another_tokenizer_is_refused_with_both_named(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    options = ["--preset", "tiny", "--set", "model.stem_width=8", "--set", "model.code_width=16"]
    options += ["--set", "model.codebook_size=16", "--set", "training={max_steps=2, batch_size=4}"]
    assert lvt("train-vqvae", "--frames", work_dir / "frames", "-o", tmp_path / "other", *options)[0] == 0
    ours = lvt("inspect", work_dir / "data.zarr", "--json")[1].split('"tokenizer": "')[1][:12]
    stores = ["--codes", work_dir / "samples.zarr", "--vqvae", tmp_path / "other"]
    assert_one_line(lvt("decode", *stores, "-o", tmp_path / "out"), "tokenizer", ours)
    frames = ["--frames", work_dir / "frames", "--vqvae", tmp_path / "other"]
    assert_one_line(lvt("encode-dataset", *frames, "-o", work_dir / "data.zarr"), ours, "--reencode")


@pytest.mark.parametrize("stage", ["encode-dataset", "sample", "decode"])
def test_run_directory_that_is_none_is_refused(work_dir: Path, tmp_path: Path, lvt: Lvt, stage: str) -> None:
    (tmp_path / "folder").mkdir()
    arguments = {
        "encode-dataset": ["--frames", work_dir / "frames", "--vqvae", tmp_path / "folder"],
        "sample": ["--codes", work_dir / "data.zarr", "--prior", tmp_path / "folder"],
        "decode": ["--codes", work_dir / "data.zarr", "--vqvae", tmp_path / "folder"],
    }[stage]
    assert_one_line(lvt(stage, *arguments, "-o", tmp_path / "out"), "folder is not a run directory")
    assert not (tmp_path / "out").exists()


def test_prior_given_as_a_tokenizer_is_refused(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    frames = ["--frames", work_dir / "frames", "--vqvae", work_dir / "runs" / "prior"]
    assert_one_line(lvt("encode-dataset", *frames, "-o", tmp_path / "new.zarr"), "runs/prior", "VQ-VAE")


def test_checkpoint_cut_in_half_is_named(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    weights = sorted((work_dir / "runs" / "vqvae" / "checkpoints").glob("step-*/*.safetensors"))[-1]
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    stores = ["--codes", work_dir / "samples.zarr", "--vqvae", work_dir / "runs" / "vqvae"]
    assert_one_line(lvt("decode", *stores, "-o", tmp_path / "out"), weights.name)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("train-vqvae --dry-run --set model.code_widht=8", "did you mean model.code_width?"),
        ("train-prior --dry-run --set traning.max_steps=8", "did you mean training?"),
        ("train-prior --dry-run --preset singel-frame", "did you mean single-frame?"),
        ("train-prior --dry-run --set model.width=wide", "needs a whole number"),
        ("run --videos v --work-dir w --set smaple.seed=1", "did you mean sample?"),
    ],
)
def test_unknown_setting_gets_a_suggestion(lvt: Lvt, command: str, wrong: str) -> None:
    assert_one_line(lvt(*command.split()), wrong)


def test_windows_longer_than_every_clip_say_how_long_clips_are(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    options = ["--preset", "tiny", "--set", "model.frames=64", "--set", "model.subscale=[64,1,1]"]
    result = lvt("train-prior", "--codes", work_dir / "data.zarr", "-o", tmp_path / "run", *options)
    assert_one_line(result, "64", "12")


def test_pixels_are_not_needed_to_train_a_prior(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    shutil.rmtree(work_dir / "frames")
    shutil.rmtree(work_dir / "runs" / "vqvae")
    options = ["--preset", "tiny", "--set", "model={frames=4, subscale=[4,1,1], width=16, head_width=8, num_heads=2}"]
    options += ["--max-steps", "2", "--set", "training.batch_size=2"]
    code, _, err = lvt("train-prior", "--codes", work_dir / "data.zarr", "-o", tmp_path / "run", *options)
    assert code == 0, err


def test_two_runs_in_one_work_directory_are_refused(work_dir: Path, lvt: Lvt) -> None:
    from lvt_pipeline.storage import exclusive_lock

    with exclusive_lock(work_dir):
        assert_one_line(lvt("run", work_dir / "pipeline.toml"), "another process is writing")


def test_lost_shard_is_named_and_restored_by_the_same_command(work_dir: Path, tmp_path: Path, lvt: Lvt) -> None:
    shard = work_dir / "data.zarr" / "codes" / "c" / "0" / "0" / "0" / "0"
    before = shard.read_bytes()
    shard.unlink()
    train = ["train-prior", "--codes", work_dir / "data.zarr", "-o", tmp_path / "run", "--preset", "tiny"]
    assert_one_line(lvt(*train, "--set", "model.frames=4", "--set", "model.subscale=[4,1,1]"), "is missing")
    frames = ["--frames", work_dir / "frames", "--vqvae", work_dir / "runs" / "vqvae"]
    assert lvt("encode-dataset", *frames, "-o", work_dir / "data.zarr")[0] == 0
    assert shard.read_bytes() == before


@pytest.mark.parametrize("limit", [3_000, 40_000, 100_000])
def test_full_disk_is_one_line_and_the_next_run_goes_on(toy_videos: Path, tmp_path: Path, limit: int) -> None:
    """A file-size limit stands in for a full disk: writes fail half-way at different stages."""
    work = tmp_path / "work"
    command = [sys.executable, "-c", PROGRAM, "run", "--videos", str(toy_videos), "--work-dir", str(work)]
    command += ["--workers", "0", *tiny_options()]
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n" + PROGRAM
    )
    limited = [sys.executable, "-c", code, *command[3:]]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert_one_line((done.returncode, done.stdout, done.stderr), "file-size limit")
    assert not list(work.rglob("*.partial"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "report.html").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signal_during_training_saves_and_the_next_run_goes_on(
    work_dir: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    options = ["--preset", "tiny", "--set", "model.codebook_size=16", "--set", "model.code_width=16"]
    options += ["--set", "training={batch_size=2, checkpoint_every=1000, log_every=1, eval_every=1000}"]
    run = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, "train-vqvae", "--frames", str(work_dir / "frames"), "-o", str(run)]
    child = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=60)
    assert_one_line((child.returncode, "", err), "run the same command again", code=code)
    saved = sorted((run / "checkpoints").glob("step-*"))[-1]
    step = int(saved.name.removeprefix("step-"))
    assert step >= 3
    done = subprocess.run([*command, *options, "--max-steps", str(step + 2)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"after {step + 2} steps" in done.stdout


def test_every_error_class_has_an_exit_code() -> None:
    def below(base: type[LVTError]) -> list[type[LVTError]]:
        return [base, *(deeper for child in base.__subclasses__() for deeper in below(child))]

    assert {error.exit_code for error in below(LVTError)} == {1, 3, 75}


def test_sampling_without_priming_is_refused_before_a_store_is_started(
    work_dir: Path, tmp_path: Path, lvt: Lvt
) -> None:
    stores = ["--prior", work_dir / "runs" / "prior", "--codes", work_dir / "data.zarr", "-o", tmp_path / "s.zarr"]
    assert_one_line(lvt("sample", *stores, "--frames", 4, "--priming-frames", 0), "at least 1 priming frames, found 0")
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("content", ['{"zarr_format": 3, "node_type": "group", "attributes": {}}', "garbage"])
def test_foreign_zarr_is_not_called_ours(tmp_path: Path, lvt: Lvt, content: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    assert lvt("inspect", tmp_path)[0] == 1
