"""The state of every stage of a work directory, the videos included: what `lvt run` would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.job import finished_record
from lvt_pipeline.workspace.clip_changes import ClipChanges, changes_of_videos
from lvt_pipeline.workspace.layout import ARTEFACTS, BY_ROLE, FRAMES_MEMORY, Layout
from lvt_pipeline.workspace.settings import PipelineSettings, find_work_dir, settings_of
from lvt_pipeline.workspace.stages import Stage, StageState, new_stage


def stages_of(settings: PipelineSettings) -> list[Stage]:
    """The stages of a work directory, in order."""
    layout = Layout(Path(settings.work_dir))
    choices = {
        "manifest": settings.manifest,
        "frames": settings.ingest,
        "vqvae": settings.vqvae,
        "codes": settings.encode,
        "prior": settings.prior,
        "samples": settings.sample,
        "videos": settings.decode,
        "evaluation": settings.evaluate,
        "report": {},
    }
    stages = []
    for artefact in ARTEFACTS:
        sources = {role: layout[source] for role, source in artefact.inputs.items()}
        stage = new_stage(artefact.role, layout[artefact.role], choices[artefact.role], sources)
        remembered = layout.work_dir / FRAMES_MEMORY if artefact.role == "frames" else None
        stages.append(replace(stage, remembered=remembered))
    return stages


def states_of(settings: PipelineSettings) -> list[StageState]:
    """The state of every stage, in order, without changing anything; the videos are looked at."""
    return list(_states(settings))


def work_dir_states(work_dir: Path) -> list[StageState]:
    """The state of every stage of an existing work directory.

    Raises:
        ArtefactError: there is no work directory at this path.
    """
    return states_of(settings_of(work_dir))


def states_by_role(work_dir: Path) -> dict[str, StageState]:
    """The state of every output of a directory, by role, whether `lvt run` or single commands made it.

    Without a pipeline file nothing says which settings are wanted, so those of the outputs count as such.
    """
    layout = Layout(work_dir)
    if layout.settings.exists():
        states = work_dir_states(work_dir)
        return {artefact.role: state for artefact, state in zip(ARTEFACTS, states, strict=True)}
    found = {}
    for artefact in ARTEFACTS:
        record = finished_record(layout[artefact.role])
        named = artefact.inputs if record is None else record.inputs
        sources = {role: layout[source] for role, source in artefact.inputs.items() if role in named}
        settings = record.settings if record is not None else {}
        found[artefact.role] = new_stage(artefact.role, layout[artefact.role], settings, sources).state()
    return found


def _states(settings: PipelineSettings) -> Iterator[StageState]:
    changing: dict[str, str] = {}  # outputs that will change, and how
    for stage in stages_of(settings):
        state = stage.state()
        if stage.role == "manifest":
            state = _with_videos(state, settings)
        following = [role for role in BY_ROLE[stage.role].inputs.values() if role in changing]
        if state.state == "done" and following:
            reasons = [f"{BY_ROLE[role].title.lower()} will change: {changing[role]}" for role in following]
            state = replace(state, state="outdated" if stage.is_network else "stale", reasons=reasons)
        if state.state == "stale":
            changing[stage.role] = "; ".join(state.reasons) if not following else changing[following[0]]
        yield state


def _with_videos(state: StageState, settings: PipelineSettings) -> StageState:
    """The state of the manifest after a look at the videos."""
    if state.state != "done":
        return state
    changes = changes_of_videos(settings.videos, state.output, settings.manifest, settings.media)
    if changes is None:
        return replace(state, note=f"the videos {settings.videos} were not looked at")
    return replace(state, state="stale", reasons=[str(changes)]) if changes else state


def clip_changes(settings: PipelineSettings) -> ClipChanges | None:
    """How the videos differ from the manifest of a work directory; None where that cannot be seen quickly."""
    manifest = Layout(Path(settings.work_dir))["manifest"]
    return changes_of_videos(settings.videos, manifest, settings.manifest, settings.media)


def explain(path: Path) -> dict[str, list[str]]:
    """Why a work directory, or one artefact in it, is not up to date.

    Returns:
        reasons by stage; an empty list means up to date.

    Raises:
        ArtefactError: `path` is not in a work directory, or no stage makes it.
    """
    work_dir = find_work_dir(path)
    states = work_dir_states(work_dir)
    if path.absolute() != work_dir:
        states = [state for state in states if state.output.absolute() == path.absolute()]
    if not states:
        raise ArtefactError(f"{path} is not the output of a stage; `lvt status {work_dir}` lists them")
    return {state.name: state.reasons for state in states}
