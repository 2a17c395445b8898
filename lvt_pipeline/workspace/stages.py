"""What each stage of a work directory would be made of now, and the state that follows: the one definition of stale.

A stage is **done**, **missing**, **unfinished**, **waiting** for its input, **stale** (settings or inputs differ: it is
made again), or, for trained networks only, **outdated**: its settings are the same but its data have changed, so it is
kept and used. An input that is not there, such as deleted frames, is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, CheckpointError
from lvt_pipeline.evaluation import evaluate as evaluation
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs import decode, encode, sample
from lvt_pipeline.jobs.ingest import settings as ingest
from lvt_pipeline.manifest import manifest
from lvt_pipeline.provenance import Provenance, changes, differences, finished_record, missing_outputs
from lvt_pipeline.runs.read import in_precision, read_run
from lvt_pipeline.training import prior, vqvae
from lvt_pipeline.workspace.clip_changes import changes_of_codes, changes_of_frames, changes_since_training
from lvt_pipeline.workspace.layout import BY_ROLE, REPORT_VERSION

VERSIONS = {
    "manifest": manifest.VERSION,
    "frames": ingest.VERSION,
    "vqvae": vqvae.VERSION,
    "codes": encode.VERSION,
    "prior": prior.VERSION,
    "samples": sample.VERSION,
    "videos": decode.VERSION,
    "evaluation": evaluation.VERSION,
    "report": REPORT_VERSION,
}
OTHER_TOKENIZER = "it was trained on codes of another tokenizer"
State = Literal["done", "missing", "unfinished", "waiting", "stale", "outdated"]


@dataclass(frozen=True)
class StageState:
    """The state of a stage.

    Attributes:
        name: of the stage, such as "train-prior".
        reasons: why it is not done, one line each.
        record: of the finished output, if there is one.
        note: a fact worth knowing about a stage that is done, such as that its pixels were deleted.
        fits: whether the weights of a network can be used on its data, so that it can be refined.
    """

    name: str
    output: Path
    state: State
    reasons: list[str]
    record: Provenance | None
    note: str = ""
    fits: bool = True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage would be made of now.

    Attributes:
        role: of its output, as in `layout.ARTEFACTS`.
        name: the command, and with several outputs of one kind also which one.
        version: of the algorithm today.
        settings: settings dataclass, or plain data.
        sources: where its inputs are, by their role in the record.
        extra_inputs: fingerprints of inputs that are not outputs of a stage.
        remembered: record that outlives a deleted output.
        remembered_sources: the same for inputs, by role.
    """

    role: str
    name: str
    output: Path
    version: int
    settings: Any
    sources: Mapping[str, Path] = field(default_factory=dict)
    extra_inputs: Callable[[], Mapping[str, str]] = dict
    remembered: Path | None = None
    remembered_sources: Mapping[str, Path] = field(default_factory=dict)

    @property
    def is_network(self) -> bool:
        """Whether it is trained, and so kept when only its data change."""
        return BY_ROLE[self.role].is_network

    @property
    def plain_settings(self) -> Mapping[str, Any]:
        """The settings as its record has them."""
        return self.settings if isinstance(self.settings, Mapping) else to_plain(self.settings)

    def inputs(self) -> dict[str, str | None]:
        """Fingerprint of each input by role; None for one that is missing or unfinished."""
        found: dict[str, str | None] = {}
        for role, path in self.sources.items():
            record = finished_record(path)
            if record is None and role in self.remembered_sources and not path.exists():
                record = finished_record(self.remembered_sources[role])
            if record is not None and role == "tokenizer":
                precision = self.plain_settings.get("precision")
                found[role] = in_precision(str(record.counts.get("tokenizer")), precision)
            else:
                found[role] = None if record is None else record.fingerprint
        return found | dict(self.extra_inputs())

    def state(self) -> StageState:
        """Compare the output with what would be made now."""
        inputs = self.inputs()
        record, note = self._record(inputs)
        if record is None:
            state, reason = self._unfinished(inputs)
            return StageState(self.name, self.output, state, [reason], None)
        known = {role: value for role, value in inputs.items() if value is not None}
        if self.is_network:  # an imported network names no data
            known = {role: value for role, value in known.items() if role in record.inputs}
        comparable = {role: value for role, value in record.inputs.items() if inputs.get(role, "") is not None}
        comparable.pop("start", None)  # the weights that a warm start began with: they are not data
        changed = [role for role in sorted({*known, *comparable}) if known.get(role) != comparable.get(role)]
        reasons = differences(record, self.version, self.plain_settings, record.inputs)
        if not note:
            reasons += [f"file {name} is missing or damaged" for name in missing_outputs(self.output, record)]
        if self.is_network:
            reasons += self._problems_of_run()
        data = [self._describe(role, record) for role in changed]
        is_outdated = self.is_network and data and not reasons
        state = "outdated" if is_outdated else "stale" if reasons or data else "done"
        return StageState(
            self.name, self.output, state, [*reasons, *data], record, note, OTHER_TOKENIZER not in reasons
        )

    def _record(self, inputs: Mapping[str, str | None]) -> tuple[Provenance | None, str]:
        """The record of the output, or the one that is remembered of an output that was deleted."""
        record = finished_record(self.output)
        if record is None and self.remembered is not None and not self.output.exists():
            record = finished_record(self.remembered)
            if record is not None:
                return record, f"{self.output} was deleted; it is made again when a stage needs it"
        return record, ""

    def _unfinished(self, inputs: Mapping[str, str | None]) -> tuple[State, str]:
        lacking = [str(path) for role, path in self.sources.items() if inputs[role] is None]
        if lacking and self.role != "report":
            return "waiting", f"its input is not there: {', '.join(lacking)}"
        if not self.output.exists():
            return "missing", "it does not exist yet"
        return "unfinished", "an earlier run was interrupted"

    def _problems_of_run(self) -> Iterator[str]:
        """What makes a trained network unusable: a lost description, data of another shape, another tokenizer."""
        try:
            facts = read_run(self.output).get("facts", {})
        except CheckpointError as error:
            yield str(error)
            return
        if not isinstance(facts, Mapping):
            return
        frames = finished_record(self.sources["frames"]) if "frames" in self.sources else None
        if frames is not None and facts.get("geometry") is not None:
            yield from changes("geometry.", facts["geometry"], frames.settings.get("geometry", {}))
        codes = finished_record(self.sources["codes"]) if "codes" in self.sources else None
        if codes is not None and codes.inputs.get("tokenizer") != facts.get("tokenizer"):
            yield OTHER_TOKENIZER

    def _describe(self, role: str, record: Provenance) -> str:
        """How an input has changed, in clips where both versions are known."""
        path = self.sources.get(role)
        if path is None:
            return f"{role} changed"
        changes = ""
        try:
            if self.role == "frames":
                changes = changes_of_frames(path, self.output)
            elif self.role == "codes" and role == "frames":
                changes = changes_of_codes(path, self.output)
            elif self.role == "vqvae":
                trained = record.counts.get("train_clips")
                now = len(FrameShards(path).split("train"))
                changes = "" if trained is None else f"{trained:,} train clips in the training, {now:,} today"
            elif self.role == "prior":
                changes = changes_since_training(path, record.inputs[role])
        except ArtefactError:
            pass  # what cannot be read is named by the stage that reads it
        return f"{BY_ROLE[role].title.lower() if role in BY_ROLE else role} changed" + (
            f": {changes}" if changes else ""
        )


def new_stage(role: str, output: Path, settings: Any, sources: Mapping[str, Path] | None = None, of: str = "") -> Stage:
    """A stage in its present version.

    Args:
        sources: where its inputs are, by their role in the record.
        of: which one, where a directory has several of a kind.
    """
    name = f"{BY_ROLE[role].stage} {of}".rstrip()
    return Stage(
        role=role, name=name, output=output, version=VERSIONS[role], settings=settings, sources=dict(sources or {})
    )
