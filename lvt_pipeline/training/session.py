"""How every training opens its run directory and finishes it, whatever it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.threads import Threads, product_seconds
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
    out: Path,
    plan: RunPlan,
    ranks: Ranks,
    options: SessionOptions,
    make_task: Callable[[RunDirectory], RecordedTask],
) -> Provenance:
    """Open the run, train its task, and write its record. A finished run is left alone.

    Args:
        make_task: called in every rank once the run is open.

    Returns:
        the record of the run, the same in every rank.

    Raises:
        LVTError: as `open_run` and `train`.
    """
    start = options.start
    recorded = None if options.overwrite else recorded_start(out)
    fingerprint = start.fingerprint if start is not None else recorded
    if fingerprint is not None:
        plan = replace(plan, inputs={**plan.inputs, "start": fingerprint})

    def opening(is_writer: bool) -> AbstractContextManager[RunDirectory]:
        return open_run(
            out,
            plan,
            overwrite=options.overwrite,
            is_writer=is_writer,
            allow_config_change=options.allow_config_change,
            progress=options.progress,
        )

    with ranks.in_turn(opening) as run:
        if run.record is not None:
            return run.record
        task = make_task(run)
        if start is not None and run.latest_checkpoint() is None:
            fresh = start.fill(task.model)
            listed = f"; fresh: {', '.join(fresh)}" if fresh else ""
            options.progress.say(f"starting from the weights of {start.run}{listed}")
            run.set_start(fresh)
        with Threads(product_seconds(task.model, plan.resolved.training.batch_size)):
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
            **({"fresh_weights": run.fresh_weights} if fingerprint is not None else {}),
        }
        record = run.finish(result.weights, counts, steps=result.steps, seconds=result.seconds)
        return ranks.share(record)  # only rank 0 has seen the validation clips
