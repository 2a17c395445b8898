"""Opening a run directory for training: a new run, or one that is resumed with settings that may not drift."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ChangedRunError, CheckpointError
from lvt_pipeline.progress import SILENT, Progress, count_of
from lvt_pipeline.provenance import RECORD_NAME, Provenance, differences, missing_outputs, now, short
from lvt_pipeline.runs.checkpoints import Checkpoint, drop_checkpoints_after, list_checkpoints, verify_checkpoint
from lvt_pipeline.runs.directory import RunDirectory, RunPlan, owned_directory
from lvt_pipeline.runs.layout import BREAKDOWN_NAME, CONFIG_NAME, METRICS_NAME, RUN_NAME
from lvt_pipeline.runs.metrics_log import cut_log
from lvt_pipeline.runs.read import read_run, read_run_config, read_run_record

# Settings of a training that decide what a checkpoint holds: with others it could not be resumed.
FIXED_SETTINGS = frozenset({"optimizer", "ema_decay"})


@contextmanager
def open_run(
    path: Path,
    plan: RunPlan,
    *,
    overwrite: bool = False,
    is_writer: bool = True,
    allow_config_change: bool = False,
    progress: Progress = SILENT,
) -> Iterator[RunDirectory]:
    """Create or reopen a run directory and own it until the block ends.

    Whatever a killed run left after its last checkpoint is removed: half-written files and lines of the log. A finished
    run is resumed when `plan.max_steps` is more than before.

    Args:
        overwrite: start again from nothing, whatever is there.
        is_writer: False in the ranks that only read; call it once the writer is inside.
        allow_config_change: resume although settings of the training changed; `run.json` and the record list them.

    Raises:
        ArtefactError: `path` holds something else.
        CheckpointError: it is a run of another kind, or a finished one whose files were lost.
        ChangedRunError: its settings or inputs are not those of the plan.
        BusyError: another process is training it.
    """
    path = path.absolute()  # the training may change its working directory
    if not is_writer:
        yield RunDirectory(path, plan, is_writer=False, record=read_run_record(path), started="")
        return
    with owned_directory(path, plan.job.kind, overwrite=overwrite):
        run = RunDirectory(path, plan, is_writer=True, record=None, started=now())
        if (path / RUN_NAME).exists():
            _reopen(run, allow_config_change, progress)
        else:
            run.set_status("running", 0)
            run.write_config()
        yield run


def recorded_start(path: Path) -> str | None:
    """Fingerprint of the weights that an existing run started from; None without a warm start.

    Once a run has saved weights of its own it can be resumed without the run that it started from.
    """
    if not (path / RUN_NAME).exists() or not list_checkpoints(path):
        return None
    found: str | None = read_run(path)["inputs"].get("start")
    return found


def _reopen(run: RunDirectory, allow_config_change: bool, progress: Progress) -> None:
    """Bring an existing run to the state from which its training resumes, or take over its record."""
    path, plan = run.path, run.plan
    state = read_run(path)
    run.config_changes = list(state.get("config_changes", []))
    run.digests = dict(state["digests"])
    run.fresh_weights = list(state.get("fresh_weights", []))
    run.started = state["started"]
    changes = _require_same_run(path, plan, state, allow_config_change)
    checkpoint = run.latest_checkpoint()
    step = checkpoint.step if checkpoint is not None else 0
    if plan.max_steps < step:
        raise ChangedRunError(
            f"training.max_steps={plan.max_steps} but {path} has taken {count_of(step, 'step')} already; "
            "ask for at least as many, or train again with --overwrite"
        )
    record = _complete_record(path, checkpoint)
    is_done = plan.max_steps == step or (
        record is not None and bool(record.counts.get("stopped_early")) and _ends_alike(plan, state)
    )
    if changes and is_done:
        raise ChangedRunError(
            f"{path} has taken its {step} steps with other settings ({'; '.join(changes)}); raise training.max_steps "
            "to resume with these, or train into a new directory"
        )
    if changes:
        run.config_changes.append({"step": step, "changes": changes})
        progress.say(f"{path} resumes from step {step} with other settings: {'; '.join(changes)}")
    if record is not None and is_done:
        run.record = _keep_finished(run, record, state, step)
        return
    (path / RECORD_NAME).unlink(missing_ok=True)
    shutil.rmtree(path / BREAKDOWN_NAME, ignore_errors=True)
    drop_checkpoints_after(path, step)
    damaged = cut_log(path / METRICS_NAME, step, keep_final=plan.max_steps == step)
    if damaged:
        progress.say(damaged)
    run.write_config()
    run.set_status("running", step)


def _complete_record(path: Path, checkpoint: Checkpoint | None) -> Provenance | None:
    """The record of a finished run, None when it is unfinished or lost files that its training can make again."""
    record = read_run_record(path)
    if record is None:
        return None
    lost = missing_outputs(path, record)
    if not lost:
        return record
    if checkpoint is None:
        raise CheckpointError(f"{path} is finished but {lost[0]} is missing; put it back, or train with --overwrite")
    verify_checkpoint(checkpoint)  # the remaining file is good, or named as damaged
    return None


def _keep_finished(run: RunDirectory, record: Provenance, state: Mapping[str, Any], step: int) -> Provenance:
    """The record of a run that has nothing left to do, after harmless changes of its settings."""
    if record.settings == to_plain(run.plan.settings) and state["settings"] == to_plain(run.plan.resolved):
        try:
            read_run_config(run.path)
        except CheckpointError:
            run.write_config()  # it was edited by hand
        return record
    # Without its record the run is unfinished: a kill between these lines leaves one that is finished again.
    (run.path / RECORD_NAME).unlink()
    run.write_config()
    size = (run.path / CONFIG_NAME).stat().st_size
    record = replace(record, settings=to_plain(run.plan.settings), outputs={**record.outputs, CONFIG_NAME: size})
    run.write_finished(record, step)
    return record


def _ends_alike(plan: RunPlan, state: Mapping[str, Any]) -> bool:
    """Whether a run that patience ended would end there again."""
    patience = to_plain(plan.resolved)["training"].get("patience")
    return bool(state["max_steps"] == plan.max_steps and state["settings"]["training"].get("patience") == patience)


def _require_same_run(path: Path, plan: RunPlan, state: Mapping[str, Any], allow_config_change: bool) -> list[str]:
    """Refuse to resume with other settings or inputs than the run has had so far.

    Returns:
        the changes of settings that were allowed.
    """
    for role in sorted({*plan.inputs, *state["inputs"]}):
        before, digest = (short(inputs.get(role, "")) or "none" for inputs in (state["inputs"], plan.inputs))
        if before != digest:
            what = "weights (--init-from)" if role == "start" else role
            raise ChangedRunError(
                f"{path} was started on {what} {before} but these are {digest}; "
                "give the same ones, train into a new directory, or start again with --overwrite"
            )
    changes = _changed_settings(plan, state)
    if not changes:
        return []
    fixed = [change for change in changes if _is_fixed(change)]
    if allow_config_change and not fixed:
        return changes
    if allow_config_change:
        raise ChangedRunError(
            f"{path} was started with other settings that its checkpoints depend on ({'; '.join(fixed)}); "
            "use those, train into a new directory, or start again with --overwrite"
        )
    allowed = "" if fixed else "give --allow-config-change to resume with these, "
    raise ChangedRunError(
        f"{path} was started with other settings ({'; '.join(changes)}); "
        f"use those, {allowed}train into a new directory, or start again with --overwrite"
    )


def _changed_settings(plan: RunPlan, state: Mapping[str, Any]) -> list[str]:
    def without_harmless(settings: Mapping[str, Any]) -> dict[str, Any]:
        training = {key: value for key, value in settings["training"].items() if key not in plan.harmless}
        return {**settings, "training": training}

    old = Provenance(
        kind=plan.job.kind,
        stage=plan.job.stage,
        version=state["version"],
        settings=without_harmless(state["settings"]),
        inputs={},
        fingerprint="",
    )
    return differences(old, plan.job.version, without_harmless(to_plain(plan.resolved)), {})


def _is_fixed(change: str) -> bool:
    name = change.removeprefix("setting ").partition(":")[0]
    return not name.startswith("training.") or name.removeprefix("training.") in FIXED_SETTINGS
