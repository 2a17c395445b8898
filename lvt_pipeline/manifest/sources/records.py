"""Records of tfrecord files, one episode each: BAIR robot pushing as published, and datasets in the RLDS layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import (
    RECORD_FPS,
    Listing,
    chosen_cameras,
    is_record_file,
    split_of_folder,
    splits_by_name,
    unique_ids,
)
from lvt_pipeline.manifest.sources.folders import also, is_video
from lvt_pipeline.manifest.sources.walk import LeftOut, walk
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.episodes.bair import CAMERAS, parse_trajectory
from lvt_pipeline.video.episodes.rlds import FEATURES_NAME, parse_episode, read_features
from lvt_pipeline.video.episodes.tfrecords import RecordIndex, index_records, read_record
from lvt_pipeline.video.episodes.trajectory import Trajectory
from lvt_pipeline.video.locations import is_lfs_pointer

_RLDS_NAME = re.compile(r"(.*-)?(?P<split>[^-]+)\.tfrecords?(?P<shard>-\d+)?(-of-\d+)?", re.IGNORECASE)

Parse = Callable[[bytes, str, str], Trajectory]  # of a payload, the camera, and the place named in errors


def list_bair(source: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every record of every tfrecord file below a folder, in the order of paths; or of the one file given.

    An id is the file's path without its ending and the record's number. Records behind a place where a file is damaged
    cannot be found: one clip stands for them, and ingest records why.

    Raises:
        ManifestError: there is no record file, or it does not hold trajectories.
    """
    root, indices = _record_files(source, left_out)
    first, index = next(iter(indices.items()))
    cameras = CAMERAS if settings.camera in ("both", "all") else (settings.camera or CAMERAS[0],)
    remedy = f"this is not BAIR's format, and RLDS has a {FEATURES_NAME} next to its records"
    _require_episodes(str(root / first), index, cameras, parse_trajectory, remedy)
    drafts: list[Clip] = []
    for name, file_id in zip(indices, unique_ids(list(indices)), strict=True):
        split = split_of_folder(name, settings)
        shared = Clip(
            id=file_id, source=str(root / name), split=split or "", kind="bair", fps=settings.fps or RECORD_FPS
        )
        drafts += _record_drafts(shared, indices[name], cameras)
    return Listing(drafts, _remarks(indices.values()))


def list_rlds(source: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every episode of the RLDS datasets below a folder, as `list_bair`; the names of files give splits.

    Raises:
        ManifestError: there is no dataset, it has no such camera, or its records are not the episodes that its
            `features.json` describes.
    """
    root, indices = _record_files(source, left_out)
    splits = dict(zip(indices, splits_by_name([_rlds_name(name)[1] for name in indices], settings), strict=True))
    drafts: list[Clip] = []
    remarks: list[str] = []
    for folder, names in groupby(indices, key=lambda name: name.parent):
        features = read_features(root / folder)
        cameras, remark = chosen_cameras([*features.cameras], settings)
        remarks += [f"{folder}: {remark}" if folder.name else remark] if remark else []
        for number, name in enumerate(names):
            path, index = str(root / name), indices[name]
            if number == 0:
                remedy = f"it is not an episode that {FEATURES_NAME} describes"
                _require_episodes(path, index, cameras, partial(parse_episode, features), remedy)
            file_id, fps = str(folder / _rlds_name(name)[0]), settings.fps or RECORD_FPS
            shared = Clip(id=file_id, source=path, split=splits[name] or "", kind="rlds", fps=fps)
            drafts += _record_drafts(shared, index, cameras)
    return Listing(drafts, [*remarks, *_remarks(indices.values())])


def _rlds_name(name: PurePosixPath) -> tuple[str, str]:
    """The name of a file without its ending, and the split in it: `bridge-train-00000` and `train`."""
    match = _RLDS_NAME.fullmatch(name.name)
    assert match is not None, "it is a record file"
    return f"{match[1] or ''}{match['split']}{match['shard'] or ''}", match["split"]


def _remarks(indices: Iterable[RecordIndex]) -> list[str]:
    return [f"{index.problem}; nothing after it can be found" for index in indices if index.problem is not None]


def _record_drafts(shared: Clip, index: RecordIndex, cameras: Sequence[str]) -> Iterator[Clip]:
    """The clips of the records of a file, each with the facts that they share."""
    for record in range(len(index.places) + (index.problem is not None)):
        for camera in cameras:
            suffix = f"/{camera}" if len(cameras) > 1 else ""
            yield replace(shared, id=f"{shared.id}/{record:03d}{suffix}", record=record, camera=camera)


def _record_files(source: str, left_out: LeftOut) -> tuple[Path, dict[PurePosixPath, RecordIndex]]:
    """The tfrecord files below a folder, or the one given, and where their records are."""
    root = Path(source)
    if root.is_file():
        root, names = root.parent, [PurePosixPath(root.name)]
    else:
        names = sorted(_names_below(source, left_out), key=lambda name: name.parts)
    indices = {name: index for name in names if (index := _usable_index(root, name, left_out)) is not None}
    if not indices:
        raise ManifestError(f"{source} holds no tfrecord file with records{also(left_out)}")
    return root, indices


def _names_below(source: str, left_out: LeftOut) -> Iterator[PurePosixPath]:
    for folder in walk(source, left_out):
        for name in folder.files:
            if is_record_file(name):
                yield PurePosixPath(folder.inside(name))
            elif is_video(PurePosixPath(name)):
                left_out.add("videos", folder.inside(name))
            else:
                left_out.add_other(folder.inside(name))


def _usable_index(root: Path, name: PurePosixPath, left_out: LeftOut) -> RecordIndex | None:
    """Where the records of a file are; None when there are none to be had, which is counted."""
    path = str(root / name)
    if is_lfs_pointer(path):
        left_out.add("git-lfs", str(name))
        return None
    try:
        index = index_records(path)
    except OSError:
        left_out.add("unreadable", str(name))
        return None
    if index.compressed:
        left_out.add("compressed-records", str(name))
        return None
    if not index.places and index.problem is None:
        left_out.add("empty-records", str(name))
        return None
    return index


def _require_episodes(path: str, index: RecordIndex, cameras: Sequence[str], parse: Parse, remedy: str) -> None:
    """Look into the first record, so that another dataset is one error and not a failure per clip."""
    try:
        payload = read_record(path, 0, index)
    except DecodeError:
        return  # damaged: ingest records a failure for each record
    for camera in cameras:
        try:
            parse(payload, camera, f"{path}: record 0")
        except DecodeError as error:
            if error.reason == "unreadable":
                raise ManifestError(f"{error}; {remedy}") from error
