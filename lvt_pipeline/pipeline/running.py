"""All stages in order, in one work directory: `lvt run`.

Nothing trained is discarded unasked. A network whose data alone have changed is kept and used; one whose settings have
changed is replaced if its training was short, and otherwise only on request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lvt_pipeline.errors import ArtefactError, OverBudget, Stopped
from lvt_pipeline.job import Job
from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.pipeline.making import MAKERS, Maker
from lvt_pipeline.pipeline.networks import install_finished_refinement, refinement_of
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.pipeline.planning import PlannedStage, Planner
from lvt_pipeline.provenance import Provenance, finished_record, write_record
from lvt_pipeline.storage import exclusive_lock
from lvt_pipeline.workspace.layout import BY_ROLE, FRAMES_MEMORY, Layout
from lvt_pipeline.workspace.settings import PipelineSettings, names_same_videos, save_settings
from lvt_pipeline.workspace.stages import Stage, StageState
from lvt_pipeline.workspace.states import stages_of


@dataclass(frozen=True)
class StageResult:
    """What a run did with a stage: made it, or found that there was nothing to do.

    Attributes:
        reasons: why it was made, or in what way a network that was kept is outdated.
    """

    name: str
    output: Path
    was_made: bool
    reasons: list[str]
    record: Provenance
    seconds: float


def require_few_failures(frames: StageResult, allowed: float) -> None:
    """Refuse to continue with frames of which too many clips are missing.

    Args:
        allowed: share of clips that may fail.

    Raises:
        OverBudget: more failed.
    """
    failed, clips = frames.record.counts["failures"], frames.record.counts["clips"]
    if failed > allowed * (failed + clips):
        raise OverBudget(
            f"{failed} of {failed + clips} clips failed and max_failures={allowed}; "
            f"repair those in {frames.output / 'failures.jsonl'}, or allow more with --set max_failures=0.9"
        )


def bring_up_to_date(stage: Stage, making: Making, make: Maker | None = None, *, always: bool = False) -> StageResult:
    """Make the output of a stage, unless it is done or a network that is kept.

    Args:
        make: how; by default as `lvt run` does it.
        always: call `make` even if the stage is done, because only then it looks for new videos.
    """
    started = time.monotonic()
    state = stage.state()
    record, was_made = state.record, False
    if record is None or always or not making.keeps(stage, state):
        record = (make or MAKERS[stage.role])(stage, making, state)
        was_made = state.state != "done" or record != state.record
    elif state.state == "outdated":
        making.progress.say(
            f"{stage.output} is kept and used although its data have changed ({'; '.join(state.reasons)}); to train it "
            f"on the new data, {making.advice(stage)}"
        )
        if refinement_of(stage.output).exists():
            making.progress.say(f"its unfinished refinement is {refinement_of(stage.output)}; --refine resumes it")
    return StageResult(stage.name, stage.output, was_made, state.reasons, record, time.monotonic() - started)


class Pipeline:
    """The stages of one work directory."""

    def __init__(self, settings: PipelineSettings, making: Making | None = None) -> None:
        self.settings = settings
        self.work_dir = Path(settings.work_dir)
        self._making = making or Making(max_failures=settings.max_failures)
        self._planner = Planner(settings, self._making, _with_wishes(self._making, settings))

    def plan(self) -> list[PlannedStage]:
        """What `run` would do, in order. Nothing is written."""
        return self._planner.plan()

    def run(
        self, *, until: str | None = None, on_end: Callable[[StageResult], None] = lambda result: None
    ) -> list[StageResult]:
        """Make the missing and stale outputs, in order.

        Args:
            until: the last stage to look at, such as "encode-dataset"; None: all.
            on_end: called after each stage that is looked at.

        Raises:
            BusyError: another run works in this directory.
            Stopped: the time is over; finished work is kept.
            LVTError: a stage failed; finished work is kept.
        """
        results: list[StageResult] = []
        with exclusive_lock(self.work_dir):
            self._planner.require_feasible(until)
            for stage in stages_of(self.settings):
                self._require_time(stage)
                result = self._bring_up_to_date(stage, until)
                if not results:  # the clips are known: from here on the directory follows these settings
                    save_settings(self.settings, self.work_dir)
                on_end(result)
                results.append(result)
                if stage.role == "frames":
                    require_few_failures(result, self.settings.max_failures)
                if stage.name == until:
                    break
        return results

    def _require_time(self, stage: Stage) -> None:
        deadline = self._making.deadline
        if deadline is not None and time.monotonic() >= deadline:
            raise Stopped(f"the time is over before {stage.name}; run the same command again to continue")

    def _bring_up_to_date(self, stage: Stage, until: str | None) -> StageResult:
        if stage.role == "manifest":
            return bring_up_to_date(stage, self._making, self._list_clips, always=True)
        if stage.is_network:
            install_finished_refinement(stage.output)
        state = stage.state()
        making = self._planner.making_for(stage, state)
        if stage.is_network and not making.keeps(stage, state):
            self._planner.require_feasible(until)  # now that the clips are known, which at a URL nobody has looked at
        if stage.role == "frames" and state.state == "missing" and not self._planner.has_videos:
            return self._without_frames(stage, state)
        if BY_ROLE[stage.role].needs_pixels and not making.keeps(stage, state):
            self._restore_frames(stage)
        result = bring_up_to_date(stage, making)
        if stage.role == "frames":
            self._remember(result.record)
        return result

    def _list_clips(self, stage: Stage, making: Making, state: StageState) -> Provenance:
        """Look for videos. When all are gone, the manifest of the time when they were there still counts."""
        settings = self.settings
        is_same = state.state == "done" and names_same_videos(settings, self.work_dir)
        if state.record is not None and is_same and not self._planner.has_videos:
            making.progress.say(
                f"there are no videos in {settings.videos}; the clips of {stage.output} are used as they are"
            )
            return state.record
        return build_manifest(
            settings.videos, stage.output, settings.manifest, media=settings.media, progress=making.progress
        )

    def _without_frames(self, stage: Stage, state: StageState) -> StageResult:
        """Continue without pixels: stages that need codes only still run."""
        codes = finished_record(Layout(self.work_dir)["codes"])
        if codes is None:
            raise ArtefactError(
                f"{stage.output} is not there and there are no videos in {self.settings.videos}; put one of them back"
            )
        self._making.progress.say(f"{stage.output} is not there and there are no videos: only codes are used")
        counts = {"clips": codes.counts.get("clips", 0), "failures": 0}
        job = Job(stage=stage.name, version=stage.version, kind="frames")
        record = job.recorder(stage.plain_settings, {}).new_record(counts=counts)
        return StageResult(stage.name, stage.output, False, state.reasons, record, 0.0)

    def _restore_frames(self, wanted_by: Stage) -> None:
        """Make deleted frames again, for a stage that needs pixels."""
        stage = next(stage for stage in stages_of(self.settings) if stage.role == "frames")
        if finished_record(stage.output) is not None:
            return
        if not self._planner.has_videos:
            raise ArtefactError(
                f"{wanted_by.name} needs pixels, but {stage.output} was deleted and there are no videos in "
                f"{self.settings.videos}; put one of them back"
            )
        self._making.progress.say(f"{wanted_by.name} needs pixels: {stage.output} is made again")
        self._remember(MAKERS["frames"](stage, self._making, stage.state()))

    def _remember(self, record: Provenance) -> None:
        """Keep the record of the frames where deleting them does not delete it."""
        memory = self.work_dir / FRAMES_MEMORY
        if finished_record(memory) != record:
            write_record(memory, record)


def _with_wishes(making: Making, settings: PipelineSettings) -> Making:
    """With what the settings ask for outdated networks, unless an option asks for something else."""
    wishes = {role: getattr(settings.when_data_changes, role) for role in ("vqvae", "prior")}
    retrain, refine = ({role for role, wish in wishes.items() if wish == what} for what in ("retrain", "refine"))
    return replace(
        making, retrain=making.retrain | (retrain - making.refine), refine=making.refine | (refine - making.retrain)
    )
