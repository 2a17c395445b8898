"""Settings built in Python are held to their types, choices and ranges like those that are read from a file."""

from __future__ import annotations

import re
import typing
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.config import PriorConfig, PriorModelSettings
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.training.settings import (
    PriorRunSettings,
    PriorTraining,
    TrainingSettings,
    VQVAERunSettings,
    VQVAETraining,
)

CLASSES = (PriorConfig, PriorModelSettings, VQVAEConfig, PriorTraining, VQVAETraining, TrainingSettings)


def literals(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal or any(map(literals, typing.get_args(hint)))


CHOICES = [(cls, name) for cls in CLASSES for name, hint in typing.get_type_hints(cls).items() if literals(hint)]
NUMBERS = [
    (cls, item.name)
    for cls in CLASSES
    for item in fields(cls)
    if typing.get_type_hints(cls)[item.name] in (int, float, float | None, int | None)
]


@pytest.mark.parametrize(("cls", "name"), CHOICES)
def test_a_choice_that_is_not_one_is_refused_in_python(cls: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}='nonsense' is not one of"):
        cls(**{name: "nonsense"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.int64(3), "3", True, 2**70])
@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_a_number_that_is_not_plain_and_finite_is_refused_in_one_line(cls: Any, name: str, value: Any) -> None:
    if value == 2**70 and typing.get_type_hints(cls)[name] in (float, float | None):
        value = 10**400  # fits no fraction
    with pytest.raises(ConfigError, match=name) as caught:
        cls(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": (1.0, 0.9)}, "training.betas=1.0 must be at least 0 and below 1"),
        ({"betas": (0.9, -0.1)}, "training.betas=-0.1 must be at least 0 and below 1"),
        ({"betas": (0.9,)}, "training.betas needs 2 numbers, found 1"),
        ({"betas": (0.9, float("nan"))}, "training.betas=nan is not a finite number"),
        ({"weight_decay": -0.1}, "training.weight_decay=-0.1 must be at least 0"),
        ({"min_lr_ratio": 1.5}, "training.min_lr_ratio=1.5 must be from 0 to 1"),
        ({"momentum": 1.0}, "training.momentum=1.0 must be at least 0 and below 1"),
        ({"alpha": 1.0}, "training.alpha=1.0 must be at least 0 and below 1"),
        ({"eps": 0.0}, "training.eps=0.0 must be above 0"),
        ({"learning_rate": 0.0}, "training.learning_rate=0.0 must be above 0 and at most 1e+30"),
        ({"learning_rate": float("nan")}, "training.learning_rate=nan is not a finite number"),
        ({"seed": -1}, "training.seed=-1 must be at least 0"),
        ({"seed": np.int64(1)}, "training.seed needs a whole number, found np.int64(1)"),
        ({"grad_clip": 0.0}, "training.grad_clip=0.0 must be above 0"),
        ({"ema_decay": 1.0}, "training.ema_decay=1.0 must be at least 0 and below 1"),
        ({"explosion_factor": 1.0}, "training.explosion_factor=1.0 must be above 1"),
        ({"patience": 0}, "training.patience=0 must be at least 1"),
        ({"warmup_steps": -1}, "training.warmup_steps=-1 must be at least 0"),
    ],
)
def test_a_training_setting_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        TrainingSettings(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mix": (1.0, 0.0)}, "training.mix=0.0 must be above 0"),
        ({"windows_per_clip": 0}, "training.windows_per_clip=0 must be at least 1"),
    ],
)
def test_a_setting_of_prior_training_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        PriorTraining(**values)


@pytest.mark.parametrize("name", ["commitment_weight", "dead_code_threshold"])
def test_a_negative_weight_of_a_vqvae_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=-1.0 must be at least 0"):
        VQVAEConfig(**{name: -1.0})


def test_whole_numbers_and_lists_become_what_the_field_holds() -> None:
    given: Any = {"learning_rate": 1, "betas": [0, 0.5]}
    settings = TrainingSettings(**given)
    assert settings == TrainingSettings(learning_rate=1.0, betas=(0.0, 0.5))
    assert type(settings.learning_rate) is float
    assert settings.betas == (0.0, 0.5)


@pytest.mark.parametrize("cls", [PriorRunSettings, VQVAERunSettings])
def test_a_table_in_place_of_settings_becomes_settings(cls: Any) -> None:
    assert is_dataclass(cls(training={"max_steps": 3}).training)
    with pytest.raises(ConfigError, match="model is a table of settings, found 3"):
        cls(model=3)
