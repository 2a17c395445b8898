"""`lvt status` of a training while it runs, after it was killed, and when it is done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvt_pipeline.runs import metrics_log
from lvt_pipeline.runs.live import LiveRun, read_live_run
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.storage import exclusive_lock, is_locked
from stages.status import run_line
from tests.run_files import edit_run
from tests.test_prior_training import MODEL, TRAINING
from tests.toy_codes import make_store

SECONDS = 60


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6}
    return make_store(tmp_path_factory.mktemp("codes") / "a.zarr", lengths, codebook_size=8, frame_shape=(4, 4, 2)).path


def command_of(codes: Path, run: Path) -> list[str]:
    settings = {f"model.{name}": value for name, value in MODEL.items()}
    settings |= {f"training.{name}": value for name, value in TRAINING.items()}
    settings |= {"training.max_steps": 1_000_000, "training.picture_every": 1_000_000}
    settings |= {"training.eval_every": 10, "training.checkpoint_every": 10}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return [sys.executable, "-m", "lvt_pipeline", "train-prior", "--codes", str(codes), "-o", str(run), *sets]


@pytest.fixture(scope="module")
def training(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A real `lvt train-prior` that does not end by itself, a few steps after its start."""
    run = tmp_path_factory.mktemp("live") / "run"
    process = subprocess.Popen(
        [*command_of(codes, run), "--device", "cpu"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + SECONDS
    while not (run / "run.json").exists() or read_run(run)["step"] == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, run
    process.kill()
    process.communicate()


def test_status_tells_how_far_a_live_training_is_and_that_it_was_killed(
    training: tuple[subprocess.Popen[str], Path], lvt: Callable[..., tuple[int, str, str]]
) -> None:
    process, run = training
    code, out, errors = lvt("status", run)
    assert code == 0, errors
    assert re.match(
        r"running, step [\d,]+ of 1,000,000 \([\d,]+ saved\), loss [\d.]+, bits per dim [\d.]+, [\d.,e+]+ windows/s, "
        r"data wait [\d.]+%, memory [\d,]+ MiB, [\d.]+ (d|h|min|s)[ \w]* left, "
        r"val bits per dim [\d.]+ at step [\d,]+\n$",
        out,
    ), out
    facts = json.loads(lvt("status", run, "--json")[1])
    assert facts["status"] == "running"
    assert facts["step"] >= facts["saved_step"] >= 10
    speed = facts["train"]["steps_per_second"]
    assert facts["seconds_left"] == pytest.approx((1_000_000 - facts["step"]) / speed)
    # Looking at it has not disturbed it.
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, out, _ = lvt("status", run)
    assert code == 0
    assert out.startswith("killed, step ")
    assert " left" not in out


def test_status_of_a_work_directory_tells_how_far_its_training_is(
    work_dir: Path, lvt: Callable[..., tuple[int, str, str]]
) -> None:
    (work_dir / "runs" / "prior" / "provenance.json").unlink()
    with exclusive_lock(work_dir / "runs" / "prior"):
        edit_run(work_dir / "runs" / "prior", status="running")
        code, out, _ = lvt("status", work_dir)
    assert code == 0
    line = next(line for line in out.splitlines() if "train-prior" in line)
    assert line.startswith("unfinished  train-prior      running, step 10 of 10 (10 saved), loss ")


def test_the_last_lines_of_a_long_log_are_found_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": step, "split": "val" if step == 3 else "train", "loss": step / 7} for step in range(1, 200)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for rest in ("", '{"step": 900, "split": "tr', '{"step": 900}\n', "[1]\n"):
        (tmp_path / "metrics.jsonl").write_text(text + rest)
        for size in (1, 7, 64, 2**16):
            monkeypatch.setattr(metrics_log, "BLOCK_BYTES", size)
            assert list(metrics_log.lines_from_the_end(tmp_path / "metrics.jsonl")) == lines[::-1]
    assert not list(metrics_log.lines_from_the_end(tmp_path / "nothing"))


def test_a_run_that_has_logged_nothing_is_spoken_of() -> None:
    run = LiveRun("vqvae-run", "running", 0, 0, 500, {}, {})
    assert run_line(run) == "running, step 0 of 500 (0 saved)"
    frames = {"loss": 0.5, "frames_per_second": 1234.5, "steps_per_second": 5.0, "step": 100}
    run = LiveRun("vqvae-run", "running", 100, 50, 500, frames, {"mse": 0.01, "step": 40})
    assert run_line(run) == (
        "running, step 100 of 500 (50 saved), loss 0.5, 1,234 frames/s, 1 min 20 s left, val mse 0.01 at step 40"
    )


def test_a_finished_run_has_no_time_left(work_dir: Path) -> None:
    run = read_live_run(work_dir / "runs" / "vqvae")
    assert (run.status, run.step, run.saved_step, run.seconds_left) == ("finished", 12, 12, None)


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")
    with exclusive_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with exclusive_lock(tmp_path):
        pass


def test_without_a_terminal_progress_is_plain_lines(
    codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages.console import Console

    monkeypatch.setattr(Console, "seconds_between_lines", 0.0)
    with Console().bar("train", 4, "step", done=1) as bar:
        for step in range(2):
            bar.advance(1, **{"loss": 0.5 + step, "windows/s": 31.25, "data wait": "0.4%"})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isascii() and "\r" not in line and "\x1b" not in line for line in lines)
    assert re.fullmatch(
        r"  train: 3/4 step, [\d.]+/s, [\d.]+ s left, loss 1.5, windows/s 31.25, data wait 0.4%", lines[1]
    )


def test_the_speed_and_the_time_left_are_those_of_the_last_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that becomes ten times as busy, the speed of the first hour is no guide."""
    from stages import console

    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.Console().bar("train", 7_320, "step") as bar:
        for seconds, count in ((1, 3_600), (10, 60)):
            for _ in range(count):
                now += seconds
                bar.advance(2 if seconds == 1 else 1)
    lines = capsys.readouterr().err.splitlines()
    assert "train: 30/7320 step, 2.0/s, 1 h 0 min left" in lines[0]
    assert lines[-1] == "  train: 7260/7320 step, 0.1/s, 10 min 0 s left"


def test_only_the_first_process_of_a_group_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages.console import Console, echo_facts

    for rank, lines in (("0", 2), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        Console().say("a warning")
        echo_facts({}, False, "the result")
        captured = capsys.readouterr()
        assert len((captured.out + captured.err).splitlines()) == lines
