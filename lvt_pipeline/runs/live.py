"""The progress of a training, read from its files: any process that sees the run directory can ask at any time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvt_pipeline.runs.layout import METRICS_NAME
from lvt_pipeline.runs.metrics_log import lines_from_the_end
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.storage import is_locked


@dataclass(frozen=True)
class LiveRun:
    """A training as its files describe it.

    Attributes:
        kind: "vqvae-run" or "prior-run".
        status: "running", "stopped", "failed", "finished", or "killed": marked as running, but no process holds its
            lock.
        step: the last one in the log, at least the saved one.
        saved_step: the step that it would resume from.
        train, val: the last line of the log of each split, {} when there is none.
    """

    kind: str
    status: str
    step: int
    saved_step: int
    max_steps: int
    train: dict[str, Any]
    val: dict[str, Any]

    @property
    def seconds_left(self) -> float | None:
        """Until `max_steps` at the speed of the last line; None unless it is running."""
        speed = self.train.get("steps_per_second")
        return (self.max_steps - self.step) / speed if speed and self.status == "running" else None


def read_live_run(run: Path) -> LiveRun:
    """Look at a run, whether or not it is running.

    Raises:
        CheckpointError: there is none at this path, or its description is damaged.
    """
    state = read_run(run)
    last: dict[str, dict[str, Any]] = {}
    for line in lines_from_the_end(run / METRICS_NAME):
        last.setdefault(line["split"], line)
        if {"train", "val"} <= last.keys():
            break
    status = state["status"]
    return LiveRun(
        kind=state["kind"],
        status="killed" if status == "running" and not is_locked(run) else status,
        step=max([state["step"], *(line["step"] for line in last.values())]),
        saved_step=state["step"],
        max_steps=state["max_steps"],
        train=last.get("train", {}),
        val=last.get("val", {}),
    )
