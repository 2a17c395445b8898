"""The options that both trainings have, and the summary of their dry run. No command is here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import click

from lvt_pipeline.config import load
from lvt_pipeline.progress import format_seconds
from stages.options import device_option, json_option, out_option, overwrite_option, set_option
from stages.values import PATH, TEXT, Real, Whole

Function = TypeVar("Function", bound=Callable[..., Any])
RunSettings = TypeVar("RunSettings")
DEFAULT_PRESET = "small"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Generic[RunSettings]):
    """What the options of a training ask for."""

    settings: RunSettings
    out: Path | None
    init_from: Path | None
    max_seconds: float | None
    device: str
    dry_run: bool
    overwrite: bool
    allow_config_change: bool
    track: tuple[str, ...]


def training_options(cls: type[RunSettings], family: str) -> Callable[[Function], Function]:
    """The options of a training; the command receives them as `options`, with its settings built.

    Args:
        cls: the settings class of the run.
        family: folder of the presets and recipes.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(
            *args: Any,
            preset: str | None,
            recipe: str | None,
            config: Path | None,
            overrides: tuple[str, ...],
            max_steps: int | None,
            **kwargs: Any,
        ) -> Any:
            if max_steps is not None:
                overrides = (*overrides, f"training.max_steps={max_steps}")
            chosen = preset or (None if config else DEFAULT_PRESET)
            settings = load(cls, family, preset=chosen, recipe=recipe, config=config, overrides=overrides)
            given = {field.name: kwargs.pop(field.name) for field in fields(TrainingOptions) if field.name in kwargs}
            options = TrainingOptions(settings=settings, **given)
            return function(*args, options=options, **kwargs)

        for option in reversed([*_settings_options(family), *_run_options()]):
            option(call)
        return cast(Function, call)

    return decorate


def _settings_options(family: str) -> list[Callable[[Any], Any]]:
    """What is trained, in the order of the help."""
    return [
        out_option("Run directory to create or resume. Not needed with --dry-run.", required=False),
        click.option(
            "--preset",
            type=TEXT,
            show_default=DEFAULT_PRESET,
            help=f"Preset: settings that come with lvt (lvt_pipeline/presets/{family}).",
        ),
        click.option(
            "--recipe",
            type=TEXT,
            show_default="that of the preset",
            help="Training recipe: default or paper. It replaces the optimizer, rates and clipping of the preset or "
            "file.",
        ),
        click.option("--config", type=PATH, help="TOML file of settings."),
        set_option(),
    ]


def _run_options() -> list[Callable[[Any], Any]]:
    """How it is trained, in the order of the help."""
    return [
        click.option(
            "--init-from",
            type=PATH,
            help="Run whose weights a new run starts from, where names and shapes fit. The others are listed and start "
            "fresh, and so does the optimizer.",
        ),
        click.option("--max-steps", type=Whole(1), help="Number of steps. Same as --set training.max_steps=N."),
        click.option(
            "--max-seconds",
            type=Real(0),
            help="Time in seconds after which the training saves and stops (exit code 75).",
        ),
        device_option,
        click.option(
            "--dry-run", is_flag=True, help="Build the model, time one step and print the facts; write nothing."
        ),
        overwrite_option,
        click.option(
            "--allow-config-change",
            is_flag=True,
            help="Resume although training settings have changed. The run keeps a list of the changes.",
        ),
        click.option(
            "--track",
            type=click.Choice(["tensorboard", "wandb"]),
            multiple=True,
            help="Tracker that also receives the metrics (an extra to install); metrics.jsonl is always written.",
        ),
        json_option,
    ]


def dry_run_line(facts: Mapping[str, Any]) -> str:
    """The summary of a dry run for people."""
    end = datetime.now() + timedelta(seconds=min(facts["total_seconds"], 1e9))
    return (
        f"{facts['parameters']:,} parameters, about {facts['memory_bytes'] / 2**20:,.0f} MiB, "
        f"{facts['steps_per_second']:.3g} steps/s ({facts['step_seconds']:.3f} s each): {facts['max_steps']:,} steps "
        f"take {format_seconds(facts['total_seconds'])}, until {end:%Y-%m-%d %H:%M}"
    )
