"""Run what a table or figure needs and is not there yet, in one work directory for all of them (see `places`).

Every output is cached by content like those of `lvt run`, so nothing is made twice, whatever needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from lvt_pipeline import config
from lvt_pipeline.demo.videos import write_demo_videos
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.protocols.evaluate import evaluate_protocol, recorded_settings
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.manifest.sources import recognise
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.pipeline.making import Maker
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.pipeline.running import StageResult, bring_up_to_date, require_few_failures
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, digest_file, finished_record, record_path
from lvt_pipeline.reproduce import drawing, timing
from lvt_pipeline.reproduce.experiments import (
    PriorRecipe,
    Target,
    TokenizerRecipe,
    count_parameters,
    target_priors,
    target_tokenizers,
)
from lvt_pipeline.reproduce.filling import PROTOCOL, fill_table
from lvt_pipeline.reproduce.places import Data, Places, describe_data, makes_demo
from lvt_pipeline.reproduce.settings import ReproduceSettings
from lvt_pipeline.reproduce.tables import FilledTable
from lvt_pipeline.reproduce.timing import TimingSettings, time_sampling
from lvt_pipeline.runs.read import read_run_record
from lvt_pipeline.storage import exclusive_lock, write_bytes
from lvt_pipeline.workspace.stages import Stage, StageState, new_stage


@dataclass(frozen=True)
class Step:
    """A stage with the facts known before it runs.

    Attributes:
        make: how its output is made; None: as `lvt run` does it.
        always: whether it runs even when it is done, because only then it looks for new videos.
    """

    stage: Stage
    make: Maker | None = None
    always: bool = False
    training_steps: int | None = None
    parameters: Callable[[], int] | None = None


@dataclass(frozen=True)
class PlannedStep:
    """The state of a stage of a plan, and its cost."""

    state: StageState
    training_steps: int | None
    parameters: int | None

    @property
    def is_done(self) -> bool:
        """Whether it would be skipped."""
        return self.state.state in ("done", "outdated")

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
    """The result of a target: files, their contents for a table, a line about it for a figure."""

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
        self._making = Making(
            device=device,
            num_workers=num_workers,
            max_failures=settings.max_failures,
            remedy="delete {run} and run this again",
        )
        self._places = Places(work_dir)
        self._i3d = None if settings.i3d is None else Path(settings.i3d)
        self._measured = EvaluateSettings(max_clips=settings.max_clips, priming_pixels="both")
        if settings.videos is not None:
            recognise(settings.videos)  # better refused now than after a question about missing stages
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
        for step in chain(self._data_steps(), *(steps for _, steps in self._steps_of_targets())):
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
        """Make the missing stages, target by target, and write the tables.

        Args:
            on_end: called after each stage that was looked at.
            on_target: called when a table or figure is there.

        Raises:
            BusyError: another run works in this directory.
            Stopped: a signal came; finished work is kept.
            LVTError: a stage failed; finished work is kept.
        """
        outcomes: list[Outcome] = []
        making = replace(self._making, progress=progress)
        with exclusive_lock(self.work_dir), stop_requested() as stop:

            def bring_all(steps: Iterable[Step]) -> None:
                for step in steps:
                    result = bring_up_to_date(step.stage, making, step.make, always=step.always)
                    on_end(result)
                    if result.output == self._places.frames:
                        require_few_failures(result, self.settings.max_failures)
                    stop.raise_if_set(f"{step.stage.name} is finished")

            self._save_settings()
            bring_all(self._data_steps())
            self._check_test_clips()
            for target, steps in self._steps_of_targets():
                bring_all(steps)
                outcomes.append(self._finish(target))
                on_target(outcomes[-1])
        return outcomes

    def _save_settings(self) -> None:
        text, path = config.to_toml(self.settings).encode(), self._places.settings
        if not path.exists() or path.read_bytes() != text:
            write_bytes(path, text)

    def _check_test_clips(self) -> None:
        """Refuse frames on which only training clips could be measured."""
        clips = FrameShards(self._places.frames).clips
        if not any(clip.split != "train" and clip.num_frames >= PROTOCOL.frames for clip in clips):
            raise LVTError(
                f"{self._places.frames} has no test clip of {PROTOCOL.frames} frames, so there is nothing to measure; "
                "give more or longer videos, or a larger share with --set manifest.test_share=0.3"
            )

    # What has to be there -------------------------------------------------------------------------------------------

    def _steps_of_targets(self) -> Iterator[tuple[Target, list[Step]]]:
        """What each target needs that no earlier one does."""
        seen: set[Path] = set()
        for target in self.targets:
            steps = {step.stage.output: step for step in self._steps(target) if step.stage.output not in seen}
            seen |= {*steps}
            yield target, list(steps.values())

    def _steps(self, target: Target) -> Iterator[Step]:
        for tokenizer in target_tokenizers(target, self.settings):
            yield from self._tokenizer_steps(tokenizer)
            if target.is_table:
                yield self._result(tokenizer, tokenizer, None, self._measured, evaluate)
        for prior in target_priors(target, self.settings):
            yield from self._tokenizer_steps(prior.tokenizer)
            yield self._prior_training(prior)
            yield self._prior_result(prior)
            if target.is_timed:
                yield self._prior_timing(prior)

    def _data_steps(self) -> Iterator[Step]:
        settings, manifest, frames = self.settings, self._places.manifest, self._places.frames
        is_demo = makes_demo(settings.videos, self._places)
        if settings.videos is None and not is_demo and not manifest.exists():
            return  # frames that somebody put here
        if settings.videos is not None or is_demo:
            stage = new_stage("manifest", manifest, settings.manifest)
            yield Step(stage, self._list_clips, always=True)
        elif record_path(frames).exists():
            return  # of `lvt run` or `lvt ingest`, with settings of their own
        yield Step(new_stage("frames", frames, settings.ingest, {"manifest": manifest}))

    def _list_clips(self, stage: Stage, making: Making, state: StageState) -> Provenance:
        settings, videos, media = self.settings, self.settings.videos, self.settings.media
        if videos is None:
            write_demo_videos(self._places.demo_videos, settings.demo, progress=making.progress)
            videos = str(self._places.demo_videos)
        return build_manifest(videos, stage.output, settings.manifest, media=media, progress=making.progress)

    def _tokenizer_steps(self, recipe: TokenizerRecipe) -> Iterator[Step]:
        places, frames = self._places, self._places.frames
        run, codes = places.run(recipe), places.codes(recipe)
        training = new_stage("vqvae", run, recipe.settings, {"frames": frames}, recipe.name)
        yield Step(training, training_steps=recipe.settings.training.max_steps)
        yield Step(new_stage("codes", codes, self.settings.encode, {"frames": frames, "tokenizer": run}, recipe.name))

    def _prior_training(self, recipe: PriorRecipe) -> Step:
        codes = self._places.codes(recipe.tokenizer)
        stage = new_stage("prior", self._places.run(recipe), recipe.settings, {"codes": codes}, recipe.name)
        steps = recipe.settings.training.max_steps
        return Step(stage, training_steps=steps, parameters=lambda: self._count_parameters(recipe))

    def _prior_result(self, recipe: PriorRecipe) -> Step:
        settings = recorded_settings(PROTOCOL, self._measured, range(self.settings.runs))
        run_protocol = partial(evaluate_protocol, protocol=PROTOCOL, num_runs=self.settings.runs)
        return self._result(recipe, recipe.tokenizer, self._places.run(recipe), settings, run_protocol)

    def _result(
        self,
        recipe: TokenizerRecipe | PriorRecipe,
        tokenizer: TokenizerRecipe,
        prior: Path | None,
        recorded: Any,
        measure: Callable[..., Provenance],
    ) -> Step:
        """Measure a tokenizer, or a prior on its codes, with settings that are recorded as `recorded`."""
        places, out = self._places, self._places.result(recipe)
        sources = Sources(
            codes=places.codes(tokenizer), prior=prior, frames=places.frames, vqvae=places.run(tokenizer), i3d=self._i3d
        )
        roles = ("codes", "prior", "frames", "vqvae")
        paths = {role: path for role in roles if (path := getattr(sources, role)) is not None}
        stage = new_stage("evaluation", out, recorded, paths, recipe.name)

        def make(stage: Stage, making: Making, state: StageState) -> Provenance:
            return measure(sources, out, settings=self._measured, device=making.device, progress=making.progress)

        def extra_inputs() -> dict[str, str]:
            network = {} if self._i3d is None else {"i3d": _digest(self._i3d)}
            return network | ({} if prior is None else _samples_of(out))

        return Step(replace(stage, extra_inputs=extra_inputs), make)

    def _prior_timing(self, recipe: PriorRecipe) -> Step:
        run, codes, out = self._places.run(recipe), self._places.codes(recipe.tokenizer), self._places.timing(recipe)
        settings = TimingSettings(
            frames=PROTOCOL.frames,
            priming_frames=PROTOCOL.priming_frames,
            repetitions=self.settings.repetitions,
            device=choose_device(self._making.device).type,
        )
        stage = new_stage("evaluation", out, settings, {"codes": codes, "prior": run})
        stage = replace(stage, name=f"{timing.STAGE} {recipe.name}", version=timing.VERSION)

        def make(stage: Stage, making: Making, state: StageState) -> Provenance:
            return time_sampling(run, codes, out, settings, device=making.device, progress=making.progress)

        return Step(stage, make)

    def _count_parameters(self, recipe: PriorRecipe) -> int:
        """Parameters of a prior: of the trained one, or of one that is only planned."""
        try:
            record = read_run_record(self._places.run(recipe))
        except ArtefactError:
            record = None
        if record is not None:
            return int(record.counts["parameters"])
        return count_parameters(recipe, self.settings.ingest.geometry.size, self._places.codes(recipe.tokenizer))

    # Results --------------------------------------------------------------------------------------------------------

    def _finish(self, target: Target) -> Outcome:
        if target.is_table:
            table = fill_table(target, self.settings, self._places)
            return Outcome(target, table.write(self._places.tables), table)
        out = self._places.figure(target.name)
        title = f"{self.data.name}, preset {self.settings.scale}"
        if not target.priors:
            (tokenizer,) = target_tokenizers(target, self.settings)
            files, remark = drawing.plot_frequencies(self._places.codes(tokenizer), out, title)
            return Outcome(target, files, remark=remark)
        (prior,) = target_priors(target, self.settings)
        files = drawing.plot_figure(target.name, self._places, prior, out, title, device=self._making.device)
        return Outcome(target, files)


def _samples_of(out: Path) -> dict[str, str]:
    """The samples that a result was made of. They follow from the other inputs, and are named in the result itself."""
    record = finished_record(out)
    inputs = {} if record is None else record.inputs
    return {role: value for role, value in inputs.items() if role.startswith("samples-")}


@cache
def _digest(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--i3d {path} does not exist; give the TorchScript file of the network")
    return digest_file(path)
