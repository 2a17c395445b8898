"""Run what a table or figure needs and is not there yet, in one work directory for all of them (see `places`).

Every output is cached by content like those of `lvt run`, so nothing is made twice, whatever needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lvt_pipeline import config
from lvt_pipeline.demo.videos import write_demo_videos
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.evaluation import evaluate as evaluate_stage
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.protocols import evaluate_protocol, recorded_settings
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.jobs import encode as encoding
from lvt_pipeline.jobs.ingest import settings as ingest_settings
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.manifest import manifest as manifest_stage
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.manifest.sources import recognise
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, digest_file, read_record, record_path
from lvt_pipeline.reproduce import drawing, timing
from lvt_pipeline.reproduce.counting import count_parameters
from lvt_pipeline.reproduce.experiments import (
    PriorRecipe,
    ReproduceSettings,
    Target,
    TokenizerRecipe,
    target_priors,
    target_tokenizers,
)
from lvt_pipeline.reproduce.filling import PROTOCOL, fill_table
from lvt_pipeline.reproduce.places import Data, Places, describe_data, makes_demo
from lvt_pipeline.reproduce.tables import FilledTable
from lvt_pipeline.reproduce.timing import TimingSettings, time_sampling
from lvt_pipeline.runs.read import in_precision
from lvt_pipeline.storage import exclusive_lock, write_bytes
from lvt_pipeline.training import prior as prior_training
from lvt_pipeline.training import vqvae as vqvae_training
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from lvt_pipeline.workspace.pipeline import (
    Stage,
    StageResult,
    StageState,
    check_failures,
    encode_up_to_date,
    resume_or_restart,
)


@dataclass(frozen=True)
class Step:
    """A stage with what is known about it before it runs."""

    stage: Stage
    training_steps: int | None = None
    parameters: Callable[[], int] | None = None


@dataclass(frozen=True)
class PlannedStep:
    """Where a stage of a plan stands, and what it would take."""

    state: StageState
    training_steps: int | None
    parameters: int | None

    @property
    def is_done(self) -> bool:
        """Whether it would be skipped."""
        return self.state.state == "done"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "stage": self.state.name,
            "output": str(self.state.output),
            "state": self.state.state,
            "because": self.state.reasons,
            "training_steps": self.training_steps,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Outcome:
    """What came of a target: files, what is in them when it is a table, a line about it when it is a figure."""

    target: Target
    files: Sequence[Path]
    table: FilledTable | None = None
    remark: str = ""


class Reproduction:
    """Tables and figures of one work directory.

    Raises:
        ConfigError: a setting of a tokenizer or prior is unknown or does not fit, or a file that one names is missing.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        settings: ReproduceSettings,
        work_dir: Path,
        *,
        device: str = "auto",
        num_workers: int | None = None,
    ) -> None:
        self.targets, self.settings, self.work_dir = targets, settings, work_dir
        self._device, self._num_workers = device, num_workers
        self._places = Places(work_dir)
        self._i3d = None if settings.i3d is None else Path(settings.i3d)
        self._measured = EvaluateSettings(max_clips=settings.max_clips, priming_pixels="both")
        if settings.videos is not None:
            recognise(settings.videos)  # better refused now than after a question of what is missing
        if self._i3d is not None:
            _digest(self._i3d)  # or the work directory would remember a file that never was
        for target in targets:  # the same for settings
            target_tokenizers(target, settings)
            target_priors(target, settings)

    @property
    def data(self) -> Data:
        """What the frames in the work directory are."""
        return describe_data(self.settings.videos, self._places)

    def plan(self) -> list[PlannedStep]:
        """Every stage that the targets need, in order, without changing anything."""
        planned = []
        for step in self._all_steps(SILENT):
            state = step.stage.state()
            parameters = None if step.parameters is None else step.parameters()
            planned.append(PlannedStep(state, step.training_steps, parameters))
        return planned

    def run(
        self,
        *,
        progress: Progress = SILENT,
        on_end: Callable[[StageResult], None] = lambda result: None,
        on_target: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Make what is missing, target by target, and write the tables.

        Args:
            on_end: called after each stage that was looked at.
            on_target: called when a table or figure is there.

        Raises:
            BusyError: another run works in this directory.
            Stopped: a signal came; what was finished is kept.
            LVTError: a stage failed; what was finished is kept.
        """
        outcomes: list[Outcome] = []
        seen: set[Path] = set()
        with exclusive_lock(self.work_dir), stop_requested() as stop:

            def bring_up_to_date(steps: Iterable[Step]) -> None:
                for step in steps:
                    if step.stage.output in seen:
                        continue
                    seen.add(step.stage.output)
                    result = step.stage.run()
                    on_end(result)
                    if result.output == self._places.frames:
                        check_failures(result, self.settings.max_failures)
                    stop.raise_if_set(f"{step.stage.name} is finished")

            self._save_settings()
            bring_up_to_date(self._data_steps(progress))
            self._check_test_clips()
            for target in self.targets:
                bring_up_to_date(self._steps(target, progress))
                outcomes.append(self._finish(target))
                on_target(outcomes[-1])
        return outcomes

    def _check_test_clips(self) -> None:
        """Refuse frames on which nothing could be measured that was not learnt.

        Raises:
            LVTError: no clip that is not trained on is long enough.
        """
        clips = FrameShards(self._places.frames).clips
        if not any(clip.split != "train" and clip.num_frames >= PROTOCOL.frames for clip in clips):
            raise LVTError(
                f"{self._places.frames} has no test clip of {PROTOCOL.frames} frames, so there is nothing to measure; "
                "give more or longer videos, or a larger share with --set manifest.test_share=0.3"
            )

    def _save_settings(self) -> None:
        text, path = config.to_toml(self.settings).encode(), self._places.settings
        if not path.exists() or path.read_bytes() != text:
            write_bytes(path, text)

    # What has to be there -------------------------------------------------------------------------------------------

    def _all_steps(self, progress: Progress) -> Iterator[Step]:
        yield from self._data_steps(progress)
        seen: set[Path] = set()
        for target in self.targets:
            for step in self._steps(target, progress):
                if step.stage.output not in seen:
                    seen.add(step.stage.output)
                    yield step

    def _steps(self, target: Target, progress: Progress) -> Iterator[Step]:
        for tokenizer in target_tokenizers(target, self.settings):
            yield from self._tokenizer_steps(tokenizer, progress)
            if target.is_table:
                yield self._tokenizer_result(tokenizer, progress)
        for prior in target_priors(target, self.settings):
            yield from self._tokenizer_steps(prior.tokenizer, progress)
            yield self._prior_training(prior, progress)
            yield self._prior_result(prior, progress)
            if target.is_timed:
                yield self._prior_timing(prior, progress)

    def _data_steps(self, progress: Progress) -> Iterator[Step]:
        settings, manifest, frames = self.settings, self._places.manifest, self._places.frames
        is_demo = makes_demo(settings.videos, self._places)
        if settings.videos is None and not is_demo and not manifest.exists():
            return  # frames that somebody put here

        def list_clips(is_stale: bool) -> Provenance:
            videos: Path | str | None = settings.videos
            if is_demo:
                write_demo_videos(self._places.demo_videos, settings.demo, progress=progress)
                videos = self._places.demo_videos
            assert videos is not None
            return build_manifest(videos, manifest, settings.manifest, media=settings.media, progress=progress)

        if settings.videos is not None or is_demo:
            yield Step(_stage(manifest_stage, manifest, settings.manifest, dict, list_clips, always=True))
        elif record_path(frames).exists():
            return  # of `lvt run` or `lvt ingest`, with settings of their own
        yield Step(
            _stage(
                ingest_settings,
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
        )

    def _tokenizer_steps(self, recipe: TokenizerRecipe, progress: Progress) -> Iterator[Step]:
        places, device = self._places, self._device
        run, codes, frames = places.run(recipe), places.codes(recipe), places.frames

        def inputs() -> dict[str, str]:
            return {"frames": read_record(frames).fingerprint}

        yield Step(
            _stage(
                vqvae_training,
                run,
                recipe.settings,
                inputs,
                lambda is_stale: resume_or_restart(
                    run,
                    inputs(),
                    lambda: train_vqvae(frames, run, recipe.settings, device=device, progress=progress),
                    progress,
                ),
                of=recipe.name,
            ),
            recipe.settings.training.max_steps,
        )
        encode = self.settings.encode
        yield Step(
            _stage(
                encoding,
                codes,
                encode,
                lambda: (
                    inputs() | {"tokenizer": in_precision(str(read_record(run).counts["tokenizer"]), encode.precision)}
                ),
                lambda is_stale: encode_up_to_date(frames, run, codes, encode, device, progress),
                of=recipe.name,
            )
        )

    def _tokenizer_result(self, recipe: TokenizerRecipe, progress: Progress) -> Step:
        run, codes, out = self._places.run(recipe), self._places.codes(recipe), self._places.result(recipe)
        return Step(
            _stage(
                evaluate_stage,
                out,
                self._measured,
                lambda: self._inputs({"codes": codes, "frames": self._places.frames, "vqvae": run}),
                lambda is_stale: evaluate(
                    codes,
                    out,
                    self._measured,
                    frames=self._places.frames,
                    vqvae=run,
                    i3d=self._i3d,
                    device=self._device,
                    progress=progress,
                ),
                of=recipe.name,
            )
        )

    def _prior_training(self, recipe: PriorRecipe, progress: Progress) -> Step:
        run, codes = self._places.run(recipe), self._places.codes(recipe.tokenizer)

        def inputs() -> Mapping[str, str]:
            return {"codes": read_record(codes).fingerprint}

        return Step(
            _stage(
                prior_training,
                run,
                recipe.settings,
                inputs,
                lambda is_stale: resume_or_restart(
                    run,
                    inputs(),
                    lambda: train_prior(codes, run, recipe.settings, device=self._device, progress=progress),
                    progress,
                ),
                of=recipe.name,
            ),
            recipe.settings.training.max_steps,
            lambda: self._count_parameters(recipe),
        )

    def _prior_result(self, recipe: PriorRecipe, progress: Progress) -> Step:
        run, codes, out = self._places.run(recipe), self._places.codes(recipe.tokenizer), self._places.result(recipe)
        vqvae = self._places.run(recipe.tokenizer)
        seeds = range(self.settings.runs)

        def inputs() -> Mapping[str, str]:
            needed = {"codes": codes, "prior": run, "frames": self._places.frames, "vqvae": vqvae}
            return self._inputs(needed) | _samples_of(out)

        stage = Stage(
            f"{evaluate_stage.STAGE} {recipe.name}",
            out,
            evaluate_stage.VERSION,
            recorded_settings(PROTOCOL, self._measured, seeds),
            inputs,
            lambda is_stale: evaluate_protocol(
                codes,
                out,
                PROTOCOL,
                self._measured,
                prior=run,
                frames=self._places.frames,
                vqvae=vqvae,
                i3d=self._i3d,
                num_runs=self.settings.runs,
                device=self._device,
                progress=progress,
            ),
        )
        return Step(stage)

    def _prior_timing(self, recipe: PriorRecipe, progress: Progress) -> Step:
        run, codes, out = self._places.run(recipe), self._places.codes(recipe.tokenizer), self._places.timing(recipe)
        settings = TimingSettings(
            frames=PROTOCOL.frames,
            priming_frames=PROTOCOL.priming_frames,
            repetitions=self.settings.repetitions,
            device=timing.device_type(self._device),
        )
        return Step(
            _stage(
                timing,
                out,
                settings,
                lambda: {"codes": read_record(codes).fingerprint, "prior": read_record(run).fingerprint},
                lambda is_stale: time_sampling(run, codes, out, settings, device=self._device, progress=progress),
                of=recipe.name,
            )
        )

    def _inputs(self, paths: Mapping[str, Path]) -> dict[str, str]:
        found = {role: read_record(path).fingerprint for role, path in paths.items()}
        return found if self._i3d is None else found | {"i3d": _digest(self._i3d)}

    def _count_parameters(self, recipe: PriorRecipe) -> int:
        """Parameters of a prior: of the trained one, or of one that is only planned."""
        try:
            return int(read_record(self._places.run(recipe)).counts["parameters"])
        except ArtefactError:
            return count_parameters(recipe, self.settings.ingest.geometry.size, self._places.codes(recipe.tokenizer))

    # What comes of it -----------------------------------------------------------------------------------------------

    def _finish(self, target: Target) -> Outcome:
        if target.is_table:
            table = fill_table(target, self.settings, self._places)
            return Outcome(target, table.write(self._places.tables()), table)
        out = self._places.figure(target.name)
        title = f"{self.data.name}, scale {self.settings.scale}"
        if not target.priors:
            (tokenizer,) = target_tokenizers(target, self.settings)
            files, remark = drawing.draw_frequencies(self._places.codes(tokenizer), out, title)
            return Outcome(target, files, remark=remark)
        (prior,) = target_priors(target, self.settings)
        sampled = drawing.Sampled(
            codes=self._places.codes(prior.tokenizer),
            frames=self._places.frames,
            vqvae=self._places.run(prior.tokenizer),
            result=self._places.result(prior),
            device=self._device,
        )
        return Outcome(target, drawing.draw_figure(target.name, sampled, out, title))


def _stage(
    module: Any,
    output: Path,
    settings: Any,
    inputs: Callable[[], Mapping[str, str]],
    make: Callable[[bool], Provenance],
    *,
    of: str = "",
    always: bool = False,
) -> Stage:
    name = f"{module.STAGE} {of}".rstrip()
    return Stage(name, output, module.VERSION, config.to_plain(settings), inputs, make, always)


def _samples_of(out: Path) -> dict[str, str]:
    """The samples that a result was made of. They follow from the other inputs, and are named in the result itself."""
    try:
        record = read_record(out)
    except ArtefactError:
        return {}
    return {role: value for role, value in record.inputs.items() if role.startswith("samples-")}


@cache
def _digest(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--i3d {path} does not exist; give the TorchScript file of the network")
    return digest_file(path)
