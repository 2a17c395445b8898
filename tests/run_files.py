"""Changes to the sealed files of a run directory, as its writer would make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.store import CodeClip
from lvt_pipeline.provenance import Provenance, write_record
from lvt_pipeline.runs.layout import RUN_NAME, TRAINED_CLIPS_NAME, digest_of, read_sealed, write_sealed
from lvt_pipeline.runs.trained_clips import list_trained_clips


def edit_run(run: Path, **changes: Any) -> None:
    """Replace some facts in `run.json`."""
    write_sealed(run / RUN_NAME, {**read_sealed(run / RUN_NAME), **changes})


def replace_record(run: Path, record: Provenance) -> None:
    """Give a finished run another record."""
    write_record(run, record)
    edit_run(run, record=digest_of(record.to_json()))


def set_trained_clips(run: Path, clips: Iterable[CodeClip]) -> None:
    """Make a run one that was trained on these clips."""
    content = list_trained_clips(clips)
    (run / TRAINED_CLIPS_NAME).write_bytes(content)
    edit_run(run, digests={TRAINED_CLIPS_NAME: hashlib.sha256(content).hexdigest()})


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The log of a run without times and memory, which differ between equal runs."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not is_timing(name)} for line in lines]


def is_timing(name: str) -> bool:
    """Whether a field of a metrics line reports speed or memory, so that it differs between equal runs."""
    return name in ("seconds", "data_wait_share", "memory_bytes") or name.endswith("_per_second")
