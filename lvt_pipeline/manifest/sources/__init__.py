"""The clips of a dataset: recognise the kind of a source, and pass it to the module for that kind.

Each kind has a file: `folders` (videos in a folder, at a URL, or matching a pattern), `tables` (CSV and JSON Lines),
`kinetics`, `ucf101`, `records` (BAIR and RLDS), `lerobot` and `frame_folders`. All give drafts: clips whose content is
not known yet.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings, SourceKind
from lvt_pipeline.manifest.sources.draft import Listing, is_record_file
from lvt_pipeline.manifest.sources.folders import is_pattern, is_video, list_folder, list_pattern
from lvt_pipeline.manifest.sources.frame_folders import list_frame_folders
from lvt_pipeline.manifest.sources.kinetics import COLUMNS, find_annotations, list_kinetics
from lvt_pipeline.manifest.sources.lerobot import list_lerobot
from lvt_pipeline.manifest.sources.records import list_bair, list_rlds
from lvt_pipeline.manifest.sources.tables import PATH_COLUMNS, csv_columns, list_table
from lvt_pipeline.manifest.sources.ucf101 import find_lists, list_ucf101
from lvt_pipeline.manifest.sources.walk import LeftOut, is_playlist, walk
from lvt_pipeline.video.episodes.lerobot import is_dataset
from lvt_pipeline.video.episodes.rlds import FEATURES_NAME
from lvt_pipeline.video.locations import absolute, as_written, exists, is_folder, is_url, parent_of
from lvt_pipeline.video.picture_folders import is_picture

KIND_NAMES: dict[SourceKind, str] = {
    "folder": "a folder of videos",
    "csv": "a CSV that lists videos",
    "jsonl": "JSON Lines that list videos",
    "kinetics": "Kinetics annotations",
    "bair": "BAIR tfrecords",
    "rlds": "an RLDS dataset",
    "lerobot": "a LeRobot dataset",
    "ucf101": "class folders with UCF101's split files",
    "frames": "folders of pictures",
}


def list_source(
    source: str, kind: SourceKind, media: str | None, settings: ManifestSettings, left_out: LeftOut
) -> Listing:
    """The clips of a source.

    Args:
        source: a location: path, URL or pattern.
        media: the folder or URL of the videos that a list names; the list's own folder when absent.

    Raises:
        ManifestError: it lists no clip, or something that cannot be used.
    """
    _require_source(source)
    if is_url(source) and kind in ("bair", "rlds", "lerobot", "frames", "ucf101"):
        raise ManifestError(f"{source}: {KIND_NAMES[kind]} are read from a local folder; copy it to this machine first")
    match kind:
        case "folder":
            return (list_pattern if is_pattern(source) else list_folder)(source, settings, left_out)
        case "csv" | "jsonl":
            return list_table(kind, source, media or parent_of(source), settings, left_out)
        case "kinetics":
            lists = find_annotations(source) if is_folder(source) else [source]
            videos = media or (source if is_folder(source) else parent_of(source))
            return list_kinetics(lists, videos, settings, left_out)
        case "ucf101":
            folder = find_lists(source) if is_folder(source) else None
            if folder is None:
                raise ManifestError(f"{source} holds no trainlist01.txt, nor does a folder in it")
            return list_ucf101(folder, media or source, settings, left_out)
        case "bair":
            return list_bair(source, settings, left_out)
        case "rlds":
            return list_rlds(source, settings, left_out)
        case "lerobot":
            return list_lerobot(source, settings)
        case "frames":
            return list_frame_folders(source, settings, left_out)


def recognise(source: str) -> SourceKind:
    """The kind of a source, by its name and its content.

    Raises:
        ManifestError: it does not exist or is nothing of the kind.
    """
    if is_pattern(source):
        return "folder"
    _require_source(source)
    if is_folder(source):
        return _recognise_folder(source)
    suffix = PurePosixPath(source).suffix.lower()
    if suffix == ".csv":
        columns = csv_columns(source)
        return "kinetics" if columns >= COLUMNS and not columns.intersection(PATH_COLUMNS) else "csv"
    if suffix == ".jsonl":
        return "jsonl"
    if is_record_file(PurePosixPath(source).name):
        return "rlds" if exists(f"{parent_of(source)}/{FEATURES_NAME}") else "bair"
    if is_playlist(source):
        raise ManifestError(f"{source} is a playlist or a script, which names other files; give the videos themselves")
    raise ManifestError(
        f"{source} is neither a folder nor a .csv, .jsonl or .tfrecords file; give the folder that holds the videos"
    )


def _recognise_folder(folder: str) -> SourceKind:
    if is_url(folder):
        return "folder"
    above = next((path for path in Path(folder).parents if is_dataset(path)), None)
    if above is not None:
        raise ManifestError(
            f"{folder} is a part of the LeRobot dataset {above}, whose files hold many episodes each; give {above}, or "
            "take whole files with --kind folder"
        )
    if find_annotations(folder):
        return "kinetics"
    if find_lists(folder) is not None:
        return "ucf101"
    holds: set[SourceKind] = set()
    for found in walk(folder, LeftOut()):
        if is_dataset(found.path):
            return "lerobot"
        if any(is_video(PurePosixPath(name)) for name in found.files):
            return "folder"
        if any(map(is_record_file, found.files)):
            holds.add("rlds" if FEATURES_NAME in found.files else "bair")
        if any(map(is_picture, found.files)):
            holds.add("frames")
    return next((kind for kind in ("rlds", "bair", "frames") if kind in holds), "folder")


def _require_source(source: str) -> None:
    if not is_url(source) and os.path.islink(source) and not os.path.exists(source):
        raise ManifestError(f"{source} is a broken link; give a folder of videos or a CSV that lists them")
    if not exists(source) and not is_pattern(source):
        raise ManifestError(f"{source} does not exist; give a folder of videos or a CSV that lists them")


def location_of(source: str | os.PathLike[str]) -> str:
    """A source as its user wrote it, as an absolute path or a URL."""
    return absolute(os.getcwd(), as_written(source))
