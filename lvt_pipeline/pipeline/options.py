"""Everything about a run of stages that does not change their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lvt_pipeline.codes.loading.cache import Cache
from lvt_pipeline.jobs.runner import LOCAL, Runner
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.workspace.stages import Stage, StageState


@dataclass(frozen=True, kw_only=True)
class Making:
    """Everything about a run of stages that does not change their results.

    Attributes:
        num_workers: processes that decode videos; None: one per core.
        runner: where frames, codes, samples and videos are made.
        max_failures: share of clips that may fail in ingest.
        cache: where training codes are kept, as in `train_prior`.
        track: "tensorboard", "wandb": where training metrics are shown as well.
        deadline: on the monotonic clock; trainings save and stop then. None: no limit.
        retrain: roles of networks that may be replaced, however long their training took.
        refine: roles of networks that are trained further on the data and settings of today, in a new run.
        remedy: how the user replaces a network, whose run is `{run}`; None: by the options of `lvt run`.
    """

    device: str = "auto"
    num_workers: int | None = None
    runner: Runner = LOCAL
    max_failures: float = 0.5
    cache: Cache = "auto"
    track: Sequence[str] = ()
    deadline: float | None = None
    retrain: frozenset[str] = frozenset()
    refine: frozenset[str] = frozenset()
    remedy: str | None = None
    progress: Progress = SILENT

    def keeps(self, stage: Stage, state: StageState) -> bool:
        """Whether nothing is made: the stage is done, or a network that is outdated and not to be replaced."""
        may_train = self.retrain | self.refine
        return state.state == "done" or (state.state == "outdated" and stage.role not in may_train)

    def advice(self, stage: Stage, *, fits: bool = True) -> str:
        """How to replace a network; refining takes weights that fit (`StageState`)."""
        if self.remedy is not None:
            return self.remedy.format(run=stage.output)
        option = f"--retrain {'all' if self.retrain - {stage.role} else stage.role}"
        if not fits:
            return f"have it trained again with {option}, which keeps the old run"
        return f"refine it with --refine {stage.role}, or start from nothing with {option}; both keep the old run"

    @property
    def training_options(self) -> dict[str, Any]:
        """Arguments of `train_vqvae` and `train_prior`: trainings end at the deadline, at least after a moment."""
        left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0.001)
        return {"device": self.device, "max_seconds": left, "track": self.track, "progress": self.progress}
