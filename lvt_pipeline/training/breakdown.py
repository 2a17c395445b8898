"""When a training breaks down, and what is kept to look at.

A training has broken down when a number of a step is not finite, or when its loss explodes: the moving average of the
loss (over about `SMOOTHED_STEPS` steps) exceeds `explosion_factor` times the lowest value that it has had since the
first `SMOOTHED_STEPS` steps. Single bad batches do not count; a run that has lost what it had learnt does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lvt_pipeline.storage import atomic_directory, write_json

BREAKDOWN_NAME = "breakdown"
SMOOTHED_STEPS = 50


@dataclass
class LossWatch:
    """Tells an explosion of the loss from its noise. Its numbers are part of a checkpoint.

    Attributes:
        factor: see `TrainingSettings.explosion_factor`.
        average: moving average of the loss.
        lowest: the least that the average has been, None before it has settled.
        steps: steps that were seen.
    """

    factor: float | None
    average: float = 0.0
    lowest: float | None = None
    steps: int = 0

    def add(self, loss: float) -> str:
        """Take the loss of a step; what is wrong, "" when nothing is."""
        self.steps += 1
        # A plain mean at first, then an exponential one.
        self.average += (loss - self.average) / min(self.steps, SMOOTHED_STEPS)
        if self.factor is None or self.steps < SMOOTHED_STEPS:
            return ""
        if self.lowest is None or self.average < self.lowest:
            self.lowest = self.average
        # A loss near or below 0 has no meaningful ratio.
        if self.lowest <= 0 or self.average <= self.factor * self.lowest:
            return ""
        return (
            f"the loss has exploded (its average over {SMOOTHED_STEPS} steps is {self.average:.4g}, "
            f"and was {self.lowest:.4g})"
        )

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        state = asdict(self)
        del state["factor"]
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` said."""
        self.average, self.lowest, self.steps = state["average"], state["lowest"], state["steps"]


def keep_breakdown(
    run: Path, facts: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]], batch: Mapping[str, Tensor]
) -> Path:
    """Write what a training broke down with into `run/breakdown`.

    Args:
        facts: plain data: "what", "step" (whose batch is kept), "weights_after_step", "clips" (of the whole batch).
        weights: tensors by name for each weights file.
        batch: the rows of this worker, by name.
    """
    path = run / BREAKDOWN_NAME
    shutil.rmtree(path, ignore_errors=True)
    with atomic_directory(path) as folder:
        for name, tensors in weights.items():
            # Copies, since tied weights share memory, which a file cannot.
            copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
            save_file(copies, folder / name)
        save_file({key: value.contiguous() for key, value in batch.items()}, folder / "batch.safetensors")
        write_json(folder / "breakdown.json", facts)
    return path
