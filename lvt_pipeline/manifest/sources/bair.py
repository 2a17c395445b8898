"""BAIR robot pushing as published: folders `train` and `test` of tfrecord files, one trajectory per record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import DecodeError, ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import (
    BAIR_FPS,
    RECORD_EXTENSIONS,
    Draft,
    Listing,
    is_record_file,
    split_of_folder,
    unique_ids,
)
from lvt_pipeline.manifest.sources.folders import also, is_video
from lvt_pipeline.manifest.sources.walk import LeftOut, walk
from lvt_pipeline.video.bair import CAMERAS, parse_trajectory
from lvt_pipeline.video.locations import is_lfs_pointer
from lvt_pipeline.video.tfrecords import RecordIndex, index_records, read_record


def list_bair(source: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every record of every tfrecord file below a folder, in the order of paths; or of the one file given.

    An id is the file's path without its ending and the record's number. Records behind a place where a file is damaged
    cannot be found: one clip stands for them, and ingest records why.

    Raises:
        ManifestError: there is no record file, or it does not hold trajectories.
    """
    root = Path(source)
    if root.is_file():
        root, names = root.parent, [PurePosixPath(root.name)]
    else:
        names = sorted(_record_files(source, left_out), key=lambda name: name.parts)
    indices = {name: index for name in names if (index := _usable_index(root, name, left_out)) is not None}
    names = list(indices)
    if not names:
        raise ManifestError(
            f"{source} holds no tfrecord file: none ends in {' or '.join(sorted(RECORD_EXTENSIONS))}{also(left_out)}"
        )
    cameras = CAMERAS if settings.camera == "both" else (settings.camera or CAMERAS[0],)
    drafts: list[Draft] = []
    remarks: list[str] = []
    for number, (name, file_id) in enumerate(zip(names, unique_ids(names), strict=True)):
        path = str(root / name)
        index = indices[name]
        if number == 0:
            _require_trajectories(path, index, cameras)
        if index.problem is not None:
            remarks.append(f"{index.problem}; nothing after it can be found")
        shared = Draft(
            id=file_id,
            source=path,
            split=split_of_folder(name, settings),
            kind="bair",
            fps=settings.fps or BAIR_FPS,
        )
        drafts += _record_drafts(shared, len(index.places) + (index.problem is not None), cameras)
    return Listing(drafts, remarks)


def _record_drafts(shared: Draft, num_records: int, cameras: Sequence[str]) -> Iterator[Draft]:
    """The clips of the records of a file, each with the facts that they share."""
    for record in range(num_records):
        for camera in cameras:
            suffix = f"/{camera}" if len(cameras) > 1 else ""
            yield replace(shared, id=f"{shared.id}/{record:03d}{suffix}", record=record, camera=camera)


def _record_files(source: str, left_out: LeftOut) -> Iterator[PurePosixPath]:
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


def _require_trajectories(path: str, index: RecordIndex, cameras: tuple[str, ...]) -> None:
    """Look into the first record, so that another dataset is one error and not a failure per clip."""
    try:
        payload = read_record(path, 0, index)
    except DecodeError:
        return  # damaged: ingest records a failure for each record
    for camera in cameras:
        try:
            parse_trajectory(payload, camera, f"{path}: record 0")
        except DecodeError as error:
            raise ManifestError(f"{error}; this is not BAIR's format") from error
