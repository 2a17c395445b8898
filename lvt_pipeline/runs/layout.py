"""What a run directory holds, and the seal on the files that state facts about it.

    run/config.toml          the resolved settings, as `--config` reads them
    run/run.json             kind, status (running, stopped, failed, finished), step, settings, inputs; sealed
    run/metrics.jsonl        one JSON object a line: the metrics of training and validation, see `runs.metrics_log`
    run/pictures/step-*.png  what the model could do at that step
    run/checkpoints/         see `runs.checkpoints`
    run/trained_clips.txt    the clips that a prior is trained on, see `runs.trained_clips`
    run/breakdown/           what a training broke down with, see `training.monitors`
    run/tensorboard/         the metrics for TensorBoard, when asked for
    run/provenance.json      the record, written last: the run is finished

Guarantees follow from these files (which clips were used for training, which codes fit a decoder), so an edit by hand
must not pass. `run.json` and the small files of `checkpoints/` carry a seal: a digest of their content. `run.json`
holds the digests of the record and of `trained_clips.txt`, and `config.toml` is compared with the settings in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import CheckpointError
from lvt_pipeline.provenance import RECORD_NAME, fingerprint
from lvt_pipeline.storage import read_json, write_json

RUN_NAME = "run.json"
CONFIG_NAME = "config.toml"
METRICS_NAME = "metrics.jsonl"
DAMAGED_NAME = "metrics.damaged"
PICTURES_NAME = "pictures"
CHECKPOINTS_NAME = "checkpoints"
TRAINED_CLIPS_NAME = "trained_clips.txt"
BREAKDOWN_NAME = "breakdown"
TENSORBOARD_NAME = "tensorboard"
OUR_NAMES = (
    *(RECORD_NAME, CHECKPOINTS_NAME, METRICS_NAME, DAMAGED_NAME, PICTURES_NAME, BREAKDOWN_NAME, TENSORBOARD_NAME),
    *(TRAINED_CLIPS_NAME, CONFIG_NAME, RUN_NAME),
)
SEAL = "seal"


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Replace `path` by facts (plain data) as JSON with a digest of themselves."""
    write_json(path, {**facts, SEAL: fingerprint(facts)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts that `write_sealed` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or was changed by hand.
    """
    facts = read_json(path, error=CheckpointError)
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is damaged: it holds no table of facts")
    seal = facts.pop(SEAL, None)
    if seal != digest_of(facts):
        raise CheckpointError(f"{path} is damaged or was changed by hand: its content does not match its seal")
    return facts


def digest_of(facts: Any) -> str:
    """Fingerprint of plain data that was read from a file, "" where it holds something that no file of ours holds."""
    try:
        return fingerprint(facts)
    except (TypeError, ValueError, RecursionError):
        return ""
