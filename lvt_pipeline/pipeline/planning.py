"""What `lvt run` would do with each stage, how long that would take, and what it refuses before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lvt_pipeline.errors import ArtefactError, CheckpointError, LVTError
from lvt_pipeline.pipeline import networks
from lvt_pipeline.pipeline.options import Making
from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.provenance import differences, finished_record
from lvt_pipeline.runs.live import read_live_run
from lvt_pipeline.workspace.clip_changes import ClipChanges, changes_of_videos, has_videos
from lvt_pipeline.workspace.layout import BY_ROLE, Layout
from lvt_pipeline.workspace.settings import PipelineSettings
from lvt_pipeline.workspace.stages import Stage, StageState
from lvt_pipeline.workspace.states import stages_of, states_of

INCREMENTAL = ("manifest", "frames", "codes")  # only new and changed clips cost time
ACTIONS = {"unfinished": "resume", "stale": "make again", "outdated": "make again"}


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with a stage.

    Attributes:
        action: "nothing", "keep" (an outdated network), "resume", "make", "update" (only new and changed clips), "make
            again", "refine" (a network) or "refuse" (the run would end with the reason as its error).
        clips: number of clips that the work is about; None where that is not known yet.
        steps: training steps that remain; None for other stages.
        seconds: rough estimate from earlier runs in this directory; None where there was none.
    """

    name: str
    action: str
    reasons: list[str]
    clips: int | None = None
    steps: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        """One line for people: what would be done, on how many clips or steps, about how long, and why."""
        facts = []
        if self.action not in ("nothing", "keep", "refuse"):
            facts = [count_of(self.clips, "clip")] if self.clips else []
            facts += [count_of(self.steps, "step")] if self.steps else []
            facts.append(_duration(self.seconds))
        return f"{self.name:15} {self.action:11} {'; '.join(filter(None, (', '.join(facts), *self.reasons)))}".rstrip()


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "no estimate before it has run once"
    return f"about {format_seconds(seconds)}" if seconds >= 1 else "less than a second"


class Planner:
    """Compares a work directory with its videos and settings. Nothing is written.

    Args:
        making: options of the run.
        making_outdated: the same for networks that are outdated, which the settings may ask to train again.
    """

    def __init__(self, settings: PipelineSettings, making: Making, making_outdated: Making) -> None:
        self.settings, self._making, self._making_outdated = settings, making, making_outdated
        self._layout = Layout(Path(settings.work_dir))
        self._changes: ClipChanges | None = None

    def plan(self) -> list[PlannedStage]:
        """What `lvt run` would do, in order."""
        settings = self.settings
        self._changes = changes_of_videos(settings.videos, self._layout["manifest"], settings.manifest, settings.media)
        pairs = self._pairs(look=True)
        to_make = [stage for stage, state in pairs if not self.making_for(stage, state).keeps(stage, state)]
        return [self._planned(stage, state, to_make) for stage, state in pairs]

    def require_feasible(self, until: str | None = None) -> None:
        """Refuse what is certain to fail later, before anything is made or saved.

        With `until`, other codes may also leave a network that is not looked at without a use.

        Raises:
            ArtefactError: a stage needs pixels, and both the frames and the videos are gone.
            ChangedRunError: a network that took long to train would be replaced without being asked for.
            MismatchError: a network cannot be refined, because its codes will be those of another tokenizer.
        """
        wishes = self._making_outdated
        has_ended = makes_codes = False
        for stage, state in self._pairs(look=bool(wishes.retrain | wishes.refine)):
            problem = self._problem(stage, state)
            is_spoilt = makes_codes and stage.state().fits and not state.fits
            if problem is not None and (is_spoilt or not has_ended):
                raise problem
            is_made = not has_ended and not self.making_for(stage, state).keeps(stage, state)
            makes_codes |= is_made and stage.role in ("vqvae", "codes")
            has_ended |= stage.name == until

    @cached_property
    def has_videos(self) -> bool:
        """Whether the source still lists a video that exists."""
        settings = self.settings
        return has_videos(settings.videos, self._layout["manifest"], settings.manifest, settings.media)

    @cached_property
    def _has_pixels(self) -> bool:
        return finished_record(self._layout["frames"]) is not None or self.has_videos

    @property
    def _num_clips(self) -> int | None:
        """Clips that the manifest lists, or will list."""
        record, changes = finished_record(self._layout["manifest"]), self._changes
        known = 0 if record is None else int(record.counts.get("clips", 0))
        return known or None if changes is None else known + changes.added - changes.removed

    def _pairs(self, *, look: bool) -> list[tuple[Stage, StageState]]:
        stages = stages_of(self.settings)
        missing = {stage.role for stage in stages if stage.is_network and finished_record(stage.output) is None}
        replaced = self._making_outdated.retrain | self._making_outdated.refine | missing
        return list(zip(stages, states_of(self.settings, replaced=replaced, look=look), strict=True))

    def making_for(self, stage: Stage, state: StageState) -> Making:
        """The options for a stage: the wishes of the settings are for networks of which only the data have changed."""
        if state.state == "outdated":
            return self._making_outdated
        if state.fits or state.record is None:
            return self._making
        has_own_changes = differences(state.record, stage.version, stage.plain_settings, state.record.inputs)
        return self._making if has_own_changes else replace(self._making, retrain=self._making_outdated.retrain)

    def _problem(self, stage: Stage, state: StageState) -> LVTError | None:
        """Why a run would end with an error at this stage, where that is certain."""
        making, artefact = self.making_for(stage, state), BY_ROLE[stage.role]
        if making.keeps(stage, state) or state.state == "waiting":
            return None
        because = "; ".join(state.reasons)
        if artefact.needs_pixels and not self._has_pixels:
            return ArtefactError(
                f"{stage.name} needs pixels ({because}), but {self._layout['frames']} was deleted and there are no "
                f"videos in {self.settings.videos}; put one of them back, or undo the change"
            )
        is_stale = artefact.is_network and state.state == "stale"
        return networks.why_not_replaced(stage, making, state) if is_stale else None

    def _planned(self, stage: Stage, state: StageState, to_make: Sequence[Stage]) -> PlannedStage:
        if stage not in to_make:
            wanted_by = next((other.name for other in to_make if BY_ROLE[other.role].needs_pixels), None)
            if stage.role == "frames" and state.note and wanted_by and self.has_videos:
                seconds = None if state.record is None else state.record.seconds
                return PlannedStage(stage.name, "make", [f"{wanted_by} needs pixels"], self._num_clips, None, seconds)
            action = "keep" if state.state == "outdated" else "nothing"
            return PlannedStage(stage.name, action, state.reasons, clips=0, seconds=0.0)
        problem = self._problem(stage, state)
        if stage.role == "manifest" and not self.has_videos:
            problem = ArtefactError(f"there are no videos in {self.settings.videos}")
        if problem is not None:
            return PlannedStage(stage.name, "refuse", [str(problem)])
        if state.state in ("missing", "waiting"):
            state = replace(state, reasons=[])  # "make" says it
        if stage.is_network:
            return self._planned_training(stage, state)
        action, clips = ACTIONS.get(state.state, "make"), self._clips(stage)
        seconds = None if state.record is None else state.record.seconds
        if self._changes and self._is_update(stage, state, to_make):
            action, total = "update", clips
            clips = self._changes.added + self._changes.changed
            seconds = None if seconds is None or not total else seconds * clips / total
        return PlannedStage(stage.name, action, state.reasons, clips, None, seconds)

    def _is_update(self, stage: Stage, state: StageState, to_make: Sequence[Stage]) -> bool:
        """Whether only new and changed clips cost time."""
        record = state.record
        other_codes = stage.role == "codes" and any(other.role == "vqvae" for other in to_make)
        if record is None or stage.role not in INCREMENTAL or other_codes:
            return False
        return not differences(record, stage.version, stage.plain_settings, record.inputs)

    def _clips(self, stage: Stage) -> int | None:
        if stage.role in INCREMENTAL:
            return self._num_clips
        if stage.role not in ("samples", "videos"):
            return None
        wanted, found = self.settings.sample.num_clips, self._num_clips
        return min((count for count in (wanted, found) if count is not None), default=None)

    def _planned_training(self, stage: Stage, state: StageState) -> PlannedStage:
        """The steps and seconds of a training, or of the rest of one that was interrupted."""
        steps, seconds = int(stage.settings.training.max_steps), None
        if state.record is not None:
            seconds = state.record.seconds * steps / (state.record.counts.get("steps") or steps)
        elif state.state == "unfinished":
            with suppress(CheckpointError):
                run = read_live_run(stage.output)
                steps, speed = max(steps - run.saved_step, 0), run.train.get("steps_per_second")
                seconds = steps / speed if speed else None
        is_refined = stage.role in self.making_for(stage, state).refine and state.state in ("stale", "outdated")
        action = "refine" if is_refined else ACTIONS.get(state.state, "make")
        return PlannedStage(stage.name, action, state.reasons, None, steps, seconds)
