"""The options that both trainings have, and the summary of their dry run. No command is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from lvt_pipeline.config import load
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.settings import setting
from stages.options import DEVICE, MAX_SECONDS, OVERRIDES, OVERWRITE, TRACK, Tracker

RunSettings = TypeVar("RunSettings")
DEFAULT_PRESET = "small"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of a training, in the order of the help."""

    out: Path | None = setting(None, "Run directory to create or resume. Not needed with --dry-run.")
    preset: str | None  # described by the two trainings
    recipe: str | None = setting(
        None,
        "Training recipe: default or paper. It replaces the optimizer, rates and clipping of the preset or file.",
        unset="that of the preset",
    )
    config: Path | None = setting(None, "TOML file of settings.")
    overrides: tuple[str, ...] = OVERRIDES
    init_from: Path | None = setting(
        None,
        "Run whose weights a new run starts from, where names and shapes fit. The others are listed and start fresh, "
        "and so does the optimizer.",
    )
    max_steps: int | None = setting(None, "Number of steps. Same as --set training.max_steps=N.", at_least=1)
    max_seconds: float | None = MAX_SECONDS
    device: str = DEVICE
    dry_run: bool = setting(False, "Build the model, time one step and print the facts; write nothing.")
    overwrite: bool = OVERWRITE
    allow_config_change: bool = setting(
        False, "Resume although training settings have changed. The run keeps a list of the changes."
    )
    track: tuple[Tracker, ...] = TRACK

    def load(self, cls: type[RunSettings], family: str) -> RunSettings:
        """The settings of the run.

        Args:
            family: folder of the presets and recipes.
        """
        chosen = self.preset or (None if self.config else DEFAULT_PRESET)
        steps = () if self.max_steps is None else (f"training.max_steps={self.max_steps}",)
        overrides = (*self.overrides, *steps)
        return load(cls, family, preset=chosen, recipe=self.recipe, config=self.config, overrides=overrides)


def dry_run_line(facts: Mapping[str, Any]) -> str:
    """The summary of a dry run for people."""
    end = datetime.now() + timedelta(seconds=min(facts["total_seconds"], 1e9))
    return (
        f"{facts['parameters']:,} parameters, about {facts['memory_bytes'] / 2**20:,.0f} MiB, "
        f"{facts['steps_per_second']:.3g} steps/s ({facts['step_seconds']:.3f} s each): {facts['max_steps']:,} steps "
        f"take {format_seconds(facts['total_seconds'])}, until {end:%Y-%m-%d %H:%M}"
    )
