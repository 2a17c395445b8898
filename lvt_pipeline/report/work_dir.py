"""A work directory as the report reads it: where its artefacts lie, what made them, and how their runs went."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.provenance import Provenance, read_record, short
from lvt_pipeline.report.wording import spoken_value
from lvt_pipeline.runs.read import load_vqvae, read_run
from lvt_pipeline.storage import json_log, read_json
from lvt_pipeline.workspace.layout import ARTEFACTS, Layout

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE

MADE = {artefact.role: artefact for artefact in ARTEFACTS if artefact.tab}  # everything but the report itself


class MissingPart(LVTError):
    """A part of the work directory is not there yet; `command` makes it."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True)
class WorkDir:
    """Where the artefacts of a work directory lie."""

    path: Path

    @property
    def artefacts(self) -> dict[str, Path]:
        """Path of each artefact, there or not, by role."""
        return {role: Layout(self.path)[role] for role in MADE}

    def require(self, role: str) -> Path:
        """Path of an artefact that must be there.

        Raises:
            MissingPart: it is not.
        """
        path = self.artefacts[role]
        if not path.exists():
            raise MissingPart(f"{MADE[role].path} does not exist yet.", self.command(role))
        return path

    def command(self, role: str) -> str:
        """The command that makes an artefact."""
        return Layout(self.path).command(role)

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def frames(self) -> FrameShards:
        """The frames, opened once."""
        if "frames" not in self._opened:
            self._opened["frames"] = FrameShards(self.require("frames"))
        shards: FrameShards = self._opened["frames"]
        return shards

    def store(self, role: str = "codes") -> CodeStore:
        """The code store or the samples, opened once."""
        if role not in self._opened:
            self._opened[role] = open_codes(self.require(role))
        store: CodeStore = self._opened[role]
        return store

    def tokenizer(self) -> VQVAE:
        """The tokenizer, loaded once."""
        if "vqvae" not in self._opened:
            self._opened["vqvae"] = load_vqvae(self.require("vqvae"))
        model: VQVAE = self._opened["vqvae"]
        return model

    def results(self) -> dict[str, Any]:
        """What `lvt evaluate` wrote.

        Raises:
            ArtefactError: it is damaged or of another version.
        """
        path = self.require("evaluation")
        results = read_json(path)
        if not isinstance(results, dict) or not {"baselines", "codes", "clips", "split"} <= results.keys():
            raise ArtefactError(f"{path.name} is not a result of this version's lvt evaluate; run it again")
        return results


def record_of(path: Path) -> Provenance | None:
    """The record of an artefact, None while it is missing, unfinished or unreadable."""
    try:
        return read_record(path)
    except ArtefactError:
        return None


@dataclass(frozen=True)
class StageRecord:
    """The provenance of one stage. `state` is done, stale, unfinished or missing."""

    role: str
    name: str
    path: str
    state: str
    reason: str
    command: str
    facts: Sequence[tuple[str, str]] = ()
    inputs: Sequence[tuple[str, str, bool]] = ()  # role, fingerprint, whether it is what is there now
    settings: str = ""
    took: str = ""


def stage_records(work: WorkDir) -> list[StageRecord]:
    """What made each artefact, and whether it still belongs to what is there."""
    records = {role: record_of(path) for role, path in work.artefacts.items()}
    now = {role: record.fingerprint for role, record in records.items() if record is not None}
    tokenizer = records["vqvae"].counts.get("tokenizer") if records["vqvae"] else None
    result = []
    for role, path in work.artefacts.items():
        record = records[role]
        base = StageRecord(role, MADE[role].title, MADE[role].path, "missing", "", work.command(role))
        if record is None:
            state = "unfinished" if path.exists() else "missing"
            reason = _how_far(path) if path.exists() else "not made yet"
            result.append(replace(base, state=state, reason=reason))
            continue
        inputs = []
        for name, value in record.inputs.items():
            current = tokenizer if name == "tokenizer" else now.get(MADE[role].inputs.get(name, name))
            inputs.append((name, short(value), current in (None, value)))
        stale = [name for name, _, is_current in inputs if not is_current]
        result.append(
            replace(
                base,
                state="stale" if stale else "done",
                reason=f"made from another {', '.join(stale)}" if stale else "",
                facts=_record_facts(record),
                inputs=inputs,
                settings=settings_text(record.settings),
                took=format_seconds(record.seconds) if record.seconds else "",
            )
        )
    return result


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation lines of a run's log, each with rising steps.

    A log that a crash left behind may end in half a line, and a resumed run may have written a step twice: half lines
    are skipped, and of a repeated stretch the later one counts.
    """
    by_split: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    try:
        data = path.read_bytes()
    except OSError:
        return [], []
    for line in json_log(data):
        try:
            lines, step = by_split[line["split"]], line["step"]
        except (ValueError, KeyError, TypeError):
            continue
        while lines and lines[-1]["step"] >= step:
            lines.pop()
        lines.append(line)
    return by_split["train"], by_split["val"]


def _record_facts(record: Provenance) -> list[tuple[str, str]]:
    facts = [
        ("Fingerprint", record.fingerprint),
        ("Recipe", record.recipe),
        ("Made by", f"lvt {record.stage}, algorithm version {record.version}, lvt {record.lvt_version}"),
        ("Command", shlex.join(record.command)),
        ("Took", format_seconds(record.seconds)),
        ("Finished", record.finished),
    ]
    simple = {key: value for key, value in record.counts.items() if isinstance(value, (int, float, str))}
    facts += [(key.replace("_", " ").capitalize(), spoken_value(value)) for key, value in simple.items()]
    return [(name, value) for name, value in facts if value]


def settings_text(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Settings as `name = value` lines, nested names with dots; values as JSON, which TOML writes the same way."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(settings_text(value, f"{prefix}{name}."))
        else:
            lines.append(f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(line for line in lines if line)


def _how_far(path: Path) -> str:
    """What an artefact without a record says about itself."""
    try:
        state = read_run(path)
        return f"step {state['step']:,} of {state['max_steps']:,} ({state['status']}); run the same command to go on"
    except LVTError:
        return "an earlier run did not finish; run the same command to go on"
