"""kill -9 at any moment of a training: the same command goes on and ends with the bits of a run that nobody stopped.

The trainings run as real processes, forked from one that has imported everything. They are killed at random moments,
so before, between, inside and after steps, evaluations and writes of checkpoints.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvt_pipeline.errors import Stopped
from lvt_pipeline.provenance import read_record
from lvt_pipeline.runs.checkpoints import find_checkpoint, load_all_weights, load_state
from lvt_pipeline.training import stepping
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from tests.forked_commands import fork_server
from tests.run_files import is_timing
from tests.test_prior_training import settings_of
from tests.test_vqvae_training import make_frames, tiny
from tests.toy_codes import make_store

STEPS = 30
OFTEN = {"max_steps": STEPS, "log_every": 4, "eval_every": 7, "checkpoint_every": 5, "picture_every": 15}


def train(kind: str, data: str, out: str, prefetched: int = 2) -> None:
    """One training in this process, which it ends with the exit code of the command."""
    torch.set_num_threads(1)
    stepping.PREFETCHED_BATCHES = prefetched
    try:
        if kind == "prior":
            settings = settings_of({"subscale": [2, 2, 2], "kernel": [5, 3, 3]}, **OFTEN, ema_decay=0.9, grad_clip=1.0)
            train_prior(Path(data), Path(out), settings, device="cpu")
        else:
            train_vqvae(Path(data), Path(out), tiny(**OFTEN, ema_decay=0.9), device="cpu")
    except Stopped as error:
        os._exit(error.exit_code)
    os._exit(0)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return fork_server()


@pytest.fixture(scope="module", params=["prior", "vqvae"])
def training(
    request: pytest.FixtureRequest, processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, float]:
    """What is trained, on what, the run that nobody stopped, and its seconds."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "prior":
        lengths = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6}
        data = make_store(folder / "a.zarr", lengths, codebook_size=8, frame_shape=(4, 4, 2)).path
    else:
        data = make_frames(folder / "frames")
    began = time.monotonic()
    process = processes.Process(target=train, args=(request.param, str(data), str(folder / "whole")))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    return request.param, data, folder / "whole", seconds


def assert_same_training(a: Path, b: Path) -> None:
    """Weights, codebooks, moving averages, optimizer, partial averages of the log, best step, and every line of it."""
    ours, theirs = find_checkpoint(a), find_checkpoint(b)
    torch.testing.assert_close(load_all_weights(ours), load_all_weights(theirs), rtol=0, atol=0)
    assert set(load_all_weights(ours)) == {"model.safetensors", "ema.safetensors"}
    states = [{key: value for key, value in load_state(one).items() if key != "seconds"} for one in (ours, theirs)]
    torch.testing.assert_close(states[0].pop("optimizer"), states[1].pop("optimizer"), rtol=0, atol=0)
    assert states[0] == states[1]
    assert lines_of(a) == lines_of(b)
    assert find_checkpoint(a, "best").step == find_checkpoint(b, "best").step
    assert read_record(a).fingerprint == read_record(b).fingerprint
    assert sorted(path.name for path in (a / "pictures").iterdir()) == sorted(
        path.name for path in (b / "pictures").iterdir()
    )


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_timing(name)} for line in lines]


def end_often(
    start: Callable[[int], Any], out: Path, num_ends: int, seconds: float, seed: int, signals: list[int]
) -> list[int]:
    """Send signals to a training at random moments until it has had so many; the steps it was saved at after each.

    Every second moment is one while steps are taken, however long the start takes.
    """
    generator = np.random.default_rng(seed)
    steps: list[int] = []
    while len(steps) < num_ends:
        process = start(len(steps))
        if len(steps) % 2:
            process.join(generator.uniform(0, seconds / 2))
        else:
            wanted = saved_step(out) + int(generator.integers(1, max(2, STEPS // num_ends)))
            while process.is_alive() and saved_step(out) < wanted:
                time.sleep(0.002)
            process.join(generator.uniform(0, 0.1))
        number = signals[len(steps) % len(signals)]
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
        process.join(120)
        if process.exitcode == 0:  # it was quicker
            break
        assert process.exitcode in (75, -number)  # 75, or the signal came before the training listened for it
        steps.append(saved_step(out))
    return steps


def saved_step(out: Path) -> int:
    return find_checkpoint(out).step if (out / "checkpoints/latest.json").exists() else 0


def resume_until_done(
    processes: ForkServerContext, training: tuple[str, Path, Path, float], out: Path, num_ends: int, signals: list[int]
) -> list[int]:
    kind, data, whole, seconds = training

    def start(number: int) -> Any:
        # Batches are also read ahead by other numbers each time.
        process = processes.Process(target=train, args=(kind, str(data), str(out), 1 + number % 4))
        process.start()
        return process

    steps = end_often(start, out, num_ends, seconds, seed=num_ends, signals=signals)
    last = start(0)
    last.join(120)
    assert last.exitcode == 0
    assert_same_training(out, whole)
    return steps


def test_a_training_that_is_killed_and_stopped_ends_with_the_bits_of_one_that_is_not(
    processes: ForkServerContext, training: tuple[str, Path, Path, float], tmp_path: Path
) -> None:
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]
    steps = resume_until_done(processes, training, tmp_path / "run", 4, signals)
    assert any(0 < step < STEPS for step in steps), steps
    assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_survives_50_kills(
    processes: ForkServerContext, training: tuple[str, Path, Path, float], tmp_path: Path
) -> None:
    num_kills, runs = 0, 0
    while num_kills < 50:
        num_kills += len(
            resume_until_done(processes, training, tmp_path / f"run{runs}", 5 + runs % 7, [signal.SIGKILL])
        )
        runs += 1
