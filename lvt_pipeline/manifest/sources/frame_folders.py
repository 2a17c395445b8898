"""Clips that are folders of pictures, one per frame, such as `class/clip/000001.png`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.sources.draft import (
    PICTURE_FPS,
    Draft,
    Listing,
    ManifestSettings,
    label_of_folder,
    refuse_odd_name,
    split_of_folder,
)
from lvt_pipeline.manifest.sources.folders import walk
from lvt_pipeline.video.picture_folders import PICTURE_EXTENSIONS, is_picture


def list_frame_folders(source: str, settings: ManifestSettings) -> Listing:
    """Every folder that holds pictures, the source itself included; ids are relative paths.

    Raises:
        ManifestError: there is none.
    """
    root = Path(source)
    if not root.is_dir():
        raise ManifestError(f"{source} is not a folder; give the one that holds a folder of pictures per clip")
    folders = [Path(parent) for parent, _, files in walk(source) if any(map(is_picture, files))]
    if not folders:
        raise ManifestError(
            f"{source} holds no picture: no file in it or its subfolders ends in one of "
            f"{' '.join(sorted(PICTURE_EXTENSIONS))}"
        )
    names = sorted((PurePosixPath(path.relative_to(root).as_posix()) for path in folders), key=lambda name: name.parts)
    for name in names:
        refuse_odd_name(str(name))
    return Listing(
        [
            Draft(
                id=str(name) if name.parts else PurePosixPath(os.path.abspath(source)).name,
                source=os.path.normpath(os.path.join(os.path.abspath(source), name)),
                split=split_of_folder(name, settings),
                label=label_of_folder(name, settings),
                kind="frames",
                fps=settings.fps or PICTURE_FPS,
            )
            for name in names
        ]
    )
