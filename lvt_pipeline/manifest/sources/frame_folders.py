"""Clips that are folders of pictures, one per frame, such as `class/clip/000001.png`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import (
    PICTURE_FPS,
    Listing,
    is_record_file,
    label_of_folder,
    split_of_folder,
)
from lvt_pipeline.manifest.sources.folders import also, is_video
from lvt_pipeline.manifest.sources.walk import Folder, LeftOut, walk
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import is_lfs_pointer
from lvt_pipeline.video.picture_folders import PICTURE_EXTENSIONS, is_animated, is_picture


def list_frame_folders(source: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every folder that holds pictures, the source itself included; ids are relative paths.

    Raises:
        ManifestError: there is none.
    """
    root = Path(source)
    if not root.is_dir():
        raise ManifestError(f"{source} is not a folder; give the one that holds a folder of pictures per clip")
    names = sorted(
        (PurePosixPath(folder) for folder in _picture_folders(source, left_out)), key=lambda name: name.parts
    )
    if not names:
        raise ManifestError(
            f"{source} holds no picture: no file in it or its subfolders ends in one of "
            f"{' '.join(sorted(PICTURE_EXTENSIONS))}{also(left_out)}"
        )
    return Listing(
        [
            Clip(
                id=str(name) if name.parts else PurePosixPath(os.path.abspath(source)).name,
                source=os.path.normpath(os.path.join(os.path.abspath(source), name)),
                split=split_of_folder(name, settings) or "",
                label=label_of_folder(name, settings),
                kind="frames",
                fps=settings.fps or PICTURE_FPS,
            )
            for name in names
        ]
    )


def _picture_folders(source: str, left_out: LeftOut) -> list[str]:
    found = []
    for folder in walk(source, left_out):
        pictures = [name for name in folder.files if is_picture(name)]
        for name in folder.files:
            if is_video(PurePosixPath(name)):
                left_out.add("videos", folder.inside(name))
            elif is_record_file(name):
                left_out.add("records", folder.inside(name))
            elif not is_picture(name):
                left_out.add_other(folder.inside(name))
        if pictures and _is_usable(folder, pictures, left_out):
            found.append(folder.name)
    return found


def _is_usable(folder: Folder, pictures: list[str], left_out: LeftOut) -> bool:
    """Whether the pictures of a folder are frames; the others of a clip are checked when it is decoded."""
    if any(is_picture(name) and reason != "special" for name, reason in folder.odd.items()):
        left_out.add("incomplete", folder.name or ".")
        return False
    for name in (pictures[0], pictures[-1]):
        path = Path(folder.path, name)
        reason = "git-lfs" if is_lfs_pointer(str(path)) else "animated" if is_animated(path) else None
        if reason is not None:
            left_out.add(reason, folder.inside(name))
            return False
    return True
