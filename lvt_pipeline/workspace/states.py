"""The state of every stage of a work directory, the videos included: what `lvt run` would do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.provenance import finished_record
from lvt_pipeline.workspace.clip_changes import changes_of_videos, has_videos
from lvt_pipeline.workspace.layout import ARTEFACTS, BY_ROLE, FRAMES_MEMORY, Layout
from lvt_pipeline.workspace.settings import PipelineSettings, find_work_dir, has_artefacts, settings_of
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
        memory = layout.work_dir / FRAMES_MEMORY
        if artefact.role == "frames":
            stage = replace(stage, remembered=memory)
        elif artefact.needs_pixels:  # deleting frames does not make an outdated network current
            stage = replace(stage, remembered_sources={"frames": memory})
        stages.append(stage)
    return stages


def states_of(settings: PipelineSettings, *, replaced: Collection[str] = (), look: bool = True) -> list[StageState]:
    """The state of every stage, in order, without changing anything.

    Args:
        replaced: roles of networks that will be trained unless they are done.
        look: whether the videos are compared with the manifest.
    """
    return list(_states(stages_of(settings), replaced, settings if look else None))


def work_dir_states(work_dir: Path) -> list[StageState]:
    """The state of every stage of an existing directory, whether `lvt run` or single commands made it.

    Without a pipeline file nothing says which settings are wanted, so those of the outputs count as such.

    Raises:
        ArtefactError: there is no work directory at this path.
    """
    if Layout(work_dir).settings.exists() or not has_artefacts(work_dir):
        return states_of(settings_of(work_dir))
    return list(_states(_recorded_stages(work_dir), (), None))


def states_by_role(work_dir: Path) -> dict[str, StageState]:
    """The state of every output of a directory, by role."""
    return {artefact.role: state for artefact, state in zip(ARTEFACTS, work_dir_states(work_dir), strict=True)}


def _recorded_stages(work_dir: Path) -> list[Stage]:
    """The stages of a directory without a pipeline file, as their records describe them."""
    layout, stages = Layout(work_dir), []
    for artefact in ARTEFACTS:
        record = finished_record(layout[artefact.role])
        named = artefact.inputs if record is None else record.inputs
        sources = {role: layout[source] for role, source in artefact.inputs.items() if role in named}
        settings = record.settings if record is not None else {}
        stages.append(new_stage(artefact.role, layout[artefact.role], settings, sources))
    return stages


def _states(
    stages: Sequence[Stage], replaced: Collection[str], looks_at: PipelineSettings | None
) -> Iterator[StageState]:
    """The states of stages, in order; `looks_at` names the videos that are compared with the manifest."""
    changing: dict[str, str] = {}  # outputs that will change, and how
    unusable: set[str] = set()  # those that no network trained on the present ones can be used with
    has_frozen_encoder = False  # a tokenizer that will be trained keeps its codes
    for stage in stages:
        state = stage.state()
        if stage.role == "manifest" and looks_at is not None:
            state = _with_videos(state, looks_at)
        following = [role for role in BY_ROLE[stage.role].inputs.values() if role in changing]
        if stage.role == "codes" and has_frozen_encoder:
            following = [role for role in following if role != "vqvae"]
        if following and state.state in ("done", "outdated"):
            is_outdated = stage.is_network and unusable.isdisjoint(following)
            reasons = _following({role: changing[role] for role in following})
            fits = is_outdated or stage.role != "prior"
            state = replace(state, state="outdated" if is_outdated else "stale", reasons=reasons, fits=fits)
        if state.state == "stale" or (state.state != "done" and stage.role in replaced):
            has_frozen_encoder |= stage.role == "vqvae" and _freezes_encoder(stage)
            changing[stage.role] = "; ".join(state.reasons) if not following else changing[following[0]]
            if _makes_networks_unusable(stage, state, following):
                unusable.add(stage.role)
        yield state


def _following(changes: Mapping[str, str]) -> list[str]:
    """How inputs will change; those that change in one way share a line."""
    by_change: dict[str, list[str]] = {}
    for role, change in changes.items():
        by_change.setdefault(change, []).append(BY_ROLE[role].title.lower())
    return [f"{', '.join(titles)} will change: {change}" for change, titles in by_change.items()]


def _freezes_encoder(stage: Stage) -> bool:
    training = stage.plain_settings.get("training", {})
    return bool(training.get("freeze") == "encoder")


def _makes_networks_unusable(stage: Stage, state: StageState, following: Collection[str]) -> bool:
    """Whether the output will be of another geometry or another tokenizer."""
    record = state.record
    if stage.role == "frames" and record is not None:
        return bool(record.settings.get("geometry") != stage.plain_settings.get("geometry"))
    if stage.role != "codes":
        return False
    tokenizer = stage.inputs().get("tokenizer")
    return "vqvae" in following or (record is not None and tokenizer not in (None, record.inputs.get("tokenizer")))


def _with_videos(state: StageState, settings: PipelineSettings) -> StageState:
    """The state of the manifest after a look at the videos."""
    if state.state != "done":
        return state
    changes = changes_of_videos(settings.videos, state.output, settings.manifest, settings.media)
    if changes is None:
        return replace(state, note=_why_no_look(settings, state.output))
    return replace(state, state="stale", reasons=[str(changes)]) if changes else state


def _why_no_look(settings: PipelineSettings, manifest: Path) -> str:
    if has_videos(settings.videos, manifest, settings.manifest, settings.media):
        return f"{settings.videos} is at a URL, so it was not searched for new videos"
    return f"there are no videos in {settings.videos}; the clips of {manifest} are used as they are"


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
