"""Videos below a folder, or those that a pattern such as `videos/**/*.mp4` matches; on this machine or at a URL."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.sources.draft import (
    Draft,
    Listing,
    ManifestSettings,
    label_of_folder,
    split_of_folder,
    unique_ids,
)
from lvt_pipeline.video.locations import absolute, exists, files_below, files_matching, is_url

# Files with these endings are listed even if they turn out to be broken: decoding decides, and says why.
# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on


def list_folder(folder: str, settings: ManifestSettings) -> Listing:
    """Every video below a folder; ids are relative paths without their ending.

    Raises:
        ManifestError: there is none.
    """
    names = sorted(video_files(folder), key=lambda name: name.parts)
    if not names:
        raise ManifestError(
            f"{folder} holds no video: no file in it or its subfolders ends in one of "
            f"{' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    return _listed(folder, names, settings)


def list_pattern(pattern: str, settings: ManifestSettings) -> Listing:
    """Every file that a pattern matches; ids count from the last folder without a wildcard.

    A pattern that ends in a plain ending (`*.mp4`, `*.bin`) is taken at its word, else only videos are listed.

    Raises:
        ManifestError: there is none.
    """
    root = _fixed_part(pattern)
    takes_all = not glob.has_magic(PurePosixPath(pattern).suffix or "*")
    if is_url(pattern):
        found = files_matching(pattern, root)
    else:
        paths = [Path(path) for path in glob.iglob(pattern, recursive=True)]
        found = [PurePosixPath(path.relative_to(root).as_posix()) for path in paths if path.is_file()]
    names = sorted((name for name in found if takes_all or is_video(name)), key=lambda name: name.parts)
    if not names:
        raise ManifestError(
            f"{pattern} matches no video; ** stands for any number of folders, and quotes keep it whole"
        )
    return _listed(root, names, settings)


def is_pattern(location: str) -> bool:
    """Whether a source is a pattern: it has wildcards and is no file or folder itself."""
    return glob.has_magic(location) and not exists(location)


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    return "/".join(parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])


def _listed(root: str, names: list[PurePosixPath], settings: ManifestSettings) -> Listing:
    return Listing(
        [
            Draft(
                id=clip_id,
                source=absolute(root, str(name)),
                split=split_of_folder(name, settings),
                label=label_of_folder(name, settings),
            )
            for name, clip_id in zip(names, unique_ids(names), strict=True)
        ]
    )


def is_video(name: PurePosixPath) -> bool:
    """Whether a file is a video, by its ending."""
    return name.suffix.lower() in VIDEO_EXTENSIONS


def video_files(folder: str) -> Iterator[PurePosixPath]:
    """Videos below a folder or URL, relative to it, hidden ones left out."""
    if is_url(folder):
        yield from filter(is_video, files_below(folder))
        return
    for parent, _, files in walk(folder):
        for name in files:
            if not name.startswith(".") and is_video(PurePosixPath(name)):
                yield PurePosixPath(Path(parent, name).relative_to(folder).as_posix())


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` over folders that are not hidden, sorted. Links are followed; no folder is entered twice."""
    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, folders, files
