"""Videos below a folder, or those that a pattern such as `videos/**/*.mp4` matches; on this machine or at a URL."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import (
    Listing,
    is_record_file,
    label_of_folder,
    split_of_folder,
    unique_ids,
)
from lvt_pipeline.manifest.sources.walk import LeftOut, describe_left_out, is_playlist, walk
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import absolute, exists, files_below, files_matching, is_lfs_pointer, is_url
from lvt_pipeline.video.picture_folders import is_picture

# Files with these endings are listed even if they turn out to be broken: decoding decides, and records the reason.
# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".gxf", ".ivf", ".m1v", ".m2p",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg",
    ".mpv", ".mts", ".mxf", ".nut", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".roq", ".tod", ".tp", ".trp",
    ".ts", ".vob", ".webm", ".wmv", ".wtv", ".xvid", ".y4m",
})
# fmt: on


# `clip-000.action.npy` is the array `action` of `clip-000.mp4`.
_ARRAY_BESIDE = re.compile(r"([^.].*)\.([A-Za-z0-9_-]+)\.npy")


def list_folder(folder: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every video below a folder; ids are relative paths without their ending.

    Raises:
        ManifestError: there is none.
    """
    names = sorted(videos_below(folder, left_out), key=lambda name: name.parts)
    if not names:
        raise ManifestError(
            f"{folder} holds no video: no file in it or its subfolders ends in one of "
            f"{' '.join(sorted(VIDEO_EXTENSIONS))}{also(left_out)}"
        )
    return _listed(folder, names, settings)


def list_pattern(pattern: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every file that a pattern matches; ids count from the last folder without a wildcard.

    A pattern that ends in a plain ending (`*.mp4`, `*.bin`) is taken at its word, else only videos are listed.

    Raises:
        ManifestError: there is none.
    """
    root = _fixed_part(pattern)
    takes_all = not glob.has_magic(PurePosixPath(pattern).suffix or "*")
    found = files_matching(pattern, root) if is_url(pattern) else _files_matching(pattern, root, left_out)
    names = []
    for name in sorted(found, key=lambda name: name.parts):
        if is_playlist(name.name):
            left_out.add("playlists", str(name))
        elif not takes_all and not is_video(name):
            left_out.add_other(str(name))
        elif not is_url(pattern) and is_lfs_pointer(f"{root}/{name}"):
            left_out.add("git-lfs", str(name))
        else:
            names.append(name)
    if not names:
        raise ManifestError(
            f"{pattern} matches no video; ** stands for any number of folders, and quotes keep it whole{also(left_out)}"
        )
    return _listed(root, names, settings)


def is_pattern(location: str) -> bool:
    """Whether a source is a pattern: it has wildcards and is not a file or folder itself."""
    return glob.has_magic(location) and not exists(location)


def also(left_out: LeftOut) -> str:
    """The files left out, as the end of a message about an empty listing."""
    line = describe_left_out(left_out.to_json())
    return f"; {line}" if line else ""


def _files_matching(pattern: str, root: str, left_out: LeftOut) -> Iterator[PurePosixPath]:
    parts = PurePosixPath(pattern).parts[len(PurePosixPath(root).parts) :]
    for folder in walk(root, left_out, None if "**" in parts else len(parts) - 1):
        for file in folder.files:
            name = PurePosixPath(folder.inside(file))
            if _matches(name.parts, parts):
                yield name


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern part by part, as in `glob`; `**` is any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        rest = pattern[1:] or ("*",)
        return any(_matches(names[skipped:], rest) for skipped in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _fixed_part(pattern: str) -> str:
    parts = pattern.split("/")
    return "/".join(parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])


def _listed(root: str, names: list[PurePosixPath], settings: ManifestSettings) -> Listing:
    arrays = _arrays_beside(root, names)
    return Listing(
        [
            Clip(
                id=clip_id,
                source=absolute(root, str(name)),
                split=split_of_folder(name, settings) or "",
                label=label_of_folder(name, settings),
                arrays=arrays.get(name.with_suffix(""), {}),
            )
            for name, clip_id in zip(names, unique_ids(names), strict=True)
        ]
    )


def _arrays_beside(root: str, names: Iterable[PurePosixPath]) -> dict[PurePosixPath, dict[str, str]]:
    """Files `<stem>.<array>.npy` in the folders of videos, by path without the endings and by array."""
    if is_url(root):
        files: Iterable[PurePosixPath] = files_below(root)
    else:
        folders = {name.parent for name in names}
        files = [folder / file for folder in folders for file in sorted(os.listdir(os.path.join(root, folder)))]
    found: dict[PurePosixPath, dict[str, str]] = {}
    for file in files:
        if (match := _ARRAY_BESIDE.fullmatch(file.name)) is not None:
            found.setdefault(file.with_name(match[1]), {})[match[2]] = absolute(root, str(file))
    return found


def _is_array_beside(name: PurePosixPath, videos: Collection[PurePosixPath]) -> bool:
    match = _ARRAY_BESIDE.fullmatch(name.name)
    return match is not None and name.with_name(match[1]) in videos


def is_video(name: PurePosixPath) -> bool:
    """Whether a file is a video, by its ending."""
    return name.suffix.lower() in VIDEO_EXTENSIONS


def videos_below(folder: str, left_out: LeftOut) -> Iterator[PurePosixPath]:
    """Videos below a folder or URL, relative to it; everything else is counted."""
    if is_url(folder):
        paths = files_below(folder)
        videos = {path.with_suffix("") for path in paths if is_video(path)}
        for path in paths:
            if any(part.startswith(".") for part in path.parts):
                left_out.add("hidden", str(path))
            elif is_video(path):
                yield path
            elif not _is_array_beside(path, videos):
                _count(path.name, str(path), left_out)
        return
    for found in walk(folder, left_out):
        pictures = False
        videos = {PurePosixPath(name).with_suffix("") for name in found.files if is_video(PurePosixPath(name))}
        for name in found.files:
            if is_video(PurePosixPath(name)):
                if is_lfs_pointer(f"{found.path}/{name}"):
                    left_out.add("git-lfs", found.inside(name))
                else:
                    yield PurePosixPath(found.inside(name))
            elif is_picture(name):
                pictures = True
            elif not _is_array_beside(PurePosixPath(name), videos):
                _count(name, found.inside(name), left_out)
        if pictures:
            left_out.add("pictures", found.name or ".")


def _count(name: str, path: str, left_out: LeftOut) -> None:
    if is_playlist(name):
        left_out.add("playlists", path)
    elif is_record_file(name):
        left_out.add("records", path)
    else:
        left_out.add_other(path)
