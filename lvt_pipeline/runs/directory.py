"""The writing side of a run directory: one writer, settings that may not drift, and a log without half lines.

    run/config.toml          the resolved settings, as `--config` reads them
    run/run.json             kind, status (running, stopped, failed, finished), step, inputs
    run/metrics.jsonl        one JSON object a line: what the training and the validation said
    run/pictures/step-*.png  what the model could do at that step
    run/checkpoints/         see `runs.checkpoints`
    run/trained_clips.txt    what a prior learns from, see `runs.trained_clips`
    run/breakdown/           what a training broke down with, see `training.breakdown`
    run/tensorboard/         the metrics for TensorBoard, when asked for
    run/provenance.json      written last: the run is finished

The reading side is `lvt_pipeline.runs.read`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lvt_pipeline.config import to_plain, to_toml
from lvt_pipeline.errors import ArtefactError, ChangedRunError, CheckpointError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import (
    RECORD_NAME,
    Provenance,
    differences,
    missing_outputs,
    short,
    write_record,
)
from lvt_pipeline.runs.checkpoints import (
    CHECKPOINTS_NAME,
    FILES_NAME,
    MODEL_NAME,
    STATE_NAME,
    Checkpoint,
    drop_checkpoints_after,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
    verify_checkpoint,
    weights_digest,
)
from lvt_pipeline.runs.read import CONFIG_NAME, METRICS_NAME, PICTURES_NAME, RUN_NAME, read_run, read_run_record
from lvt_pipeline.runs.trained_clips import TRAINED_CLIPS_NAME
from lvt_pipeline.storage import describe_os_error, exclusive_lock, read_json, write_bytes, write_json
from lvt_pipeline.training.breakdown import BREAKDOWN_NAME
from lvt_pipeline.training.trackers import TENSORBOARD_NAME

OUR_NAMES = (
    *(RECORD_NAME, CHECKPOINTS_NAME, METRICS_NAME, PICTURES_NAME, BREAKDOWN_NAME, TENSORBOARD_NAME),
    *(TRAINED_CLIPS_NAME, CONFIG_NAME, RUN_NAME),
)
# Settings of a training that decide what a checkpoint holds: with others it could not be gone on from.
FIXED_SETTINGS = frozenset({"optimizer", "ema_decay"})


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is meant to become.

    Attributes:
        kind: "vqvae-run" or "prior-run".
        stage: the command, such as "train-vqvae".
        version: the stage's algorithm version.
        settings: settings dataclass as the caller gave it; enters the record.
        resolved: the same with nothing left to the data; enters `config.toml` and is compared on resume.
        inputs: fingerprints of the inputs, by role.
        harmless: names under `training` that may change when a run is resumed.
        facts: plain data that loading the run needs beside the config (names of classes, ...).
    """

    kind: str
    stage: str
    version: int
    settings: Any
    resolved: Any
    inputs: Mapping[str, str]
    harmless: frozenset[str]
    facts: Mapping[str, Any]


class RunDirectory:
    """An open run directory. In worker processes that do not write, the writing methods do nothing."""

    def __init__(self, path: Path, plan: RunPlan, *, is_writer: bool, record: Provenance | None, started: str) -> None:
        self.path = path
        self.plan = plan
        self.record = record  # set when the run is finished and nothing is left to do
        self.is_writer = is_writer
        self.started = started
        self.config_changes: list[dict[str, Any]] = []  # {"step", "changes"}, oldest first

    def latest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from, None when there is none yet."""
        return find_checkpoint(self.path) if list_checkpoints(self.path) else None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        if not self.is_writer:
            return
        text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        path = self.path / METRICS_NAME
        try:
            with open(path, "ab") as stream:
                stream.write(text.encode())
        except OSError as error:
            raise describe_os_error(error, f"writing {path}") from error

    def write_picture(self, step: int, png: bytes) -> None:
        """Keep a picture of what the model does at a step."""
        if self.is_writer:
            write_bytes(self.path / PICTURES_NAME / f"step-{step:08d}.png", png)

    def save(
        self,
        step: int,
        weights: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int,
        best: Mapping[str, Any] | None,
    ) -> None:
        """Write a checkpoint; the log up to it is on the device first."""
        if not self.is_writer:
            return
        metrics = self.path / METRICS_NAME
        if metrics.exists():
            with open(metrics, "rb") as stream:
                os.fsync(stream.fileno())
        save_checkpoint(self.path, step, weights, state, keep=keep, best=best)

    def set_status(self, status: str, step: int, max_steps: int) -> None:
        """Tell readers how far the run is."""
        if not self.is_writer:
            return
        plan = self.plan
        facts = {
            "kind": plan.kind,
            "status": status,
            "step": step,
            "max_steps": max_steps,
            "started": self.started,
            "updated": _now(),
            "stage": plan.stage,
            "version": plan.version,
            "settings": to_plain(plan.resolved),
            "inputs": dict(plan.inputs),
            "facts": dict(plan.facts),
            **({"config_changes": self.config_changes} if self.config_changes else {}),
        }
        write_json(self.path / RUN_NAME, facts)

    def finish(
        self,
        weights: Mapping[str, Mapping[str, Tensor]],
        counts: Mapping[str, Any],
        *,
        steps: int,
        max_steps: int,
        seconds: float,
    ) -> Provenance:
        """Write the record: from here on the run is finished."""
        plan = self.plan
        checkpoint = find_checkpoint(self.path)
        # Without the optimizer's state a finished run can still be used, so that file may be missing.
        files = [file for file in _files_of(checkpoint) if file != STATE_NAME]
        names = [CONFIG_NAME, *(f"{CHECKPOINTS_NAME}/{checkpoint.path.name}/{file}" for file in files)]
        record = Provenance(
            kind=plan.kind,
            stage=plan.stage,
            version=plan.version,
            settings=to_plain(plan.settings),
            inputs=dict(plan.inputs),
            fingerprint=weights_digest(weights),
            outputs={name: (self.path / name).stat().st_size for name in names},
            counts={**counts, **({"config_changes": self.config_changes} if self.config_changes else {})},
            seconds=round(seconds, 3),
            finished=_now(),
        )
        self.set_status("finished", steps, max_steps)
        if self.is_writer:
            write_record(self.path, record)
        return record


@contextmanager
def open_run(
    path: Path,
    plan: RunPlan,
    *,
    max_steps: int,
    overwrite: bool = False,
    is_writer: bool = True,
    allow_config_change: bool = False,
    progress: Progress = SILENT,
) -> Iterator[RunDirectory]:
    """Create or reopen a run directory and own it until the block ends.

    What a killed run left behind after its last checkpoint is removed: half-written files and lines of the log.

    Args:
        max_steps: how long the run is meant to be; more than before makes a finished run go on.
        overwrite: start again from nothing, whatever is there.
        is_writer: False in the worker processes that only read; call it once the writer is inside.
        allow_config_change: go on although settings of the training changed; `run.json` and the record list them.

    Raises:
        ArtefactError: `path` holds something else.
        CheckpointError: it is a run of another kind, or a finished one whose files were lost.
        ChangedRunError: its settings or inputs are not those of the plan.
        BusyError: another process is training it.
    """
    with ExitStack() as stack:
        if not is_writer:
            record = read_run_record(path)
            yield RunDirectory(path, plan, is_writer=False, record=record, started="")
            return
        _refuse_strangers(path, plan.kind)
        stack.enter_context(exclusive_lock(path))
        if overwrite:
            _clear(path)
        run = RunDirectory(path, plan, is_writer=True, record=None, started=_now())
        if (path / RUN_NAME).exists():
            _reopen(run, max_steps, allow_config_change, progress)
        else:
            run.set_status("running", 0, max_steps)
            write_bytes(path / CONFIG_NAME, to_toml(plan.resolved).encode())
        yield run


def save_model_run(
    run: Path,
    kind: str,
    model: nn.Module,
    settings: Any,
    *,
    stage: str,
    version: int,
    counts: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Provenance:
    """Make a finished run directory from a model that was not trained here, such as an imported one.

    Args:
        kind: "vqvae-run" or "prior-run".
        settings: the run settings (`VQVAERunSettings`, `PriorRunSettings`) whose `model` describes it.
        counts: facts for the record; a VQ-VAE needs "tokenizer".

    Raises:
        ArtefactError: the directory holds something else, or a run and `overwrite` is not given.
    """
    if (run / RUN_NAME).exists() and not overwrite:
        raise ArtefactError(f"{run} holds a run already; choose another directory or give --overwrite")
    plan = RunPlan(
        kind=kind,
        stage=stage,
        version=version,
        settings=settings,
        resolved=settings,
        inputs=dict(inputs or {}),
        harmless=frozenset(),
        facts={},
    )
    weights = {MODEL_NAME: dict(model.state_dict())}
    counts = {**counts, "steps": 0}
    with open_run(run, plan, max_steps=0, overwrite=overwrite) as opened:
        opened.save(0, weights, {"step": 0}, keep=1, best=None)
        return opened.finish(weights, counts, steps=0, max_steps=0, seconds=0.0)


def _reopen(run: RunDirectory, max_steps: int, allow_config_change: bool, progress: Progress) -> None:
    path, plan = run.path, run.plan
    state = read_run(path)
    run.config_changes = list(state.get("config_changes", []))
    changes = _compare(path, plan, state, allow_config_change)
    run.started = str(state.get("started", ""))
    checkpoint = run.latest_checkpoint()
    step = checkpoint.step if checkpoint is not None else 0
    if max_steps < step:
        raise ChangedRunError(
            f"training.max_steps={max_steps} but {path} has taken {step} steps already; "
            "ask for at least as many, or train again with --overwrite"
        )
    record = read_run_record(path)
    if record is not None:
        lost = missing_outputs(path, record)
        if lost and checkpoint is None:
            raise CheckpointError(
                f"{path} is finished but {lost[0]} is missing; put it back, or train with --overwrite"
            )
        if lost and checkpoint is not None:  # what is left is good, or named as damaged
            verify_checkpoint(checkpoint)
            record = None
    is_done = max_steps == step or (
        record is not None and bool(record.counts.get("stopped_early")) and _ends_alike(plan, state, max_steps)
    )
    if changes and is_done:
        raise ChangedRunError(
            f"{path} has taken its {step} steps with other settings ({'; '.join(changes)}); raise training.max_steps "
            "to go on with these, or train into a new directory"
        )
    if changes:
        run.config_changes.append({"step": step, "changes": changes})
        progress.say(f"{path} goes on from step {step} with other settings: {'; '.join(changes)}")
    if record is not None and is_done:
        if record.settings != to_plain(plan.settings):  # harmless changes only: the record follows
            record = replace(record, settings=to_plain(plan.settings))
            write_bytes(path / CONFIG_NAME, to_toml(plan.resolved).encode())
            record = replace(record, outputs={**record.outputs, CONFIG_NAME: (path / CONFIG_NAME).stat().st_size})
            run.set_status("finished", step, max_steps)
            write_record(path, record)
        run.record = record
        return
    (path / RECORD_NAME).unlink(missing_ok=True)
    shutil.rmtree(path / BREAKDOWN_NAME, ignore_errors=True)
    drop_checkpoints_after(path, step)
    _cut_log(path / METRICS_NAME, step, keep_final=max_steps == step)
    write_bytes(path / CONFIG_NAME, to_toml(plan.resolved).encode())
    run.set_status("running", step, max_steps)


def _ends_alike(plan: RunPlan, state: Mapping[str, Any], max_steps: int) -> bool:
    """Whether a run that patience ended would end there again."""
    patience = to_plain(plan.resolved)["training"].get("patience")
    return bool(state["max_steps"] == max_steps and state["settings"]["training"].get("patience") == patience)


def _compare(path: Path, plan: RunPlan, state: Mapping[str, Any], allow_config_change: bool) -> list[str]:
    """Refuse to go on with other settings or inputs than the run has had so far.

    Returns:
        the changes of settings that were allowed.
    """
    for role, digest in plan.inputs.items():
        before = state["inputs"].get(role, "")
        if before != digest:
            raise ChangedRunError(
                f"{path} was started on {role} {short(before)} but these are {short(digest)}; "
                "give the same ones, train into a new directory, or start again with --overwrite"
            )

    def without_harmless(settings: Mapping[str, Any]) -> dict[str, Any]:
        training = {key: value for key, value in settings["training"].items() if key not in plan.harmless}
        return {**settings, "training": training}

    old = Provenance(
        kind=plan.kind,
        stage=plan.stage,
        version=state["version"],
        settings=without_harmless(state["settings"]),
        inputs={},
        fingerprint="",
    )
    changes = differences(old, plan.version, without_harmless(to_plain(plan.resolved)), {})
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
    allowed = "" if fixed else "go on with these by --allow-config-change, "
    raise ChangedRunError(
        f"{path} was started with other settings ({'; '.join(changes)}); "
        f"use those, {allowed}train into a new directory, or start again with --overwrite"
    )


def _is_fixed(change: str) -> bool:
    name = change.removeprefix("setting ").partition(":")[0]
    return not name.startswith("training.") or name.removeprefix("training.") in FIXED_SETTINGS


def _refuse_strangers(path: Path, kind: str) -> None:
    if path.exists() and not path.is_dir():
        raise ArtefactError(f"{path} is a file; a run needs a directory of its own")
    if not path.is_dir():
        return
    if (path / RUN_NAME).exists():
        found = read_run(path)["kind"]
        if found != kind:
            raise CheckpointError(f"{path} is a {found}, not a {kind}; choose another --out")
        return
    others = sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
    if others:
        raise ArtefactError(
            f"{path} holds other things ({', '.join(others[:3])}) and is not a run directory; choose another --out"
        )


def _clear(path: Path) -> None:
    for name in OUR_NAMES:
        item = path / name
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)


def _cut_log(path: Path, step: int, keep_final: bool) -> None:
    """Drop the lines after a step, a half-written last line, and lines that only an earlier end caused."""
    if not path.exists():
        return
    kept = []
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if text.endswith(b"\n") and line["step"] <= step and (keep_final or not line.get("final")):
            kept.append(text)
    write_bytes(path, b"".join(kept))


def _files_of(checkpoint: Checkpoint) -> list[str]:
    return [FILES_NAME, *sorted(read_json(checkpoint.path / FILES_NAME)["files"])]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
