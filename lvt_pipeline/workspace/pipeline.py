"""All stages in order, in one work directory: what `lvt run`, `lvt status` and `lvt why` do.

    W/pipeline.toml   the resolved settings; `lvt run W/pipeline.toml` goes on with them
    W/manifest.jsonl  W/frames/  W/runs/vqvae/  W/data.zarr/  W/runs/prior/  W/samples.zarr/  W/videos/
    W/eval.json  W/report.html

A stage is done when its record names the same settings and the same inputs as we would use now and its files are there.
Inputs are named by what they contain, so a stage that is made again and comes out the same leaves what follows valid.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lvt_pipeline import config
from lvt_pipeline.errors import ArtefactError, ChangedRunError, CheckpointError, ConfigError, OverBudget, StoreError
from lvt_pipeline.evaluation import evaluate as evaluate_stage
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.jobs import decode as decoding
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs import sample as sampling
from lvt_pipeline.jobs.decode import decode_store
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.ingest import settings as ingest_stage
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import DecodeSettings, EncodeSettings, SampleSettings
from lvt_pipeline.manifest import manifest as manifest_stage
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, differences, missing_outputs, read_record
from lvt_pipeline.report import page as report_stage
from lvt_pipeline.report.page import write_report
from lvt_pipeline.runs.read import SPOKEN_KINDS, in_precision, read_run, read_tokenizer
from lvt_pipeline.settings import Settings, required_setting, setting
from lvt_pipeline.storage import exclusive_lock, write_bytes
from lvt_pipeline.training import prior as prior_training
from lvt_pipeline.training import vqvae as vqvae_training
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
from lvt_pipeline.training.vqvae import train_vqvae
from lvt_pipeline.video.locations import is_url
from lvt_pipeline.workspace import why as clip_chain

SETTINGS_NAME = "pipeline.toml"
STARTS = ("preset", "recipe")  # in the tables `vqvae` and `prior`: what their settings start from


@dataclass(frozen=True, kw_only=True)
class PipelineSettings(Settings):
    """Everything `pipeline.toml` may say. The tables `vqvae` and `prior` may start from a `preset` and a `recipe`."""

    videos: str = required_setting("Source of videos: a folder, pattern, list or URL, as for `lvt manifest build`.")
    media: str | None = setting(None, "Folder or URL of the videos that a list names.", unset="next to the list")
    work_dir: str = setting(".", "Work directory, relative to the file.")
    max_failures: float = setting(0.5, "Fraction of clips that may fail in ingest.", at_least=0, at_most=1)
    manifest: ManifestSettings = field(default_factory=ManifestSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    vqvae: VQVAERunSettings = field(default_factory=VQVAERunSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    prior: PriorRunSettings = field(default_factory=PriorRunSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.prior.model
        for name, frames in (("sample", self.sample.frames), ("evaluate", self.evaluate.frames)):
            if model.subscale[0] != 1 and frames != model.frames:  # better now than after the training
                raise ConfigError(f"{name}.frames={frames} must be prior.model.frames={model.frames}")


def load_settings(
    *,
    file: Path | None = None,
    videos: Path | str | None = None,
    media: Path | str | None = None,
    work_dir: Path | None = None,
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
) -> PipelineSettings:
    """Settings from a preset, a file, and options; later wins. Paths in a file are relative to the file.

    Without file and preset, the settings that `work_dir` was made with are the start; in a new one, the preset "tiny".

    Raises:
        ConfigError: no videos were named, or a setting is unknown.
    """
    if file is None and preset is None and work_dir is not None and (work_dir / SETTINGS_NAME).is_file():
        file = work_dir / SETTINGS_NAME  # what this directory was made with
    tables = config.read_toml(file) if file else {}
    preset = preset or tables.pop("preset", None) or ("tiny" if file is None else None)
    base = file.parent if file else Path()
    for name in ("videos", "media", "work_dir"):
        if isinstance(tables.get(name), str) and not is_url(tables[name]):
            tables[name] = str(base / tables[name])
    if file:
        tables.setdefault("work_dir", str(base))
    options = {"videos": videos, "media": media, "work_dir": work_dir}
    given = {name: str(path) for name, path in options.items() if path is not None}
    said = config.merge(config.read_preset("pipeline", preset) if preset else {}, tables)
    asked = config.merge(config.parse_overrides(overrides), given)
    merged = config.merge(said, asked)
    for family in ("vqvae", "prior"):
        layers = [layer.get(family, {}) for layer in (said, asked)]
        if all(isinstance(layer, Mapping) for layer in layers):
            merged[family] = _started(family, *layers)
    if "videos" not in merged:
        raise ConfigError('no videos were named; give --videos DIR, or videos = "DIR" in the pipeline file')
    return config.build(PipelineSettings, merged, where=str(file or "settings"))


def _started(family: str, said: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a family with its `preset` and `recipe` filled in.

    In a file the settings beside a recipe change it; one that is asked for on top replaces what the file says.
    """
    preset = asked.get("preset", said.get("preset"))
    start = config.read_preset(family, preset) if preset is not None else {}
    if "recipe" in said:
        start = config.with_recipe(family, start, said["recipe"], preset)
    table = config.merge(start, {key: value for key, value in said.items() if key not in STARTS})
    if "recipe" in asked:
        table = config.with_recipe(family, table, asked["recipe"], preset)
    return config.merge(table, {key: value for key, value in asked.items() if key not in STARTS})


State = Literal["done", "stale", "unfinished", "missing", "waiting"]


@dataclass(frozen=True)
class StageState:
    """Where a stage stands.

    Attributes:
        reasons: what makes it not done, one line each.
        record: of the finished output, if there is one.
    """

    name: str
    output: Path
    state: State
    reasons: list[str]
    record: Provenance | None


@dataclass(frozen=True)
class StageResult:
    """What a run did with a stage: made it, or found it done."""

    name: str
    output: Path
    was_made: bool
    reasons: list[str]
    record: Provenance
    seconds: float


@dataclass(frozen=True)
class Stage:
    """One stage of a work directory: what it would be made of now, and how to make it.

    Attributes:
        inputs: fingerprints by role; raises ArtefactError while an input is missing.
        make: makes or resumes the output. Its argument: whether an existing output was made of something else.
        always: made on every run, because it looks at the outside world (and is cheap when nothing changed).
    """

    name: str
    output: Path
    version: int
    settings: Mapping[str, Any]
    inputs: Callable[[], Mapping[str, str]]
    make: Callable[[bool], Provenance]
    always: bool = False

    def state(self) -> StageState:
        try:
            inputs = self.inputs()
        except ArtefactError as error:
            return StageState(self.name, self.output, "waiting", [f"its input is not there: {error}"], self._record())
        if not self.output.exists():
            return StageState(self.name, self.output, "missing", ["it does not exist yet"], None)
        record = self._record()
        if record is None:
            return StageState(self.name, self.output, "unfinished", ["an earlier run was interrupted"], None)
        reasons = differences(record, self.version, self.settings, inputs)
        reasons += [f"file {name} is missing or damaged" for name in missing_outputs(self.output, record)]
        if record.kind in SPOKEN_KINDS:
            try:
                read_run(self.output)
            except CheckpointError as error:
                reasons.append(str(error))
        return StageState(self.name, self.output, "stale" if reasons else "done", reasons, record)

    def run(self) -> StageResult:
        """Make the output unless it is done and unchanged."""
        started = time.monotonic()
        state = self.state()
        if state.record is not None and state.state == "done" and not self.always:
            record, was_made = state.record, False
        else:
            record = self.make(state.state == "stale")
            was_made = state.record is None or state.state != "done" or record != state.record
        return StageResult(self.name, self.output, was_made, state.reasons, record, time.monotonic() - started)

    def _record(self) -> Provenance | None:
        try:
            return read_record(self.output)
        except ArtefactError:
            return None


def check_failures(frames: StageResult, allowed: float) -> None:
    """Refuse to go on with frames of which too many clips are missing.

    Args:
        allowed: share of clips that may fail.

    Raises:
        OverBudget: more failed.
    """
    failed, clips = frames.record.counts["failures"], frames.record.counts["clips"]
    if failed > allowed * (failed + clips):
        raise OverBudget(
            f"{failed} of {failed + clips} clips failed and max_failures={allowed}; "
            f"mend those in {frames.output / 'failures.jsonl'}, or allow more with --set max_failures=0.9"
        )


class Pipeline:
    """The stages of one work directory."""

    def __init__(self, settings: PipelineSettings, *, device: str = "auto", num_workers: int | None = None) -> None:
        self.settings = settings
        self.work_dir = Path(settings.work_dir)
        self._device = device
        self._num_workers = num_workers

    def states(self) -> Iterator[StageState]:
        """Where every stage stands, in order, without changing anything. The videos are not looked at again."""
        for stage in self._stages(SILENT):
            yield stage.state()

    def run(
        self,
        *,
        progress: Progress = SILENT,
        on_start: Callable[[str], None] = lambda name: None,
        on_end: Callable[[StageResult], None] = lambda result: None,
    ) -> list[StageResult]:
        """Make what is missing or stale, in order.

        Args:
            on_start, on_end: called around each stage that is looked at.

        Raises:
            BusyError: another run works in this directory.
            LVTError: a stage failed; what was finished is kept.
        """
        results: list[StageResult] = []
        with exclusive_lock(self.work_dir):
            for stage in self._stages(progress):
                on_start(stage.name)
                result = stage.run()
                if not results:  # the videos are there: from here on the directory is what these settings say
                    self._save_settings()
                on_end(result)
                results.append(result)
                if stage.name == ingest_stage.STAGE:
                    check_failures(result, self.settings.max_failures)
        return results

    def _save_settings(self) -> None:
        # Absolute, so that the file means the same wherever it is read from; work_dir stays "here".
        text = config.to_toml(replace(_located(self.settings), work_dir="."))
        path = self.work_dir / SETTINGS_NAME
        saved = load_settings(file=path) if path.exists() else None
        # A file that means the same stays as its author wrote it.
        if saved is None or _located(saved) != _located(self.settings):
            write_bytes(path, text.encode())

    def _stages(self, progress: Progress) -> Iterator[Stage]:
        settings, work, device = self.settings, self.work_dir, self._device
        manifest, frames, vqvae = work / "manifest.jsonl", work / "frames", work / "runs" / "vqvae"
        codes, prior, samples = work / "data.zarr", work / "runs" / "prior", work / "samples.zarr"
        videos, results, report = work / "videos", work / "eval.json", work / "report.html"

        def stage(
            module: Any,
            output: Path,
            stage_settings: Any,
            inputs: Callable[[], Mapping[str, str]],
            make: Callable[[bool], Provenance],
            *,
            always: bool = False,
        ) -> Stage:
            plain = config.to_plain(stage_settings) if stage_settings is not None else {}
            return Stage(module.STAGE, output, module.VERSION, plain, inputs, make, always)

        yield stage(
            manifest_stage,
            manifest,
            settings.manifest,
            dict,
            lambda is_stale: build_manifest(
                settings.videos, manifest, settings.manifest, media=settings.media, progress=progress
            ),
            always=True,
        )
        yield stage(
            ingest_stage,
            frames,
            settings.ingest,
            lambda: {"manifest": read_record(manifest).fingerprint},
            lambda is_stale: ingest(
                manifest,
                frames,
                settings.ingest,
                num_workers=self._num_workers,
                max_failures=settings.max_failures,
                progress=progress,
            ),
        )
        yield stage(
            vqvae_training,
            vqvae,
            settings.vqvae,
            lambda: {"frames": read_record(frames).fingerprint},
            lambda is_stale: resume_or_restart(
                vqvae,
                {"frames": read_record(frames).fingerprint},
                lambda: train_vqvae(frames, vqvae, settings.vqvae, device=device, progress=progress),
                progress,
            ),
        )
        yield stage(
            encoding,
            codes,
            settings.encode,
            lambda: {
                "frames": read_record(frames).fingerprint,
                "tokenizer": in_precision(str(read_record(vqvae).counts["tokenizer"]), settings.encode.precision),
            },
            lambda is_stale: encode_up_to_date(frames, vqvae, codes, settings.encode, device, progress),
        )
        yield stage(
            prior_training,
            prior,
            settings.prior,
            lambda: {"codes": read_record(codes).fingerprint},
            lambda is_stale: resume_or_restart(
                prior,
                {"codes": read_record(codes).fingerprint},
                lambda: train_prior(codes, prior, settings.prior, device=device, progress=progress),
                progress,
            ),
        )
        yield stage(
            sampling,
            samples,
            settings.sample,
            lambda: {"codes": read_record(codes).fingerprint, "prior": read_record(prior).fingerprint},
            lambda is_stale: sample_clips(
                prior, codes, samples, settings.sample, device=device, overwrite=is_stale, progress=progress
            ),
        )
        yield stage(
            decoding,
            videos,
            settings.decode,
            lambda: {"codes": read_record(samples).fingerprint, "vqvae": read_record(vqvae).fingerprint},
            lambda is_stale: decode_store(samples, vqvae, videos, settings.decode, device=device, progress=progress),
        )
        yield stage(
            evaluate_stage,
            results,
            settings.evaluate,
            lambda: {
                role: read_record(path).fingerprint
                for role, path in {
                    "codes": codes,
                    "prior": prior,
                    "frames": frames,
                    "vqvae": vqvae,
                    "samples": samples,
                }.items()
            },
            lambda is_stale: evaluate(
                codes,
                results,
                settings.evaluate,
                prior=prior,
                frames=frames,
                vqvae=vqvae,
                samples=samples,
                # A handful of videos may have no clip to spare for testing; the result says what it was measured on.
                allow_training_clips=True,
                device=device,
                progress=progress,
            ),
        )
        yield stage(
            report_stage,
            report,
            None,
            lambda: report_stage.report_inputs(work),
            lambda is_stale: write_report(work, report, progress=progress),
        )


def _located(settings: PipelineSettings) -> PipelineSettings:
    """The settings with absolute paths, for comparing."""

    def resolved(location: str) -> str:
        return location if is_url(location) else str(Path(location).resolve())

    return replace(
        settings,
        videos=resolved(settings.videos),
        media=None if settings.media is None else resolved(settings.media),
        work_dir=resolved(settings.work_dir),
    )


def open_pipeline(work_dir: Path) -> Pipeline:
    """The pipeline of an existing work directory.

    Raises:
        ArtefactError: there is no work directory at this path.
    """
    if work_dir.is_file():
        raise ArtefactError(f"{work_dir} is a file; give the work directory")
    path = work_dir / SETTINGS_NAME
    if not path.is_file():
        raise ArtefactError(f"{work_dir} is not a work directory (it has no {SETTINGS_NAME}); `lvt run` makes one")
    return Pipeline(load_settings(file=path))


def explain(path: Path) -> dict[str, list[str]]:
    """What makes a work directory, or one artefact in it, stale.

    Returns:
        reasons by stage; an empty list means up to date.

    Raises:
        ArtefactError: `path` is not in a work directory, or no stage makes it.
    """
    work_dir = _work_dir_of(path)
    states = list(open_pipeline(work_dir).states())
    if path.absolute() != work_dir:
        states = [state for state in states if state.output.absolute() == path.absolute()]
    if not states:
        raise ArtefactError(f"{path} is not the output of a stage; `lvt status {work_dir}` lists them")
    return {state.name: state.reasons for state in states}


def explain_clip(
    store: Path,
    clip_id: str,
    *,
    frames: Path | None = None,
    vqvae: Path | None = None,
    generation: int | None = None,
) -> dict[str, list[str]]:
    """What makes a clip of a code store stale; an empty list means it is up to date.

    Args:
        frames, vqvae: what it should be made of; those of the work directory when neither is given.
        generation: of the store, the current one by default.

    Raises:
        ArtefactError: nothing was given, and `store` is not the code store of a work directory.
        StoreError: neither the store nor the frames have that clip.
    """
    manifest = None
    if frames is None and vqvae is None:
        work_dir = _work_dir_of(store)
        if store.absolute() != work_dir / "data.zarr":
            raise ArtefactError(
                f"{store} is not the code store of {work_dir}; give {work_dir / 'data.zarr'}, or --frames and --vqvae"
            )
        frames, vqvae, manifest = work_dir / "frames", work_dir / "runs" / "vqvae", work_dir / "manifest.jsonl"
    tokenizer = read_tokenizer(vqvae) if vqvae is not None else None
    if manifest is not None and not manifest.exists():
        manifest = None
    reasons = clip_chain.explain_clip(
        store, clip_id, frames=frames, tokenizer=tokenizer, manifest=manifest, generation=generation
    )
    return {clip_id: reasons}


def _work_dir_of(path: Path) -> Path:
    full = path.absolute()
    for folder in (full, *full.parents):
        if (folder / SETTINGS_NAME).is_file():
            return folder
    raise ArtefactError(
        f"{path} is not in a work directory of `lvt run`, so there is nothing to compare it with; "
        "`lvt inspect` says what it is"
    )


def resume_or_restart(
    run: Path, inputs: Mapping[str, str], train: Callable[[], Provenance], progress: Progress
) -> Provenance:
    """Go on with a training. One that was started with other settings or inputs is moved aside, then trained anew."""
    try:
        is_changed = read_run(run)["inputs"] != dict(inputs)
    except CheckpointError:
        is_changed = run.is_dir() and any(run.iterdir())  # a run that lost its description
    if not is_changed:
        try:
            return train()
        except ChangedRunError:
            pass
    aside = next(
        path for number in itertools.count(1) if not (path := run.with_name(f"{run.name}.old-{number}")).exists()
    )
    run.rename(aside)
    progress.say(f"{run} was trained with other settings or data: it is kept as {aside} and trained anew")
    return train()


def encode_up_to_date(
    frames: Path, vqvae: Path, codes: Path, settings: EncodeSettings, device: str, progress: Progress
) -> Provenance:
    """Encode what is new or changed; repair a damaged store, or else make it again, and say so."""
    try:
        report = encode_dataset(frames, vqvae, codes, settings, device=device, reencode=True, progress=progress)
    except StoreError as error:  # the frames are there, so a damaged store can be repaired, or else made again
        try:
            report = encode_dataset(
                frames, vqvae, codes, settings, device=device, reencode=True, repair=True, progress=progress
            )
            progress.say(f"{error}; repaired {', '.join(report.repaired)}")
        except StoreError:
            progress.say(f"{error}; encoding everything anew")
            report = encode_dataset(frames, vqvae, codes, settings, device=device, overwrite=True, progress=progress)
    assert report.provenance is not None, "only a dry run has no record"
    return report.provenance
