"""The training loop, on a task small enough to check by hand."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvt_pipeline.errors import (
    ArtefactError,
    BusyError,
    ChangedRunError,
    CheckpointError,
    ConfigError,
    Stopped,
    TrainingError,
)
from lvt_pipeline.job import Job
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.checkpoints import EMA_NAME, MODEL_NAME, find_checkpoint, list_checkpoints, load_weights
from lvt_pipeline.runs.directory import RunPlan
from lvt_pipeline.runs.live import read_live_run
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.runs.reopening import open_run
from lvt_pipeline.training.distributed import Ranks, joined_ranks
from lvt_pipeline.training.loop import train
from lvt_pipeline.training.settings import HARMLESS_SETTINGS, TrainingSettings
from lvt_pipeline.training.stepping import learning_rate_at, make_optimizer
from lvt_pipeline.training.task import StepLoss, step_seed
from tests.run_files import metrics_of

CPU = Ranks(0, 1, torch.device("cpu"))
WIDTH = 6


class ToyModel(nn.Module):
    """A linear map with dropout, and a buffer that counts training forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.forwards, Tensor)
        if self.training:
            self.forwards += 1
        result: Tensor = self.linear(self.dropout(x))
        return result


class ToyTask:
    """Learn y = -x from batches that depend on the step alone."""

    metric_names: tuple[str, ...] = ("absolute_error",)
    unit = row_unit = "rows"
    score = "mse"

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        on_batch: Callable[[int], None] = lambda step: None,
        bad_step: int = 0,
        empty_rows: int = 0,
        has_validation: bool = True,
    ) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(settings.seed)
            self.model: nn.Module = ToyModel()
        self.units_per_step = settings.batch_size
        self.settings = settings
        self.on_batch, self.bad_step, self.empty_rows = on_batch, bad_step, empty_rows
        self.has_validation = has_validation

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.settings.seed, step])
        x = generator.normal(size=(self.settings.batch_size, WIDTH)).astype(np.float32)[rows.start : rows.stop]
        if step == self.bad_step:
            x[0, 0] = np.inf
        is_used = np.arange(rows.start, rows.stop) >= self.empty_rows
        return {"x": torch.from_numpy(x), "is_used": torch.from_numpy(is_used), "step": torch.tensor(step)}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        self.on_batch(int(batch["step"]))
        x = batch["x"][batch["is_used"]]
        if not len(x):
            return StepLoss(None, 0, {})
        difference = model(x) + x
        return StepLoss(difference.square().mean(), len(x), {"absolute_error": difference.abs().mean()})

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        if not self.has_validation:
            return {}
        torch.rand(3)  # whatever an evaluation draws must not reach the training
        return {"mse": float((model(torch.eye(WIDTH)) + torch.eye(WIDTH)).square().mean())}

    def remember(self, evaluation: Mapping[str, Any]) -> None:
        self.remembered = dict(evaluation)

    def picture(self, model: nn.Module) -> NDArray[np.uint8]:
        return np.full((4, 4, 3), 7, np.uint8)

    def batch_clips(self, step: int) -> list[str]:
        return [f"clip{row}" for row in range(self.settings.batch_size)]


@dataclass(frozen=True, kw_only=True)
class ToyRunSettings:
    width: int = WIDTH
    training: TrainingSettings = field(default_factory=TrainingSettings)


def toy_settings(**changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {
        "max_steps": 12,
        "batch_size": 4,
        "learning_rate": 0.01,
        "log_every": 3,
        "eval_every": 4,
        "picture_every": 6,
        "checkpoint_every": 5,
    }
    return TrainingSettings(**{**values, **changes})


def toy_plan(settings: TrainingSettings, data: str = "d1") -> RunPlan:
    run_settings = ToyRunSettings(training=settings)
    return RunPlan(
        job=Job(stage="train-toy", version=1, kind="vqvae-run"),
        settings=run_settings,
        resolved=run_settings,
        inputs={"frames": data},
        max_steps=settings.max_steps,
        harmless=HARMLESS_SETTINGS,
        facts={},
    )


def run_toy(
    out: Path,
    settings: TrainingSettings,
    *,
    overwrite: bool = False,
    data: str = "d1",
    max_seconds: float | None = None,
    ranks: Ranks = CPU,
    **task_options: Any,
) -> Provenance:
    with open_run(out, toy_plan(settings, data), overwrite=overwrite) as run:
        if run.record is not None:
            return run.record
        task = ToyTask(settings, **task_options)
        result = train(task, settings, run, ranks, max_seconds=max_seconds)
        return run.finish(result.weights, {"steps": result.steps}, steps=result.steps, seconds=result.seconds)


def final_weights(run: Path, name: str = MODEL_NAME) -> dict[str, Tensor]:
    return load_weights(find_checkpoint(run), name)


def assert_same_run(a: Path, b: Path) -> None:
    torch.testing.assert_close(final_weights(a), final_weights(b), rtol=0, atol=0)
    assert metrics_of(a) == metrics_of(b)


def assert_close_metrics(a: Path, b: Path) -> None:
    for ours, theirs in zip(metrics_of(a), metrics_of(b), strict=True):
        assert ours.pop("split") == theirs.pop("split")
        assert ours == pytest.approx(theirs, rel=1e-4)


def at_step(step: int, action: Callable[[], None]) -> Callable[[int], None]:
    def act(current: int) -> None:
        if current == step:
            action()

    return act


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# Resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 2},
        {"optimizer": "rmsprop", "grad_clip": 0.5},
        {"optimizer": "adam", "ema_decay": 0.9, "gradient_accumulation_steps": 2},
    ],
)
def test_resumed_run_matches_uninterrupted_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = toy_settings(**changes)
    run_toy(tmp_path / "whole", settings)
    for step in (4, 7):  # between lines of the log, between checkpoints
        with pytest.raises(Stopped):
            run_toy(tmp_path / "parts", settings, on_batch=at_step(step, send(signal.SIGTERM)))
    record = run_toy(tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    if "ema_decay" in changes:
        averages = [final_weights(tmp_path / name, EMA_NAME) for name in ("whole", "parts")]
        torch.testing.assert_close(averages[0], averages[1], rtol=0, atol=0)
    assert record.counts["steps"] == 12
    assert record.fingerprint == run_toy(tmp_path / "whole", settings).fingerprint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_saves_the_step_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    try:
        with pytest.raises(
            Stopped, match=r"stopped by SIG\w+: step 3 is saved in .*run the same command again"
        ) as caught:
            run_toy(tmp_path, toy_settings(), on_batch=at_step(3, send(number)))
    finally:
        signal.signal(number, before)
    assert caught.value.exit_code == 75
    assert find_checkpoint(tmp_path).step == 3
    assert read_run(tmp_path)["status"] == "stopped"
    live = read_live_run(tmp_path)
    assert (live.status, live.step, live.saved_step, live.max_steps) == ("stopped", 3, 3, 12)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_toy(tmp_path, toy_settings(), on_batch=at_step(3, send(signal.SIGHUP))).counts["steps"] == 12
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interrupt_from_the_keyboard_saves_the_step(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole", toy_settings())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path / "parts", toy_settings(), on_batch=at_step(8, send(signal.SIGINT)))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert find_checkpoint(tmp_path / "parts").step == 8
    run_toy(tmp_path / "parts", toy_settings())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_time_limit_saves_and_stops(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped by the time limit: step 0 is saved"):
        run_toy(tmp_path, toy_settings(), max_seconds=0)
    assert run_toy(tmp_path, toy_settings()).counts["steps"] == 12


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = run_toy(tmp_path, toy_settings())
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run_toy(tmp_path, toy_settings(), bad_step=1) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert read_run(tmp_path)["status"] == "finished"


def test_finished_run_grows_into_what_a_longer_run_gives(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole", toy_settings(max_steps=20))
    run_toy(tmp_path / "grown", toy_settings(max_steps=10))
    assert metrics_of(tmp_path / "grown")[-1]["step"] == 10
    run_toy(tmp_path / "grown", toy_settings(max_steps=20))
    assert_same_run(tmp_path / "whole", tmp_path / "grown")


KILLED_RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_training import run_toy, toy_settings
run_toy(Path(sys.argv[1]), toy_settings(max_steps=400), on_batch=lambda step: time.sleep(0.002))
"""


def test_killed_run_goes_on_from_its_last_checkpoint_without_double_lines(tmp_path: Path) -> None:
    script = KILLED_RUN.format(tests=str(Path(__file__).parent))
    for wanted in (60, 200):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")])
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                if (tmp_path / "killed" / "run.json").exists() and read_run(tmp_path / "killed")["step"] >= wanted:
                    break
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
    with open(tmp_path / "killed" / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 399, "split": "tr')  # the line that was being written
    run_toy(tmp_path / "killed", toy_settings(max_steps=400))
    run_toy(tmp_path / "whole", toy_settings(max_steps=400))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_damaged_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_toy(tmp_path, toy_settings(), on_batch=at_step(11, send(signal.SIGTERM)))
    newest = find_checkpoint(tmp_path)
    weights = newest.path / MODEL_NAME
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"step-00000011/model.safetensors is damaged.*step 10 in .* is good"):
        run_toy(tmp_path, toy_settings())
    for file in newest.path.iterdir():
        file.unlink()
    newest.path.rmdir()
    run_toy(tmp_path, toy_settings())
    run_toy(tmp_path.parent / "whole", toy_settings())
    assert_same_run(tmp_path, tmp_path.parent / "whole")


# What may not change -----------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings())
    with pytest.raises(ChangedRunError, match=r"training.learning_rate: 0.01 -> 0.02") as caught:
        run_toy(tmp_path, toy_settings(learning_rate=0.02, batch_size=8))
    assert "training.batch_size: 4 -> 8" in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_settings_that_do_not_touch_weights_may_change(tmp_path: Path) -> None:
    first = run_toy(tmp_path, toy_settings())
    second = run_toy(tmp_path, toy_settings(log_every=7, keep_checkpoints=1))
    assert second.fingerprint == first.fingerprint
    assert second.settings["training"]["log_every"] == 7
    assert run_toy(tmp_path, toy_settings(log_every=7, keep_checkpoints=1)) == second


def test_run_does_not_shrink(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings())
    with pytest.raises(ChangedRunError, match=r"max_steps=6 but .* has taken 12 steps already"):
        run_toy(tmp_path, toy_settings(max_steps=6))


def test_other_data_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings())
    with pytest.raises(ChangedRunError, match="was started on frames d1 but these are d2"):
        run_toy(tmp_path, toy_settings(), data="d2")


def test_overwrite_starts_from_nothing(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings())
    run_toy(tmp_path, toy_settings(learning_rate=0.02), overwrite=True)
    run_toy(tmp_path.parent / "fresh", toy_settings(learning_rate=0.02))
    assert_same_run(tmp_path, tmp_path.parent / "fresh")


def test_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ArtefactError, match=r"holds other things \(thesis.txt\)"):
            run_toy(tmp_path, toy_settings(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, toy_plan(toy_settings())),
        pytest.raises(BusyError, match="another process"),
    ):
        run_toy(tmp_path, toy_settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 0},
        {"batch_size": 5, "gradient_accumulation_steps": 2},
        {"learning_rate": 0.0},
        {"grad_clip": 0.0},
        {"ema_decay": 1.0},
        {"seed": -1},
        {"warmup_steps": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"training.{next(iter(changes))}"):
        toy_settings(**changes)


# What a step does --------------------------------------------------------------------------------------------------


def test_parts_of_a_batch_count_by_their_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    for parts in (1, 2):
        run_toy(tmp_path / str(parts), toy_settings(gradient_accumulation_steps=parts, grad_clip=0.3), empty_rows=1)
    one, two = (final_weights(tmp_path / name) for name in ("1", "2"))
    torch.testing.assert_close(one["linear.weight"], two["linear.weight"])
    assert_close_metrics(tmp_path / "1", tmp_path / "2")


def test_batch_with_nothing_to_learn_is_skipped(tmp_path: Path) -> None:
    settings = toy_settings(weight_decay=0.5)
    before = {name: value.clone() for name, value in ToyTask(settings).model.state_dict().items()}
    run_toy(tmp_path, settings, empty_rows=4)
    torch.testing.assert_close(final_weights(tmp_path), before, rtol=0, atol=0)
    assert not [line for line in metrics_of(tmp_path) if line["split"] == "train"]


def test_infinite_loss_names_the_step_and_the_clips_and_saves_nothing_broken(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step 7. Its batch holds clip0, clip1.*Step 5 is saved") as caught:
        run_toy(tmp_path, toy_settings(), bad_step=7)
    assert "learning_rate" in str(caught.value)
    assert find_checkpoint(tmp_path).step == 5
    assert all(bool(value.isfinite().all()) for value in final_weights(tmp_path).values())
    assert read_run(tmp_path)["status"] == "failed"


def test_moving_average_is_that_of_the_weights_after_each_step(tmp_path: Path) -> None:
    settings = toy_settings(ema_decay=0.5, checkpoint_every=1, keep_checkpoints=99, max_steps=4)
    run_toy(tmp_path, settings)
    expected = ToyTask(settings).model.state_dict()["linear.weight"]
    for checkpoint in list_checkpoints(tmp_path):
        expected = 0.5 * expected + 0.5 * load_weights(checkpoint)["linear.weight"]
        torch.testing.assert_close(load_weights(checkpoint, EMA_NAME)["linear.weight"], expected)
        assert int(load_weights(checkpoint, EMA_NAME)["forwards"]) == checkpoint.step


def test_best_checkpoint_is_the_one_with_the_lowest_score(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings(learning_rate=0.5, eval_every=1, checkpoint_every=1, keep_checkpoints=1))
    scores = {line["step"]: line["mse"] for line in metrics_of(tmp_path) if line["split"] == "val"}
    assert find_checkpoint(tmp_path, "best").step == min(scores, key=lambda step: scores[step])


def test_best_checkpoint_does_not_depend_on_when_others_are_saved(tmp_path: Path) -> None:
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    for path, every in ((often, 1), (seldom, 7)):
        run_toy(path, toy_settings(learning_rate=0.5, eval_every=2, checkpoint_every=every, keep_checkpoints=1))
    assert find_checkpoint(seldom, "best").step == find_checkpoint(often, "best").step
    scores = {line["step"]: line["mse"] for line in metrics_of(seldom) if line["split"] == "val"}
    assert find_checkpoint(seldom, "best").step == min(scores, key=lambda step: scores[step])


def test_run_without_validation_has_no_best_checkpoint(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings(), has_validation=False)
    assert {line["split"] for line in metrics_of(tmp_path)} == {"train"}
    with pytest.raises(CheckpointError, match="nothing to validate on"):
        find_checkpoint(tmp_path, "best")


def test_log_says_how_fast_the_training_is_and_how_long_it_waited(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train_lines] == [3, 6, 9, 12]
    for line in train_lines:
        assert line["rows_per_second"] == pytest.approx(line["steps_per_second"] * 4, rel=0.05)
        assert 0 <= line["data_wait_share"] <= 1
        assert line["learning_rate"] == 0.01
    assert [line["step"] for line in lines if line["split"] == "val"] == [4, 8, 12]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["step-00000006.png", "step-00000012.png"]


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    run_toy(tmp_path, toy_settings())
    assert torch.equal(torch.rand(2), expected)


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings(precision="bfloat16", learning_rate=0.05, max_steps=100))
    assert final_weights(tmp_path)["linear.weight"].dtype == torch.float32
    losses = [line["loss"] for line in metrics_of(tmp_path) if line["split"] == "train"]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_fused_optimizer_which_rounds_otherwise_is_that_of_bfloat16_alone(optimizer: str) -> None:
    steps = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = ToyModel()
        made = make_optimizer(model, toy_settings(optimizer=optimizer, precision=precision, weight_decay=0.1))
        assert made.defaults["fused"] is (precision == "bfloat16")
        for _ in range(3):
            made.zero_grad()
            sum(value.square().sum() for value in model.parameters()).backward()
            made.step()
        steps[precision] = [value.detach() for value in model.parameters()]
    torch.testing.assert_close(steps["float32"], steps["bfloat16"], rtol=1e-5, atol=1e-7)


def test_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    settings = toy_settings(max_steps=110, warmup_steps=10, schedule="cosine", learning_rate=1.0, min_lr_ratio=0.1)
    rates = [learning_rate_at(step, settings) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.101
    constant = replace(settings, schedule="constant")
    assert {learning_rate_at(step, constant) for step in (11, 60, 110)} == {1.0}


def test_only_matrices_decay() -> None:
    groups = make_optimizer(ToyModel(), toy_settings(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], [value.ndim for value in group["params"]]) for group in groups] == [
        (0.1, [2]),
        (0.0, [1]),
    ]


def test_rmsprop_has_the_papers_parameters() -> None:
    group = make_optimizer(ToyModel(), toy_settings(optimizer="rmsprop")).param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"], group["centered"]) == (0.95, 0.9, 1e-8, False)


def test_step_seeds_do_not_repeat() -> None:
    assert len({step_seed(seed, step) for seed in range(10) for step in range(100)}) == 1000
    assert all(0 <= step_seed(0, step) < 2**63 for step in range(100))


# Devices and ranks -----------------------------------------------------------------------------------------------


def test_unknown_device_names_the_known_ones() -> None:
    for name in ("gpu", "meta"):
        with pytest.raises(ConfigError, match="not one of auto, cpu, cuda"):
            choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_missing_gpu_is_an_expected_error() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
torch.nn.Dropout.forward = lambda self, x: x
from test_training import run_toy_together, toy_settings
run_toy_together(Path(sys.argv[1]))
"""

JOINT = {"grad_clip": 0.3, "batch_size": 8, "gradient_accumulation_steps": 2}


def run_toy_together(out: Path) -> None:
    """Train the toy in every process of a group."""
    settings = toy_settings(**JOINT)
    with (
        joined_ranks("cpu") as ranks,
        ranks.in_turn(lambda is_writer: open_run(out, toy_plan(settings), is_writer=is_writer)) as run,
    ):
        result = train(ToyTask(settings, empty_rows=3), settings, run, ranks)
        torch.save(result.weights, out.with_name(f"worker{ranks.rank}.pt"))


def test_two_workers_take_the_steps_of_one_and_stay_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = WORKER.format(tests=str(Path(__file__).parent))
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "two")],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    run_toy(tmp_path / "one", toy_settings(**JOINT), empty_rows=3)
    saved = [torch.load(tmp_path / f"worker{rank}.pt", weights_only=True)[MODEL_NAME] for rank in range(2)]
    torch.testing.assert_close(saved[0]["linear.weight"], saved[1]["linear.weight"], rtol=0, atol=0)
    torch.testing.assert_close(saved[0]["linear.weight"], final_weights(tmp_path / "one")["linear.weight"])
    assert_close_metrics(tmp_path / "one", tmp_path / "two")


def test_batch_that_does_not_divide_among_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=4 does not divide among 3 processes"):
        run_toy(tmp_path, toy_settings(), ranks=Ranks(0, 3, torch.device("cpu")))


def test_loss_falls(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_settings(max_steps=200, learning_rate=0.05))
    scores = [line["mse"] for line in metrics_of(tmp_path) if line["split"] == "val"]
    assert scores[-1] < scores[0] / 10
    assert math.isfinite(scores[-1])
