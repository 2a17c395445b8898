"""The writing side of a run directory: one writer, and a description that always agrees with its files.

`runs.layout` lists the files; `runs.reopening` decides whether an existing run can be resumed; the reading side is
`runs.read`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lvt_pipeline.config import to_plain, to_toml
from lvt_pipeline.errors import ArtefactError, CheckpointError
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.provenance import Provenance, now, write_record
from lvt_pipeline.runs.checkpoints import (
    FILES_NAME,
    MODEL_NAME,
    STATE_NAME,
    Checkpoint,
    files_of,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
    weights_digest,
)
from lvt_pipeline.runs.layout import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    METRICS_NAME,
    OUR_NAMES,
    PICTURES_NAME,
    RUN_NAME,
    digest_of,
    write_sealed,
)
from lvt_pipeline.runs.metrics_log import append_line, flush_log
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.storage import exclusive_lock, remove_leftovers, write_bytes


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is meant to become.

    Attributes:
        job: kind ("vqvae-run" or "prior-run"), command and algorithm version.
        settings: settings dataclass as the caller gave it; enters the record.
        resolved: the same with nothing left to the data; enters `config.toml` and is compared on resume.
        inputs: fingerprints of the inputs, by role.
        max_steps: how long the run is meant to be.
        harmless: names under `training` that may change when a run is resumed.
        facts: plain data that loading the run needs in addition to the settings (names of classes, ...).
    """

    job: Job
    settings: Any
    resolved: Any
    inputs: Mapping[str, str]
    max_steps: int
    harmless: frozenset[str]
    facts: Mapping[str, Any]


class RunDirectory:
    """An open run directory. In the ranks that do not write, the writing methods do nothing.

    Attributes:
        record: of a finished run with nothing left to do, else None.
        config_changes: {"step", "changes"} of every resumed training with other settings, oldest first.
        digests: of files that guarantees depend on, by name.
        fresh_weights: after a warm start, names of the weights that did not come from the earlier run.
    """

    def __init__(self, path: Path, plan: RunPlan, *, is_writer: bool, record: Provenance | None, started: str) -> None:
        self.path = path
        self.plan = plan
        self.record = record
        self.is_writer = is_writer
        self.started = started
        self.config_changes: list[dict[str, Any]] = []
        self.digests: dict[str, str] = {}
        self.fresh_weights: list[str] = []
        self._state = ("running", 0)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from, None when there is none yet."""
        return find_checkpoint(self.path) if list_checkpoints(self.path) else None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        if self.is_writer:
            append_line(self.path / METRICS_NAME, line)

    def write_picture(self, step: int, png: bytes) -> None:
        """Keep a picture of what the model does at a step."""
        if self.is_writer:
            write_bytes(self.path / PICTURES_NAME / f"step-{step:08d}.png", png)

    def write_guarded(self, name: str, content: bytes) -> None:
        """Write a file that guarantees depend on: `run.json` holds its digest from now on."""
        if not self.is_writer:
            return
        write_bytes(self.path / name, content)
        self.digests[name] = hashlib.sha256(content).hexdigest()
        self.set_status(*self._state)

    def set_start(self, fresh_weights: list[str]) -> None:
        """Keep in `run.json` which weights did not come from the run that this one starts from."""
        self.fresh_weights = fresh_weights
        self.set_status(*self._state)

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
        if self.is_writer:
            flush_log(self.path / METRICS_NAME)
            save_checkpoint(self.path, step, weights, state, keep=keep, best=best)

    def set_status(self, status: str, step: int, record: Provenance | None = None) -> None:
        """Write `run.json`: how far the run is.

        Args:
            record: of a finished run.
        """
        self._state = (status, step)
        if not self.is_writer:
            return
        plan = self.plan
        facts = {
            "kind": plan.job.kind,
            "status": status,
            "step": step,
            "max_steps": plan.max_steps,
            "started": self.started,
            "updated": now(),
            "stage": plan.job.stage,
            "version": plan.job.version,
            "settings": to_plain(plan.resolved),
            "inputs": dict(plan.inputs),
            "facts": dict(plan.facts),
            "digests": dict(self.digests),
            **({"config_changes": self.config_changes} if self.config_changes else {}),
            **({"fresh_weights": self.fresh_weights} if "start" in plan.inputs else {}),
            **({"record": digest_of(record.to_json())} if record is not None else {}),
        }
        write_sealed(self.path / RUN_NAME, facts)

    def write_config(self) -> None:
        """Write `config.toml`."""
        write_bytes(self.path / CONFIG_NAME, to_toml(self.plan.resolved).encode())

    def finish(
        self, weights: Mapping[str, Mapping[str, Tensor]], counts: Mapping[str, Any], *, steps: int, seconds: float
    ) -> Provenance:
        """Write the record: from here on the run is finished."""
        plan = self.plan
        checkpoint = find_checkpoint(self.path)
        # Without the optimizer's state a finished run can still be used, so that file may be missing.
        files = [FILES_NAME, *sorted(file for file in files_of(checkpoint) if file != STATE_NAME)]
        names = [CONFIG_NAME, *self.digests, *(f"{CHECKPOINTS_NAME}/{checkpoint.path.name}/{file}" for file in files)]
        record = plan.job.recorder(plan.settings, plan.inputs, Clock(seconds)).new_record(
            weights_digest(weights),
            {name: (self.path / name).stat().st_size for name in names} if self.is_writer else {},
            {**counts, **({"config_changes": self.config_changes} if self.config_changes else {})},
        )
        self.write_finished(record, steps)
        return record

    def write_finished(self, record: Provenance, steps: int) -> None:
        """Write `run.json` and the record of a finished run, in this order: the record is what finishes it."""
        self.set_status("finished", steps, record)
        if self.is_writer:
            write_record(self.path, record)


@contextmanager
def owned_directory(path: Path, kind: str, *, overwrite: bool) -> Iterator[None]:
    """Own a run directory until the block ends. What a killed run left half-written is removed.

    Args:
        overwrite: empty it first, whatever run is there.

    Raises:
        ArtefactError: `path` holds something else.
        CheckpointError: it is a run of another kind.
        BusyError: another process is training it.
    """
    _require_run_or_nothing(path, kind, overwrite=overwrite)
    with exclusive_lock(path):
        if overwrite:
            _clear(path)
        for folder in (path, path / CHECKPOINTS_NAME, path / PICTURES_NAME):
            remove_leftovers(folder)
        yield


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
        job=Job(stage=stage, version=version, kind=kind),
        settings=settings,
        resolved=settings,
        inputs=dict(inputs or {}),
        max_steps=0,
        harmless=frozenset(),
        facts={"class_names": list(names)} if (names := getattr(model, "class_names", ())) else {},
    )
    weights = {MODEL_NAME: dict(model.state_dict())}
    with owned_directory(run, kind, overwrite=overwrite):
        opened = RunDirectory(run, plan, is_writer=True, record=None, started=now())
        opened.set_status("running", 0)
        opened.write_config()
        opened.save(0, weights, {"step": 0}, keep=1, best=None)
        return opened.finish(weights, {**counts, "steps": 0}, steps=0, seconds=0.0)


def _require_run_or_nothing(path: Path, kind: str, *, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ArtefactError(f"{path} is a file; a run needs a directory of its own")
    if not path.is_dir():
        return
    if (path / RUN_NAME).exists():
        try:
            found = read_run(path)["kind"]
        except CheckpointError:
            if overwrite:
                return
            raise
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
