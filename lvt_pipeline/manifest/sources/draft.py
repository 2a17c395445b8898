"""The result of every kind of source: clips whose content is not known yet; and the rule of their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.clips import SPLITS, Clip
from lvt_pipeline.video.episodes.array_files import ARRAY_NAME, is_array_file
from lvt_pipeline.video.locations import absolute

# Of records and of folders of pictures, which hold no times; only `lvt ingest --fps` and players look at it.
RECORD_FPS = 10.0
PICTURE_FPS = 25.0

LONGEST_SHOWN = 80  # characters of a name in a message
_RECORD_FILE = re.compile(r"[^.].*\.tfrecords?(-\d+-of-\d+)?", re.IGNORECASE)

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Listing:
    """The clips of a source.

    Attributes:
        drafts: without digests; `split` is given by a folder, a row or a list, and else empty.
        remarks: messages for the user, one line each.
    """

    drafts: list[Clip]
    remarks: list[str] = field(default_factory=list)


def arrays_of(entry: Mapping[str, Any], folder: str, where: str) -> dict[str, str]:
    """The files of rows that a line of a manifest names; relative paths count from `folder`.

    Raises:
        ManifestError: they are not a JSON object of names and files.
    """
    arrays = entry.get("arrays") or {}
    if not isinstance(arrays, dict) or not all(isinstance(place, str) for place in arrays.values()):
        raise ManifestError(f"{where}: the arrays {arrays!r} are not a JSON object of names and files")
    for name, place in arrays.items():
        if not ARRAY_NAME.fullmatch(name) or not is_array_file(place):
            raise ManifestError(
                f"{where}: {name!r}: {place!r} does not name an array (letters, digits, _ and -) and an .npy, .csv or "
                ".parquet file"
            )
    return {name: absolute(folder, place) for name, place in arrays.items()}


def unique_ids(names: Sequence[PurePosixPath]) -> list[str]:
    """Paths without their ending; files that would share an id keep it."""
    plain = [str(name.with_suffix("")) for name in names]
    uses = Counter(plain)
    ids = [short if uses[short] == 1 else str(name) for name, short in zip(names, plain, strict=True)]
    for clip_id in ids:
        refuse_odd_name(clip_id)
    return ids


def is_record_file(name: str) -> bool:
    """Whether a file holds records, by its ending; hidden files do not count."""
    return _RECORD_FILE.fullmatch(name) is not None


def refuse_odd_name(name: str) -> None:
    """Refuse a file name that is not text.

    Raises:
        ManifestError: naming it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"the file name {name!r} is not UTF-8; rename the file") from None


def split_of_folder(name: PurePosixPath, settings: ManifestSettings) -> str | None:
    """The split that the first or second folder of a path names."""
    if settings.split != "auto":
        return None
    return next((SPLIT_FOLDERS[part.lower()] for part in name.parts[:-1][:2] if part.lower() in SPLIT_FOLDERS), None)


def splits_by_name(names: Sequence[str], settings: ManifestSettings) -> list[str | None]:
    """The splits that a dataset itself names. One that names a single split leaves the choice to the content."""
    splits = [SPLIT_FOLDERS.get(name.lower()) for name in names]
    return splits if settings.split == "auto" and len(set(splits)) > 1 else [None] * len(splits)


def chosen_cameras(known: Sequence[str], settings: ManifestSettings) -> tuple[list[str], str]:
    """The cameras of a dataset that become clips, and a remark that names those that do not.

    Raises:
        ManifestError: there is no such camera.
    """
    wanted = settings.camera or known[0]
    chosen = [*known] if wanted in ("all", "both") else [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in known:
            raise ManifestError(f"there is no camera {name!r}; the dataset has {some(known, 20)}; all takes each")
    others = [name for name in known if name not in chosen]
    if settings.camera is not None or not others:
        return chosen, ""
    return chosen, f"camera {chosen[0]}; --camera NAME or all takes others: {some(others, 20)}"


def label_of_folder(name: PurePosixPath, settings: ManifestSettings) -> str | None:
    """The name of the folder of a video; a folder that names the split is not a class."""
    if settings.label == "none" or len(name.parts) < 2:
        return None
    parent = name.parts[-2]
    return None if settings.split == "auto" and len(name.parts) <= 3 and parent.lower() in SPLIT_FOLDERS else parent


def split_of_text(text: str, where: str) -> str | None:
    """The split that a column names; none where it is empty.

    Raises:
        ManifestError: it names something else.
    """
    if not text:
        return None
    name = {"validate": "val"}.get(text.lower()) or SPLIT_FOLDERS.get(text.lower())
    if name is None:
        raise ManifestError(f"{where}: split {text!r} is not one of {', '.join(SPLITS)}")
    return name


def some(names: Sequence[str], count: int = 3) -> str:
    """The first of many names, for a sentence; long ones are cut."""
    shown = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..." for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")
