"""Training the networks of a work directory: resumed, replaced or refined, and never deleted.

W/runs/prior/         the network that is used
W/runs/prior.new/     its refinement, until that is finished
W/runs/prior.old-N/   earlier ones
"""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path
from typing import Protocol

from lvt_pipeline.errors import ChangedRunError, CheckpointError, LVTError, MismatchError
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.provenance import Provenance, finished_record
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.workspace.stages import Stage, StageState

CHEAP_SECONDS = 600  # a network that took longer to train is replaced only when that is asked for


class Train(Protocol):
    """The training of a network on the data and settings of its stage."""

    def __call__(self, out: Path, *, init_from: Path | None = None) -> Provenance:
        """Train or resume in the directory `out`."""


def train_network(stage: Stage, making: Making, state: StageState, train: Train) -> Provenance:
    """Train, resume, replace or refine the network of a stage.

    Raises:
        ChangedRunError: its settings or data have changed, its training was long, and nothing asks to replace it.
        MismatchError: it cannot be refined.
    """
    if stage.role in making.refine and state.state in ("stale", "outdated"):
        return _refine(stage, making, train)
    return _resume_or_replace(stage, making, state, train)


def refinement_of(run: Path) -> Path:
    """Where the refinement of a run is trained."""
    return run.with_name(f"{run.name}.new")


def install_finished_refinement(run: Path) -> None:
    """Finish what a kill has interrupted between setting an old run aside and putting its refinement in its place."""
    new = refinement_of(run)
    if not run.exists() and finished_record(new) is not None:
        new.rename(run)


def set_aside(run: Path, name: str | None = None) -> Path:
    """Rename a run directory to the first free `NAME.old-N`; returns the new path.

    Args:
        name: of the network; by default that of the directory.
    """
    numbered = (run.with_name(f"{name or run.name}.old-{number}") for number in itertools.count(1))
    aside = next(path for path in numbered if not path.exists())
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


def why_not_replaced(stage: Stage, making: Making, state: StageState, because: str = "") -> LVTError | None:
    """The error for a stale network that took long to train, unless it was asked to be replaced, and can be.

    Args:
        because: why it is stale, where its state does not say so.
    """
    because = "; ".join(state.reasons) or because
    advice = making.advice(stage, fits=state.fits)
    if stage.role in making.refine and not state.fits:
        return MismatchError(f"{stage.output} cannot be refined, as its tokenizer is another one ({because}); {advice}")
    seconds = trained_seconds(stage.output)
    if seconds <= CHEAP_SECONDS or stage.role in making.retrain | making.refine:
        return None
    misfit = "does not fit its settings or data any more" if state.fits else "cannot be used with another tokenizer"
    return ChangedRunError(
        f"{stage.output} trained for {seconds / 60:.0f} minutes and {misfit} ({because}); undo the change, or {advice}"
    )


def _refine(stage: Stage, making: Making, train: Train) -> Provenance:
    """Train a new run from the weights of the present one, which stays in use until the new one is finished."""
    run, new, say = stage.output, refinement_of(stage.output), making.progress.say
    try:
        try:
            record = train(new, init_from=run)
        except ChangedRunError:
            aside = set_aside(new, run.name)
            say(f"the refinement in {new} was started with other data or settings: it is kept as {aside}")
            record = train(new, init_from=run)
    except MismatchError as error:
        raise MismatchError(f"{run} cannot be refined: {error}; --retrain {stage.role} starts from nothing") from error
    aside = set_aside(run)
    new.rename(run)
    say(f"{run} was refined; the run that it started from is kept as {aside}")
    return record


def _resume_or_replace(stage: Stage, making: Making, state: StageState, train: Train) -> Provenance:
    """Train or resume. A run with other settings or data is set aside first, if it was cheap or that is asked for."""
    run = stage.output
    if not (stage.role in making.retrain and state.state in ("stale", "outdated")) and not _is_broken(run):
        try:
            return train(run)
        except ChangedRunError as error:
            refusal = why_not_replaced(stage, making, state, str(error))
            if refusal is not None:
                raise refusal from error
    aside = set_aside(run)
    making.progress.say(f"{run} was trained with other settings or data: it is kept as {aside} and trained again")
    return train(run)


def _is_broken(run: Path) -> bool:
    """Whether a run has lost its description."""
    try:
        read_run(run)
    except CheckpointError:
        return run.is_dir() and any(run.iterdir())
    return False
