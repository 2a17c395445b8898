"""What the training loop offers beyond its steps: schedules, early ends, breakdowns, trackers, changed settings."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lvt_pipeline.config import build
from lvt_pipeline.errors import ChangedRunError, ConfigError, Stopped, TrainingError
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.progress import SILENT
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.checkpoints import find_checkpoint, load_state
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.runs.reopening import open_run
from lvt_pipeline.training.dry_run import measure_step
from lvt_pipeline.training.loop import train
from lvt_pipeline.training.monitors import SMOOTHED_STEPS, LossWatch
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.prior_task import prior_loss
from lvt_pipeline.training.settings import OTHER_NAMES, TrainingSettings
from lvt_pipeline.training.sharding import checkpoint_activations
from lvt_pipeline.training.stepping import learning_rate_at
from lvt_pipeline.training.task import StepLoss
from lvt_pipeline.training.vqvae import train_vqvae, vqvae_loss
from tests.run_files import metrics_of
from tests.test_prior_training import make_store
from tests.test_prior_training import settings_of as prior_settings
from tests.test_training import (
    CPU,
    ToyTask,
    assert_same_run,
    at_step,
    final_weights,
    run_toy,
    send,
    toy_plan,
    toy_settings,
)
from tests.test_vqvae_training import make_frames, tiny


class Watched:
    """Progress that remembers what was said, and what was shown beside the bar."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[dict[str, Any]] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    @contextmanager
    def bar(self, task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Watched]:
        yield self

    def advance(self, amount: int = 1, **facts: Any) -> None:
        self.shown.append(facts)


class PlannedTask(ToyTask):
    """The toy task with losses scaled from a step on, and evaluations that are told what to find."""

    def __init__(self, settings: TrainingSettings, *, scores: list[float] | None = None, **options: Any) -> None:
        self.scores = scores
        self.scaled_from, self.scale = options.pop("scaled_from", 10**9), options.pop("scale", 1.0)
        super().__init__(settings, **options)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        result = super().loss(model, batch)
        assert result.loss is not None
        # Added, not multiplied: the gradient stays.
        extra = self.scale if int(batch["step"]) >= self.scaled_from else 0.0
        return StepLoss(result.loss + extra, result.weight, result.metrics)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        if self.scores is None:
            return super().evaluate(model)
        assert isinstance(model.forwards, Tensor)
        return {"mse": self.scores[int(model.forwards) // self.settings.eval_every - 1]}


def run_planned(
    out: Path,
    settings: TrainingSettings,
    *,
    allow_config_change: bool = False,
    track: tuple[str, ...] = (),
    progress: Any = SILENT,
    **options: Any,
) -> Provenance:
    with open_run(out, toy_plan(settings), allow_config_change=allow_config_change, progress=progress) as run:
        if run.record is not None:
            return run.record
        result = train(PlannedTask(settings, **options), settings, run, CPU, track=track, progress=progress)
        return run.finish(result.weights, result.counts(), steps=result.steps, seconds=result.seconds)


# Schedules ---------------------------------------------------------------------------------------------------------


def test_wsd_warms_up_stays_and_falls_in_a_straight_line() -> None:
    settings = toy_settings(
        max_steps=100, warmup_steps=10, schedule="wsd", decay_steps=20, learning_rate=1.0, min_lr_ratio=0.5
    )
    rates = [learning_rate_at(step, settings) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[80:] == pytest.approx([0.5 + 0.5 * (20 - step) / 20 for step in range(20)])
    unsaid = toy_settings(max_steps=100, schedule="wsd", learning_rate=1.0)
    assert [learning_rate_at(step, unsaid) for step in (81, 91, 100)] == pytest.approx([1.0, 0.5, 0.05])
    with pytest.raises(ConfigError, match=r"training.decay_steps=5 needs schedule='wsd'"):
        toy_settings(decay_steps=5)


def test_wsd_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = toy_settings(schedule="wsd", decay_steps=6)
    run_toy(tmp_path / "whole", settings)
    with pytest.raises(Stopped):
        run_toy(tmp_path / "parts", settings, on_batch=at_step(8, send(signal.SIGTERM)))
    run_toy(tmp_path / "parts", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


# Activation checkpointing ------------------------------------------------------------------------------------------

PRIOR = PriorConfig(
    frames=4, grid=(8, 8), num_codebooks=2, codebook_size=8, subscale=(4, 1, 1), width=32, head_width=16, num_heads=2,
    embedding_width=16, encoder_layers=3, decoder_layers=3, qkv_init="standard",
)  # fmt: skip
TOKENIZER = VQVAEConfig(
    num_codebooks=2, codebook_size=8, code_width=16, stem_width=8, residual_width=32, num_residual_blocks=3
)


def made(kind: str) -> tuple[nn.Module, dict[str, Tensor], Any]:
    torch.manual_seed(0)
    if kind == "prior":
        codes = torch.randint(0, 8, (4, 4, 8, 8, 2))
        return Prior(PRIOR), {"codes": codes, "slices": torch.tensor([1, 2, 3, 3])}, prior_loss
    return VQVAE(TOKENIZER), {"frames": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)}, vqvae_loss


@pytest.mark.parametrize(("kind", "blocks"), [("prior", 6), ("vqvae", 6)])
def test_activation_checkpointing_changes_no_bit_of_a_step(kind: str, blocks: int) -> None:
    results = []
    for is_on in (False, True):
        model, batch, loss = made(kind)
        names = list(model.state_dict())
        if is_on:
            assert checkpoint_activations(model) == blocks
        assert list(model.state_dict()) == names
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, batch).loss.backward()
            optimizer.step()
        results.append(dict(model.state_dict()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "at_most"), [("prior", 0.6), ("vqvae", 0.8)])
def test_activation_checkpointing_keeps_fewer_activations(kind: str, at_most: float) -> None:
    kept = []
    for is_on in (False, True):
        model, batch, loss = made(kind)
        settings = TrainingSettings(batch_size=2, activation_checkpointing=is_on)

        def some(count: int, batch: dict[str, Tensor] = batch) -> dict[str, Tensor]:
            return {name: value[:count] for name, value in batch.items()}

        facts = measure_step(model, settings, some, loss, torch.device("cpu"))
        kept.append(facts["memory_bytes_by_part"]["activations"])
    assert kept[1] < at_most * kept[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns about what it does not compile
@pytest.mark.parametrize("kind", ["prior", "vqvae"])
def test_compiled_training_takes_the_steps_of_the_other(kind: str, tmp_path: Path) -> None:
    for name, is_on in (("plain", False), ("compiled", True)):
        if kind == "prior":
            codes = make_store(tmp_path / f"{name}.zarr")
            # Adam would make steps of what rounding leaves of gradients that are zero.
            calm = {"optimizer": "rmsprop", "eps": 1e-2, "max_steps": 4}
            train_prior(codes, tmp_path / name, prior_settings(compile=is_on, **calm), device="cpu")
        else:
            frames = make_frames(tmp_path / f"frames-{name}")
            train_vqvae(frames, tmp_path / name, tiny(compile=is_on, max_steps=4), device="cpu")
    weights = [final_weights(tmp_path / name) for name in ("plain", "compiled")]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)


# The end -----------------------------------------------------------------------------------------------------------

NAMES = ("early", "short")
SCORES = [5.0, 4.0, 4.5, 4.2, 3.0, 2.0, 1.0]  # at steps 4, 8, 12, ...


def test_patience_ends_a_training_that_does_not_become_better(tmp_path: Path) -> None:
    settings = toy_settings(max_steps=28, patience=2)
    lines = Watched()
    record = run_planned(tmp_path / "early", settings, scores=SCORES, progress=lines)
    assert (record.counts["steps"], record.counts["stopped_early"]) == (16, True)
    assert any("mse has not improved in 2 evaluations: the training ends at step 16 of 28" in s for s in lines.said)
    assert read_run(tmp_path / "early")["status"] == "finished"
    run_planned(tmp_path / "short", toy_settings(max_steps=16), scores=SCORES)
    torch.testing.assert_close(final_weights(tmp_path / "early"), final_weights(tmp_path / "short"), rtol=0, atol=0)
    both = [sorted(metrics_of(tmp_path / name), key=lambda line: (line["step"], line["split"])) for name in NAMES]
    assert both[0] == both[1]
    assert run_planned(tmp_path / "early", settings, scores=[]) == record  # finished: not a step more


def test_patience_counts_on_when_a_run_is_resumed(tmp_path: Path) -> None:
    settings = toy_settings(max_steps=28, patience=2)
    run_planned(tmp_path / "whole", settings, scores=SCORES)
    for step in (9, 14):
        with pytest.raises(Stopped):
            run_planned(tmp_path / "parts", settings, scores=SCORES, on_batch=at_step(step, send(signal.SIGTERM)))
    assert run_planned(tmp_path / "parts", settings, scores=SCORES).counts["steps"] == 16
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path: Path) -> None:
    run_planned(tmp_path / "grown", toy_settings(max_steps=28, patience=2), scores=SCORES)
    record = run_planned(tmp_path / "grown", toy_settings(max_steps=28, patience=3), scores=SCORES)
    assert record.counts["steps"] == 28
    assert "stopped_early" not in record.counts
    run_planned(tmp_path / "whole", toy_settings(max_steps=28, patience=3), scores=SCORES)
    assert_same_run(tmp_path / "grown", tmp_path / "whole")


# Breakdowns --------------------------------------------------------------------------------------------------------


def test_an_explosion_is_told_from_noise_and_from_a_slow_rise() -> None:
    watch = LossWatch(10.0)
    assert not any(watch.add(1.0 if step else 1000.0) for step in range(200))  # the first steps do not count
    assert not watch.add(300.0)  # one bad batch
    assert not any(watch.add(1.0) for _ in range(200))
    told = [watch.add(20.0) for _ in range(100)]
    first = next(index for index, text in enumerate(told) if text)
    assert 10 < first < SMOOTHED_STEPS
    assert "exploded" in told[first]
    assert not any(LossWatch(None).add(10.0**step) for step in range(200))


def test_exploding_loss_stops_with_step_clips_and_something_to_look_at(tmp_path: Path) -> None:
    settings = toy_settings(max_steps=200, explosion_factor=5.0, eval_every=60, checkpoint_every=60)
    with pytest.raises(TrainingError, match=r"the loss has exploded .* at step 1\d\d. Its batch holds clip0") as caught:
        run_planned(tmp_path, settings, scaled_from=100, scale=1000.0)
    assert read_run(tmp_path)["status"] == "failed"
    assert find_checkpoint(tmp_path).step == 60
    facts = json.loads((tmp_path / "breakdown" / "breakdown.json").read_text())
    assert f"at step {facts['step']}" in str(caught.value)
    assert str(tmp_path / "breakdown") in str(caught.value)
    assert facts["clips"] == ["clip0", "clip1", "clip2", "clip3"]
    weights = load_file(tmp_path / "breakdown" / "model.safetensors")
    assert int(weights["forwards"]) == facts["weights_after_step"]
    batch = load_file(tmp_path / "breakdown" / "batch.safetensors")
    torch.testing.assert_close(batch["x"], PlannedTask(settings).batch(facts["step"], range(4))["x"])
    # The settings that decide when to stop may change, and a run that goes on leaves nothing of the breakdown.
    calm = toy_settings(max_steps=200, explosion_factor=None, eval_every=60, checkpoint_every=60)
    assert run_planned(tmp_path, calm, scaled_from=100, scale=1000.0).counts["steps"] == 200
    assert not (tmp_path / "breakdown").exists()


def test_an_explosion_is_found_at_the_same_step_after_a_resume(tmp_path: Path) -> None:
    settings = toy_settings(max_steps=200, explosion_factor=5.0)
    options: dict[str, Any] = {"scaled_from": 100, "scale": 5.0}
    with pytest.raises(TrainingError) as whole:
        run_planned(tmp_path / "whole", settings, **options)
    with pytest.raises(Stopped):
        run_planned(tmp_path / "parts", settings, on_batch=at_step(103, send(signal.SIGTERM)), **options)
    assert load_state(find_checkpoint(tmp_path / "parts"))["watch"]["steps"] == 103
    with pytest.raises(TrainingError) as parts:
        run_planned(tmp_path / "parts", settings, **options)
    assert str(parts.value).partition(". ")[0] == str(whole.value).partition(". ")[0]


def test_infinite_loss_leaves_its_batch_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Its batch and the weights after step"):
        run_planned(tmp_path, toy_settings(), bad_step=7)
    assert torch.isinf(load_file(tmp_path / "breakdown" / "batch.safetensors")["x"][0, 0])


def test_deterministic_mode_holds_during_the_training_only(tmp_path: Path) -> None:
    seen: list[bool] = []
    for name, is_on in (("on", True), ("off", False)):
        settings = toy_settings(deterministic=is_on)
        run_toy(
            tmp_path / name,
            settings,
            on_batch=at_step(2, lambda: seen.append(torch.are_deterministic_algorithms_enabled())),
        )
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


# Seeing it run -----------------------------------------------------------------------------------------------------


def test_the_bar_shows_loss_speed_waiting_and_memory(tmp_path: Path) -> None:
    lines = Watched()
    run_planned(tmp_path, toy_settings(), progress=lines)
    assert len(lines.shown) == 12
    assert set(lines.shown[-1]) == {"loss", "rows/s", "data wait", "memory"}
    assert lines.shown[-1]["memory"].endswith(" MiB")
    logged = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["memory_bytes"] > 2**20
    assert 0 <= logged["data_wait_share"] <= 1


def test_tensorboard_shows_what_the_log_says(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Stopped):
        run_planned(tmp_path, toy_settings(), track=("tensorboard",), on_batch=at_step(7, send(signal.SIGTERM)))
    run_planned(tmp_path, toy_settings(), track=("tensorboard",))
    shutil.rmtree(find_checkpoint(tmp_path).path)  # so that steps after 10 are taken, and shown, again
    run_planned(tmp_path, toy_settings(), track=("tensorboard",))
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    lines = [line for line in metrics_of(tmp_path) if line["split"] == "train"]
    shown = found.Scalars("train/loss")
    assert [event.step for event in shown] == [line["step"] for line in lines] == [3, 6, 9, 12]
    assert [event.value for event in shown] == pytest.approx([line["loss"] for line in lines])
    assert [event.step for event in found.Scalars("val/mse")] == [4, 8, 12]


def test_weights_and_biases_gets_the_lines_and_one_name_for_all_parts_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, Any]] = []
    lines: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(
        log=lambda values, step: lines.append((step, values)), finish=lambda: lines.append((-1, {}))
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: starts.append(options) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(Stopped):
        run_planned(tmp_path, toy_settings(), track=("wandb",), on_batch=at_step(7, send(signal.SIGTERM)))
    run_planned(tmp_path, toy_settings(), track=("wandb",))
    assert len(starts) == 2
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[0]["config"]["learning_rate"] == 0.01
    assert [step for step, values in lines if "train/loss" in values] == [3, 6, 9, 12]
    assert [step for step, _ in lines].count(-1) == 2


def test_trackers_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(ConfigError, match=rf"pip install 'lvt-pipeline\[{name}\]'"):
            run_planned(tmp_path / name, toy_settings(), track=(name,))


def test_no_tracker_is_imported_unless_asked_for(tmp_path: Path) -> None:
    script = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        f"from tests.test_training import run_toy, toy_settings; run_toy(Path({str(tmp_path)!r}), toy_settings())\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('tensorboard', 'wandb')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_names_of_other_trainers_are_answered_with_ours(name: str) -> None:
    ours = OTHER_NAMES[name].split("=")[0].split()[0]
    with pytest.raises(ConfigError, match=f"unknown setting {name}; here it is {ours}"):
        build(TrainingSettings, {name: 1})
    assert ours in TrainingSettings.__dataclass_fields__


def test_settings_of_a_run_may_change_when_that_is_allowed_and_the_run_says_so(tmp_path: Path) -> None:
    first = toy_settings(learning_rate=0.01, max_steps=6)
    run_planned(tmp_path, first)
    changed = toy_settings(learning_rate=0.5, weight_decay=0.3, max_steps=9)
    with pytest.raises(ChangedRunError, match="give --allow-config-change to resume with these"):
        run_planned(tmp_path, changed)
    lines = Watched()
    record = run_planned(tmp_path, changed, allow_config_change=True, progress=lines)
    changes = record.counts["config_changes"]
    assert [change["step"] for change in changes] == [6]
    assert changes[0]["changes"] == [
        "setting training.learning_rate: 0.01 -> 0.5",
        "setting training.weight_decay: 0.0 -> 0.3",
    ]
    assert read_run(tmp_path)["config_changes"] == changes
    assert any("resumes from step 6 with other settings: setting training.learning_rate" in line for line in lines.said)
    # The optimizer follows the settings, not what the checkpoint remembers.
    groups = load_state(find_checkpoint(tmp_path))["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {line["learning_rate"] for line in metrics_of(tmp_path) if line["step"] == 9 and "loss" in line} == {0.5}
    assert run_planned(tmp_path, changed) == record  # nothing has changed since


def test_settings_that_checkpoints_depend_on_never_change(tmp_path: Path) -> None:
    run_planned(tmp_path, toy_settings())
    with pytest.raises(ChangedRunError, match=r"checkpoints depend on \(setting training.optimizer"):
        run_planned(tmp_path, toy_settings(optimizer="adam", max_steps=20), allow_config_change=True)
    with pytest.raises(ChangedRunError) as caught:
        run_planned(tmp_path, toy_settings(optimizer="adam"))
    assert "--allow-config-change" not in str(caught.value)


def test_a_run_without_steps_left_does_not_take_on_other_settings(tmp_path: Path) -> None:
    run_planned(tmp_path, toy_settings())
    before = final_weights(tmp_path)
    with pytest.raises(
        ChangedRunError, match=r"has taken its 12 steps with other settings .* raise training.max_steps"
    ):
        run_planned(tmp_path, toy_settings(learning_rate=0.5), allow_config_change=True)
    torch.testing.assert_close(final_weights(tmp_path), before, rtol=0, atol=0)
    assert "config_changes" not in read_run(tmp_path)


def test_the_record_of_a_run_lists_every_training_setting(tmp_path: Path) -> None:
    record = run_planned(tmp_path, toy_settings())
    assert {*record.settings["training"]} == {item.name for item in fields(toy_settings())}
