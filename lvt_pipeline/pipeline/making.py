"""How the output of each stage is made, for `lvt run` and `lvt reproduce`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lvt_pipeline.codes.loading.cache import Cache
from lvt_pipeline.errors import ChangedRunError, CheckpointError, StoreError
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.job import finished_record
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.report.page import write_report
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from lvt_pipeline.workspace.stages import Stage, StageState

CHEAP_SECONDS = 600  # a network that took longer to train is replaced only when that is asked for


@dataclass(frozen=True, kw_only=True)
class Making:
    """Everything about a run of stages that does not change their results.

    Attributes:
        num_workers: processes that decode videos; None: one per core.
        max_failures: share of clips that may fail in ingest.
        cache: where training codes are kept, as in `train_prior`.
        track: "tensorboard", "wandb": where training metrics are shown as well.
        deadline: on the monotonic clock; trainings save and stop then. None: no limit.
        retrain: roles of networks that may be replaced, however long their training took.
        remedy: how the user replaces a network; `{role}` and `{run}` stand for it.
    """

    device: str = "auto"
    num_workers: int | None = None
    max_failures: float = 0.5
    cache: Cache = "auto"
    track: Sequence[str] = ()
    deadline: float | None = None
    retrain: frozenset[str] = frozenset()
    remedy: str = "replace it with --retrain {role}, which keeps the old run"
    progress: Progress = SILENT

    def keeps(self, stage: Stage, state: StageState) -> bool:
        """Whether nothing is made: the stage is done, or a network that is outdated and not to be replaced."""
        return state.state == "done" or (state.state == "outdated" and stage.role not in self.retrain)

    def advice(self, stage: Stage) -> str:
        """How to replace a network."""
        return self.remedy.format(role=stage.role, run=stage.output)

    @property
    def seconds_left(self) -> float | None:
        """Time until the deadline, at least a moment; None without one."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.001)


Maker = Callable[[Stage, Making, StageState], Provenance]


def make_frames(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Decode the clips of the manifest that are new or changed."""
    return ingest(
        stage.sources["manifest"],
        stage.output,
        stage.settings,
        num_workers=making.num_workers,
        max_failures=making.max_failures,
        progress=making.progress,
    )


def make_tokenizer(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Train a tokenizer, or resume its training."""

    def train() -> Provenance:
        return train_vqvae(
            stage.sources["frames"],
            stage.output,
            stage.settings,
            device=making.device,
            max_seconds=making.seconds_left,
            track=making.track,
            progress=making.progress,
        )

    return _resume_or_replace(stage, making, state, train)


def make_codes(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Encode new and changed clips."""
    vqvae = stage.sources["tokenizer"]
    return encode_up_to_date(
        stage.sources["frames"], vqvae, stage.output, stage.settings, making.device, making.progress
    )


def make_prior(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Train a prior, or resume its training on the generation of the store that it began with."""

    def train() -> Provenance:
        return train_prior(
            stage.sources["codes"],
            stage.output,
            stage.settings,
            cache=making.cache,
            device=making.device,
            max_seconds=making.seconds_left,
            track=making.track,
            progress=making.progress,
        )

    return _resume_or_replace(stage, making, state, train)


def make_samples(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Sample continuations of clips."""
    return sample_clips(
        stage.sources["prior"],
        stage.sources["codes"],
        stage.output,
        stage.settings,
        device=making.device,
        overwrite=state.state == "stale",
        progress=making.progress,
    )


def make_videos(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Decode the samples into files."""
    return decode_store(
        stage.sources["codes"],
        stage.sources["vqvae"],
        stage.output,
        stage.settings,
        device=making.device,
        progress=making.progress,
    )


def make_evaluation(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Measure the prior and the samples; errors in pixels too, while the frames are there."""
    sources: dict[str, Path | None] = dict(stage.sources)
    if finished_record(stage.sources["frames"]) is None:
        making.progress.say(f"errors in pixels are not measured: {stage.sources['frames']} is not there")
        sources["frames"] = None
    return evaluate(
        stage.sources["codes"],
        stage.output,
        stage.settings,
        prior=sources["prior"],
        frames=sources["frames"],
        vqvae=sources["vqvae"],
        samples=sources["samples"],
        # A handful of videos may have no clip to spare for testing; the result names the split it was measured on.
        allow_training_clips=True,
        device=making.device,
        progress=making.progress,
    )


def make_report(stage: Stage, making: Making, state: StageState) -> Provenance:
    """Write the page about the work directory."""
    return write_report(stage.output.parent, stage.output, progress=making.progress)


MAKERS: Mapping[str, Maker] = {
    "frames": make_frames,
    "vqvae": make_tokenizer,
    "codes": make_codes,
    "prior": make_prior,
    "samples": make_samples,
    "videos": make_videos,
    "evaluation": make_evaluation,
    "report": make_report,
}


# Networks ------------------------------------------------------------------------------------------------------------


def _resume_or_replace(stage: Stage, making: Making, state: StageState, train: Callable[[], Provenance]) -> Provenance:
    """Train or resume. A run with other settings or data is set aside first, if it was cheap or that is asked for."""
    run = stage.output
    may_replace = stage.role in making.retrain
    if not (may_replace and state.state in ("stale", "outdated")) and not _is_broken(run):
        try:
            return train()
        except ChangedRunError as error:
            if not may_replace and trained_seconds(run) > CHEAP_SECONDS:
                raise ChangedRunError(
                    f"{run} trained for {trained_seconds(run) / 60:.0f} minutes and does not fit its settings or data "
                    f"any more ({'; '.join(state.reasons) or error}); undo the change, or " + making.advice(stage)
                ) from error
    aside = set_aside(run)
    making.progress.say(f"{run} was trained with other settings or data: it is kept as {aside} and trained again")
    return train()


def set_aside(run: Path) -> Path:
    """Rename a run directory to the first free `NAME.old-N`; returns the new path."""
    free = (path for number in itertools.count(1) if not (path := run.with_name(f"{run.name}.old-{number}")).exists())
    aside = next(free)
    run.rename(aside)
    return aside


def trained_seconds(run: Path) -> float:
    """How long a run has been trained, finished or not; 0 when that is not known."""
    record = finished_record(run)
    if record is not None:
        return record.seconds
    try:
        state = read_run(run)
        began, ended = (datetime.fromisoformat(str(state[name])) for name in ("started", "updated"))
    except (CheckpointError, KeyError, ValueError):
        return 0.0
    return (ended - began).total_seconds()


def _is_broken(run: Path) -> bool:
    """Whether a run has lost its description."""
    try:
        read_run(run)
    except CheckpointError:
        return run.is_dir() and any(run.iterdir())
    return False


# Codes ---------------------------------------------------------------------------------------------------------------


def encode_up_to_date(
    frames: Path, vqvae: Path, codes: Path, settings: EncodeSettings, device: str, progress: Progress
) -> Provenance:
    """Encode new and changed clips; repair a damaged store, or else make it again, and report it."""
    try:
        report = encode_dataset(frames, vqvae, codes, settings, device=device, reencode=True, progress=progress)
    except StoreError as error:  # the frames are there, so a damaged store can be repaired, or else made again
        try:
            report = encode_dataset(
                frames, vqvae, codes, settings, device=device, reencode=True, repair=True, progress=progress
            )
            progress.say(f"{error}; repaired {', '.join(report.repaired)}")
        except StoreError:
            progress.say(f"{error}; encoding everything again")
            report = encode_dataset(frames, vqvae, codes, settings, device=device, overwrite=True, progress=progress)
    assert report.provenance is not None, "only a dry run has no record"
    return report.provenance
