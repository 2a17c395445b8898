"""How far a training is, told from its files alone: whoever can read the run directory can ask, while it is running."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvt_pipeline.runs.read import METRICS_NAME, read_run
from lvt_pipeline.storage import is_locked, json_log

BLOCK_BYTES = 2**16  # read from the end of the log at a time


@dataclass(frozen=True)
class LiveRun:
    """A training as its files tell it.

    Attributes:
        kind: "vqvae-run" or "prior-run".
        status: "running", "stopped", "failed", "finished", or "killed": it says that it is running and nobody does it.
        step: the last one that the log knows, at least the saved one.
        saved_step: where it would go on from.
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
    for line in _lines_from_the_end(run / METRICS_NAME):
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


def _lines_from_the_end(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a log that may be growing, the last one first."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        position, rest = stream.seek(0, 2), b""
        while position:
            size = min(BLOCK_BYTES, position)
            position -= size
            stream.seek(position)
            rest, *lines = (stream.read(size) + rest).split(b"\n")
            yield from (line for text in reversed(lines) if (line := _parsed(text)))
        if line := _parsed(rest):
            yield line


def _parsed(text: bytes) -> dict[str, Any] | None:
    line = next(json_log(text), None)  # none: it is being written, or a killed run left it half-written
    return line if line is not None and {"split", "step"} <= line.keys() else None
