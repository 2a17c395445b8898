"""How every training opens its run directory and finishes it, whatever it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.machine import kept_memory
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.threads import Threads, product_seconds, waits_that_leave_room
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.directory import RunDirectory, RunPlan
from lvt_pipeline.runs.reopening import open_run, recorded_start
from lvt_pipeline.runs.warm_start import WarmStart
from lvt_pipeline.training.distributed import Ranks
from lvt_pipeline.training.loop import train
from lvt_pipeline.training.task import Task


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a training is carried out, and the weights that it starts from. Meanings as in `train_prior`."""

    max_seconds: float | None = None
    overwrite: bool = False
    allow_config_change: bool = False
    track: Sequence[str] = ()
    progress: Progress = SILENT
    start: WarmStart | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not 0 <= self.max_seconds < math.inf:
            raise ConfigError(
                f"max_seconds={self.max_seconds} must be a number of at least 0; leave it out for no limit"
            )


class RecordedTask(Task, Protocol):
    """A task that is trained in a run directory."""

    def facts(self, weights: Mapping[str, Mapping[str, Tensor]], evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """Counts for the record of the run.

        Args:
            weights: final tensors by name for each weights file.
            evaluation: metrics of the last evaluation, {} when there was nothing to validate on.
        """


def run_training(
    out: Path, plan: RunPlan, ranks: Ranks, options: SessionOptions, make_task: Callable[[RunDirectory], RecordedTask]
) -> Provenance:
    """Open the run, train its task, and write its record. A finished run is left alone.

    Args:
        make_task: called in every rank once the run is open.

    Returns:
        the record of the run, the same in every rank.

    Raises:
        LVTError: as `open_run` and `train`.
    """
    plan = _with_start(plan, out, options)
    opening = partial(
        open_run,
        out,
        plan,
        overwrite=options.overwrite,
        allow_config_change=options.allow_config_change,
        progress=options.progress,
    )
    with ranks.in_turn(opening) as run:
        if run.record is not None:
            return run.record
        task = make_task(run)
        if options.start is not None and run.latest_checkpoint() is None:
            _fill(task, options.start, run, options.progress)
        return _train(task, plan, run, ranks, options)


def _train(task: RecordedTask, plan: RunPlan, run: RunDirectory, ranks: Ranks, options: SessionOptions) -> Provenance:
    # The number of threads decides the last bits of a training, so it stays as it is.
    threads = Threads(product_seconds(task.model, plan.resolved.training.batch_size))
    with threads, waits_that_leave_room(), kept_memory():
        result = train(
            task,
            plan.resolved.training,
            run,
            ranks,
            max_seconds=options.max_seconds,
            track=options.track,
            progress=options.progress,
        )
    counts = {
        "parameters": num_parameters(task.model),
        **result.counts(),
        **task.facts(result.weights, result.evaluation),
        **({"fresh_weights": run.fresh_weights} if "start" in plan.inputs else {}),
    }
    record = run.finish(result.weights, counts, steps=result.steps, seconds=result.seconds)
    return ranks.share(record)  # only rank 0 has seen the validation clips


def _with_start(plan: RunPlan, out: Path, options: SessionOptions) -> RunPlan:
    """With the weights that the run starts from, or once started from, among the inputs."""
    if options.start is not None:
        return replace(plan, inputs={**plan.inputs, "start": options.start.fingerprint})
    recorded = None if options.overwrite else recorded_start(out)
    return plan if recorded is None else replace(plan, inputs={**plan.inputs, "start": recorded})


def _fill(task: RecordedTask, start: WarmStart, run: RunDirectory, progress: Progress) -> None:
    fresh = start.fill(task.model)
    listed = f"; fresh: {', '.join(fresh)}" if fresh else ""
    progress.say(f"starting from the weights of {start.run}{listed}")
    run.set_start(fresh)
