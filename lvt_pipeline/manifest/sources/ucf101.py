"""UCF101 and datasets with its layout: class folders of videos, and official lists of the videos for testing.

`trainlist01.txt` has lines `Class/video.avi 1`, `testlist01.txt` lines `Class/video.avi`, `classInd.txt` lines
`1 Class`; there are three such splits. The lists are in the source or in a folder of it (`ucfTrainTestlist`).
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import Listing, some, unique_ids
from lvt_pipeline.manifest.sources.folders import videos_below
from lvt_pipeline.manifest.sources.walk import LeftOut
from lvt_pipeline.storage import numbered_lines, read_text
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import absolute, is_url

DEFAULT_FOLD = 1


def find_lists(folder: str) -> Path | None:
    """The folder that holds UCF101's split files: the source itself, or one right below it."""
    if is_url(folder):
        return None
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries)
    except OSError:
        return None
    return next((Path(path) for path in (folder, *below) if os.path.isfile(f"{path}/trainlist01.txt")), None)


def list_ucf101(lists: Path, media: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """Every video of the class folders below `media`, split of the lists of one fold.

    Ids are `Class/video`. A listed video that is not there is listed as missing; the content decides the split of a
    video that is in neither list.

    Raises:
        ManifestError: a list is missing or contradicts itself, or not one listed video is there.
    """
    left_out.ignored.update(str(path) for path in lists.glob("*.txt"))
    splits = _read_lists(lists, settings.fold or DEFAULT_FOLD)
    found = {PurePosixPath(*name.parts[-2:]): name for name in videos_below(media, left_out) if len(name.parts) >= 2}
    missing = [name for name in splits if name not in found]
    if len(missing) == len(splits):
        raise ManifestError(
            f"none of the {len(splits):,} videos in {lists} is in {media}: looked for {missing[0]}; "
            f"--media names the folder that holds the class folders"
        )
    names = sorted({*splits, *found}, key=lambda name: name.parts)
    drafts = [
        Clip(
            id=clip_id,
            source=absolute(media, str(found.get(name, name))),
            split=splits.get(name, "") if settings.split == "auto" else "",
            label=name.parts[0] if settings.label == "folder" else None,
        )
        for name, clip_id in zip(names, unique_ids(names), strict=True)
    ]
    unlisted = [str(name) for name in found if name not in splits]
    remark = f"videos in neither list, whose split their content decides: {len(unlisted):,} ({some(unlisted)})"
    remarks = [remark] if unlisted else []
    return Listing(drafts, remarks)


def _read_lists(folder: Path, fold: int) -> dict[PurePosixPath, str]:
    """Split by `Class/video.avi`."""
    classes = _read_classes(folder / "classInd.txt")
    splits: dict[PurePosixPath, str] = {}
    for split in ("train", "test"):
        path = folder / f"{split}list{fold:02d}.txt"
        for number, line in _lines(path):
            name, _, class_number = line.partition(" ")
            video = PurePosixPath(name)
            if len(video.parts) != 2:
                raise ManifestError(f"{path}:{number}: {line[:80]!r} is not Class/video.avi")
            if class_number and classes and classes.get(class_number) != video.parts[0]:
                raise ManifestError(
                    f"{path}:{number}: {video.parts[0]} is not class {class_number} of {folder / 'classInd.txt'}"
                )
            if splits.setdefault(video, split) != split:
                raise ManifestError(f"{path}:{number}: {name} is already in the list of {splits[video]}")
    return splits


def _read_classes(path: Path) -> dict[str, str]:
    """Class names by number; empty when the file is not there."""
    if not path.exists():
        return {}
    return {number: name.strip() for number, _, name in (line.partition(" ") for _, line in _lines(path))}


def _lines(path: Path) -> list[tuple[int, str]]:
    text = read_text(path, error=ManifestError, kind="a list of videos")
    return [(number, line.strip()) for number, line in numbered_lines(text)]
