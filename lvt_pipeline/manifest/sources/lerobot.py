"""LeRobot v3 folders: one clip per episode and chosen camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import Listing, chosen_cameras, splits_by_name
from lvt_pipeline.manifest.sources.walk import LeftOut, walk
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.episodes.lerobot import INFO, LeRobotDataset, is_dataset, read_dataset


def list_lerobot(source: str, settings: ManifestSettings) -> Listing:
    """Every episode of the datasets in a folder or below it; ids are `episode_000012` below the dataset's folder.

    Raises:
        ManifestError: there is no dataset, or one is not v3, has no such camera or damaged metadata.
        LVTError: pyarrow is not installed.
    """
    roots = [folder.path for folder in walk(source, LeftOut()) if is_dataset(folder.path)]
    if not roots:
        raise ManifestError(f"{source} holds no LeRobot dataset: there is no {INFO} with a codebase_version in it")
    drafts: list[Clip] = []
    remarks: list[str] = []
    for root in roots:
        dataset = read_dataset(Path(root))
        short = {name: short for short, name in dataset.cameras.items()}
        wanted = ",".join(short.get(name.strip(), name) for name in (settings.camera or "").split(","))
        cameras, remark = chosen_cameras([*dataset.cameras], replace(settings, camera=wanted or None))
        below = Path(root).relative_to(source)
        remarks += [f"{below}: {remark}" if below.name else remark] if remark else []
        drafts += _drafts(dataset, cameras, str(below / "episode_") if below.name else "episode_", settings)
    return Listing(drafts, remarks)


def _drafts(dataset: LeRobotDataset, cameras: list[str], prefix: str, settings: ManifestSettings) -> list[Clip]:
    named = {number: split for split, numbers in dataset.splits.items() for number in numbers}
    episodes = sorted(dataset.episodes.values(), key=lambda episode: episode.number)
    splits = splits_by_name([named.get(episode.number, "") for episode in episodes], settings)
    return [
        Clip(
            id=f"{prefix}{episode.number:06d}{f'/{camera}' if len(cameras) > 1 else ''}",
            source=episode.videos[dataset.cameras[camera]].path,
            split=split or "",
            label=None if settings.label == "none" else episode.tasks,
            kind="lerobot",
            record=episode.number,
            camera=dataset.cameras[camera],
            fps=dataset.fps,
        )
        for episode, split in zip(episodes, splits, strict=True)
        for camera in cameras
    ]
