"""Recipes: how a model learns, chosen apart from what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lvt_pipeline import config
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.training.prior_settings import resolve_settings
from lvt_pipeline.training.settings import PriorRunSettings, TrainingSettings, VQVAERunSettings
from lvt_pipeline.workspace.settings import load_settings

Lvt = Callable[..., tuple[int, str, str]]
SETTINGS: dict[str, type[PriorRunSettings] | type[VQVAERunSettings]] = {
    "prior": PriorRunSettings,
    "vqvae": VQVAERunSettings,
}
LENGTHS = ("max_steps", "batch_size", "log_every", "eval_every", "eval_items", "picture_every", "checkpoint_every")
OURS = {"prior": ("tiny", "small"), "vqvae": ("tiny", "small", "small-fsq")}


def training_of(family: str, **choices: Any) -> TrainingSettings:
    return config.load(SETTINGS[family], family, **choices).training


@pytest.mark.parametrize("family", ["prior", "vqvae"])
def test_recipes_say_how_to_learn_and_nothing_about_size_or_length(family: str) -> None:
    assert config.recipe_names(family) == ["default", "paper"]
    for name in config.recipe_names(family):
        tables = config.read_recipe(family, name)
        assert set(tables) == {"training"}
        assert not set(tables["training"]) & set(LENGTHS)


@pytest.mark.parametrize("family", ["prior", "vqvae"])
def test_our_presets_learn_by_the_default_recipe_and_the_papers_by_the_papers(family: str) -> None:
    paper = config.read_recipe(family, "paper")["training"]
    for preset in config.preset_names(family):
        recipe = "default" if preset in OURS[family] else "paper"
        # Asking for the recipe that a preset has already changes nothing: it may have rates for its size.
        assert training_of(family, preset=preset, recipe=recipe) == training_of(family, preset=preset)
        if recipe == "paper":
            assert config.to_plain(training_of(family, preset=preset)).items() >= paper.items()


@pytest.mark.parametrize("family", ["prior", "vqvae"])
def test_a_recipe_replaces_the_whole_recipe_of_a_preset_and_keeps_the_rest(family: str) -> None:
    tiny = config.load(SETTINGS[family], family, preset="tiny")
    changed = config.load(SETTINGS[family], family, preset="tiny", recipe="paper")
    plain = config.to_plain(changed.training)
    assert plain.items() >= config.read_recipe(family, "paper")["training"].items()
    assert (changed.training.grad_clip, changed.training.warmup_steps) == (None, 0)
    assert changed.model == tiny.model
    assert all(plain[name] == config.to_plain(tiny.training)[name] for name in LENGTHS)


def test_a_recipe_replaces_what_a_file_says_and_set_replaces_what_a_recipe_says(tmp_path: Path) -> None:
    file = tmp_path / "saved.toml"
    file.write_text(config.to_toml(config.load(PriorRunSettings, "prior", preset="tiny")))
    assert training_of("prior", config=file).optimizer == "adamw"
    learnt = training_of("prior", config=file, recipe="paper", overrides=("training.momentum=0.5",))
    assert (learnt.optimizer, learnt.learning_rate, learnt.momentum) == ("rmsprop", 2e-5, 0.5)


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no prior recipe 'papper'; did you mean paper\? known: default, paper"):
        config.load(PriorRunSettings, "prior", preset="tiny", recipe="papper")


@pytest.mark.parametrize("command", ["train-prior", "train-vqvae"])
def test_both_trainings_take_a_recipe(lvt: Lvt, command: str) -> None:
    code, _, error = lvt(command, "--preset", "tiny", "--recipe", "papper", "--dry-run")
    assert (code, error.count("\n")) == (1, 1)
    assert "'papper'; did you mean paper?" in error


def pipeline_training(*overrides: str, **choices: Any) -> TrainingSettings:
    return load_settings(videos=Path("videos"), overrides=overrides, **choices).prior.training


def test_a_recipe_beside_settings_in_a_pipeline_file_is_changed_by_them(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.toml"
    file.write_text('[prior]\npreset = "tiny"\nrecipe = "paper"\ntraining.learning_rate = 1e-4\n')
    training = pipeline_training(file=file)
    assert (training.optimizer, training.learning_rate, training.max_steps) == ("rmsprop", 1e-4, 2_000)


def test_a_recipe_asked_for_replaces_what_a_work_directory_was_made_with(tmp_path: Path) -> None:
    made = load_settings(videos=Path("videos"), work_dir=tmp_path)
    (tmp_path / "pipeline.toml").write_text(config.to_toml(made))
    assert pipeline_training(work_dir=tmp_path) == made.prior.training
    training = pipeline_training("prior.recipe=paper", "prior.training.momentum=0.8", work_dir=tmp_path)
    assert (training.optimizer, training.momentum, training.grad_clip) == ("rmsprop", 0.8, None)
    assert training.max_steps == made.prior.training.max_steps


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_our_priors_look_back_on_seven_frames_and_continue_from_one_frame_or_five(preset: str) -> None:
    small = ("grid=[2,2]", "codebook_size=5", "num_codebooks=1", "width=12", "head_width=4", "embedding_width=8")
    settings = config.load(PriorRunSettings, "prior", preset=preset, overrides=[f"model.{one}" for one in small])
    assert (settings.model.kernel_reach, settings.model.encoder_position) == ("past", True)
    torch.manual_seed(0)
    model = Prior(resolve_settings(settings).model).eval()
    codes = torch.randint(0, 5, (1, 16, 2, 2, 1))
    for given in (1, 5):
        continued = model.sample(codes[:, :given], frames=16)
        assert continued.shape == codes.shape
        assert torch.equal(continued[:, :given], codes[:, :given])
    changed = codes.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 5
    moved = (model.logits(codes) != model.logits(changed)).flatten(2).any(-1)[0].tolist()
    assert moved[1:] == 7 * [True] + 8 * [False]
