"""BAIR robot pushing as published: folders `train` and `test` of tfrecord files, one trajectory per record."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import DecodeError, LVTError, ManifestError
from lvt_pipeline.manifest.sources.draft import BAIR_FPS, Draft, Listing, ManifestSettings, split_of_folder, unique_ids
from lvt_pipeline.manifest.sources.folders import walk
from lvt_pipeline.video.bair import CAMERAS, parse_trajectory
from lvt_pipeline.video.tfrecords import RecordIndex, index_records, read_record

RECORD_EXTENSIONS = frozenset({".tfrecord", ".tfrecords"})


def is_record_file(name: str) -> bool:
    """Whether a file holds records, by its ending; hidden files are none."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in RECORD_EXTENSIONS


def list_bair(source: str, settings: ManifestSettings) -> Listing:
    """Every record of every tfrecord file below a folder, in the order of paths; or of the one file given.

    An id is the file's path without its ending and the record's number. Records behind a place where a file is damaged
    cannot be found: one clip stands for them, and ingest records why.

    Raises:
        ManifestError: there is no record file, or it holds something else than trajectories.
    """
    root = Path(source)
    if root.is_file():
        root, names = root.parent, [PurePosixPath(root.name)]
    else:
        below = [Path(parent, name) for parent, _, files in walk(source) for name in filter(is_record_file, files)]
        names = sorted(
            (PurePosixPath(path.relative_to(root).as_posix()) for path in below), key=lambda name: name.parts
        )
    if not names:
        raise ManifestError(f"{source} holds no tfrecord file: none ends in {' or '.join(sorted(RECORD_EXTENSIONS))}")
    cameras = CAMERAS if settings.camera == "both" else (settings.camera or CAMERAS[0],)
    drafts: list[Draft] = []
    remarks: list[str] = []
    for number, (name, file_id) in enumerate(zip(names, unique_ids(names), strict=True)):
        path = str(root / name)
        index = _index(path)
        if number == 0:
            _refuse_other_records(path, index, cameras)
        if index.problem is not None:
            remarks.append(f"{index.problem}; nothing after it can be found")
        for record in range(len(index.places) + (index.problem is not None)):
            for camera in cameras:
                drafts.append(
                    Draft(
                        id=f"{file_id}/{record:03d}" + (f"/{camera}" if len(cameras) > 1 else ""),
                        source=path,
                        split=split_of_folder(name, settings),
                        kind="bair",
                        record=record,
                        camera=camera,
                        fps=settings.fps or BAIR_FPS,
                    )
                )
    if not drafts:
        raise ManifestError(f"{source} holds {len(names)} tfrecord files and not one record")
    return Listing(drafts, remarks)


def _index(path: str) -> RecordIndex:
    try:
        return index_records(path)
    except OSError as error:
        raise LVTError(f"{path} cannot be read: {error.strerror}; check its owner and mode") from error


def _refuse_other_records(path: str, index: RecordIndex, cameras: tuple[str, ...]) -> None:
    """Look into the first record, so that another dataset is one error and not a failure per clip."""
    try:
        payload = read_record(path, 0, index)
    except DecodeError:
        return  # damaged: ingest says so, record by record
    for camera in cameras:
        try:
            parse_trajectory(payload, camera, f"{path}: record 0")
        except DecodeError as error:
            raise ManifestError(f"{error}; this is not BAIR's format") from error
