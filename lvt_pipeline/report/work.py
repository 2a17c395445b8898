"""A work directory as pages and figures read it: its artefacts, opened once, what made them, and how training went."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.config import flat
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.evaluation.results import is_number, read_results
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.progress import format_seconds
from lvt_pipeline.provenance import Provenance, finished_record, short
from lvt_pipeline.report.numbers import format_fact
from lvt_pipeline.report.parts import Part
from lvt_pipeline.report.plots.engine import Series
from lvt_pipeline.runs.compatibility import require_own_tokenizer
from lvt_pipeline.runs.layout import METRICS_NAME
from lvt_pipeline.runs.read import load_vqvae, precision_of, read_run
from lvt_pipeline.storage import json_log
from lvt_pipeline.workspace.layout import ARTEFACTS, BY_ROLE, Artefact, Layout
from lvt_pipeline.workspace.stages import StageState
from lvt_pipeline.workspace.states import states_by_role

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE

TRAINING_LOSS_TO_MSE = 1 / 4  # the training loss is in [-1, 1], where a squared difference is four times as large
SHOWN = tuple(artefact for artefact in ARTEFACTS if artefact.tab)


class MissingPart(LVTError):
    """A part of the work directory does not exist yet; `command` makes it."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True)
class WorkDir:
    """A work directory. What is opened stays open."""

    path: Path
    device: str = "auto"

    @cached_property
    def layout(self) -> Layout:
        """The paths of its artefacts, whether they exist or not."""
        return Layout(self.path)

    @cached_property
    def records(self) -> dict[str, Provenance | None]:
        """The record of each artefact, None while it is missing, unfinished or unreadable."""
        return {artefact.role: finished_record(self.layout[artefact.role]) for artefact in SHOWN}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the finished artefacts, by role: the inputs of a report and of figures."""
        return {role: record.fingerprint for role, record in self.records.items() if record is not None}

    @property
    def artefacts(self) -> list[Path]:
        """The paths of everything that is shown, whether it exists or not."""
        return [self.layout[artefact.role] for artefact in SHOWN]

    @cached_property
    def states(self) -> dict[str, StageState]:
        """The state of each artefact, as `lvt status` reports it; empty where `lvt run` has left no settings."""
        try:
            return states_by_role(self.path) if self.layout.settings.exists() else {}
        except ConfigError:
            return {}

    def require(self, role: str) -> Path:
        """Path of an artefact that must exist.

        Raises:
            MissingPart: it does not.
        """
        path = self.layout[role]
        if not path.exists():
            raise MissingPart(f"{BY_ROLE[role].path} does not exist yet.", self.layout.command(role))
        return path

    def require_artefacts(self) -> None:
        """Refuse a folder in which no stage has made anything.

        Raises:
            ArtefactError: it is one, or does not exist.
        """
        if not self.path.exists():
            raise ArtefactError(f"{self.path} does not exist; give a work directory that lvt run made")
        if not any(path.exists() for path in self.artefacts):
            names = ", ".join(artefact.path for artefact in SHOWN)
            raise ArtefactError(f"{self.path} is not a work directory: it has none of {names}")

    @cached_property
    def frames(self) -> FrameShards:
        """The frames."""
        return FrameShards(self.require("frames"))

    @cached_property
    def codes(self) -> CodeStore:
        """The code store."""
        return open_codes(self.require("codes"))

    @cached_property
    def samples(self) -> CodeStore:
        """The samples."""
        return open_codes(self.require("samples"))

    @cached_property
    def tokenizer(self) -> VQVAE:
        """The tokenizer."""
        return load_vqvae(self.require("vqvae"), device=self.device)

    def require_tokenizer_of(self, store: CodeStore) -> VQVAE:
        """The tokenizer, if it made the codes of a store.

        Raises:
            MissingPart: it does not exist yet.
            MismatchError: it is another one.
        """
        tokenizer = self.tokenizer
        require_own_tokenizer(store, self.layout["vqvae"], tokenizer)
        return tokenizer

    @cached_property
    def results(self) -> dict[str, Any]:
        """What `lvt evaluate` wrote.

        Raises:
            ArtefactError: it is damaged or of another version.
        """
        return read_results(self.require("evaluation"))

    def metrics(self, role: str) -> RunLog:
        """What the training of a run logged."""
        return read_metrics(self.layout[role] / METRICS_NAME)


# What made the artefacts -------------------------------------------------------------------------------------------


def stage_records(work: WorkDir) -> list[Part]:
    """What made each artefact, and whether that is still current: done, stale, unfinished or missing."""
    return [_stage_record(work, artefact) for artefact in SHOWN]


def _stage_record(work: WorkDir, artefact: Artefact) -> Part:
    record = work.records[artefact.role]
    part: Part = {
        "role": artefact.role,
        "title": artefact.title,
        "path": artefact.path,
        "tab": artefact.tab,
        "command": work.layout.command(artefact.role),
        "took": format_seconds(record.seconds) if record is not None and record.seconds else "",
    }
    if record is None:
        exists = work.layout[artefact.role].exists()
        reason = _progress_of(work.layout[artefact.role]) if exists else "not made yet"
        return part | {"state": "unfinished" if exists else "missing", "reason": reason}
    inputs = [(name, short(value), _is_current(work, artefact, name, value)) for name, value in record.inputs.items()]
    stale = [name for name, _, is_current in inputs if not is_current]
    reason = f"made from another {', '.join(stale)}" if stale else ""
    state = work.states.get(artefact.role)  # what lvt status reports
    return part | {
        "state": state.state if state is not None else "stale" if stale else "done",
        "reason": "; ".join(state.reasons) if state is not None else reason,
        "facts": _record_facts(record),
        "inputs": inputs,
        "settings": settings_text(record.settings),
    }


def _is_current(work: WorkDir, artefact: Artefact, name: str, value: str) -> bool:
    """Whether an input of a record is what is in the directory now; unknown inputs count as current."""
    source = work.records.get(artefact.inputs.get(name, name))
    if source is None:
        return True
    if name == "tokenizer":
        return precision_of(value, str(source.counts.get("tokenizer", value))) is not None
    return value == source.fingerprint


def _record_facts(record: Provenance) -> list[tuple[str, str]]:
    facts = [
        ("Fingerprint", record.fingerprint),
        ("Recipe", record.recipe),
        ("Made by", f"lvt {record.stage}, algorithm version {record.version}, lvt {record.lvt_version}"),
        ("Command", shlex.join(map(str, record.command))),
        ("Took", format_seconds(record.seconds)),
        ("Finished", record.finished),
    ]
    simple = {key: value for key, value in record.counts.items() if isinstance(value, (int, float, str))}
    facts += [(key.replace("_", " ").capitalize(), format_fact(value)) for key, value in simple.items()]
    return [(name, value) for name, value in facts if value]


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as `name = value` lines, nested names with dots; values as JSON, which TOML writes the same way."""
    return "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in flat(settings).items())


def _progress_of(path: Path) -> str:
    """How far an artefact without a record has come."""
    try:
        state = read_run(path)
        return f"step {state['step']:,} of {state['max_steps']:,} ({state['status']}); run the same command to resume"
    except LVTError:
        return "an earlier run did not finish; run the same command to resume"


# How training went -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunLog:
    """The log of a run: lines of training batches and of validation, each with rising steps."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def curve(self, split: str, name: str, key: str, factor: float = 1.0, style: int | None = None) -> Series:
        """What was logged under a key, by step; a list of numbers (one per codebook) counts as its mean.

        Args:
            split: "train" or "val".
            name, style: of the series.
        """
        lines = self.training if split == "train" else self.validation
        points = [(line["step"], value) for line in lines if (value := _number(line.get(key))) is not None]
        return Series(name, [step for step, _ in points], [value * factor for _, value in points], style)

    def main_curves(self, role: str) -> tuple[Series, Series]:
        """The MSE of the tokenizer, in [0, 1], or the bits per code of the prior, in training and in validation."""
        if role == "vqvae":
            training = self.curve("train", "training", "reconstruction_loss", TRAINING_LOSS_TO_MSE)
            return training, self.curve("val", "validation", "mse")
        key = "bits_per_dim"
        return self.curve("train", "training", key), self.curve("val", "validation", key)

    def codebook_curves(self, key: str, most: int) -> list[Series]:
        """A list that validation logged under a key, as one series for each codebook."""
        lines = [line for line in self.validation if isinstance(line.get(key), list)]
        books = max((len(line[key]) for line in lines), default=0)
        result = []
        for book in range(min(books, most)):
            known = [line for line in lines if all(map(is_number, line[key][book : book + 1] or [None]))]
            name = f"codebook {book}" if books > 1 else key
            result.append(Series(name, [line["step"] for line in known], [line[key][book] for line in known]))
        return result


def read_metrics(path: Path) -> RunLog:
    """The log of a run; empty when there is none.

    A log that a crash left behind may end in half a line, and a resumed run may have written a step twice: lines that
    make no sense are skipped, and of a repeated stretch the later one counts.
    """
    by_split: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    for line in json_log(data):
        lines = by_split.get(str(line.get("split")))
        if lines is None or type(line.get("step")) is not int:
            continue
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return RunLog(by_split["train"], by_split["val"])


def _number(value: Any) -> float | None:
    """A finite number, or the mean of a list of finite numbers; None for anything else."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(is_number(number) for number in numbers):
        return None
    return float(sum(numbers) / len(numbers))
