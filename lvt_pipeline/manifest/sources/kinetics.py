"""Kinetics: the official annotation CSVs, and the folder of videos from some downloader.

The CSVs of Kinetics-400 and -700 have the columns `label, youtube_id, time_start, time_end, split` and some more, those
of test sets may lack the label. Downloaders cut each clip out and name it `<youtube_id>_000010_000020.mp4`, or keep the
whole video as `<youtube_id>.mp4`; some make a folder per class, some do not. All of it is found by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import Listing, some, split_of_text
from lvt_pipeline.manifest.sources.folders import videos_below
from lvt_pipeline.manifest.sources.tables import Row, csv_columns, csv_rows
from lvt_pipeline.manifest.sources.walk import LeftOut
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import absolute, is_url

COLUMNS = frozenset({"youtube_id", "time_start", "time_end"})
_CSV_FOLDERS = ("", "annotations")


def find_annotations(folder: str) -> list[str]:
    """The Kinetics CSVs in a folder, or in its subfolder `annotations`."""
    if is_url(folder):
        return []
    files = [path for name in _CSV_FOLDERS for path in sorted(Path(folder, name).glob("*.csv"))]
    return [str(path) for path in files if csv_columns(str(path)) >= COLUMNS]


def list_kinetics(annotations: Iterable[str], media: str, settings: ManifestSettings, left_out: LeftOut) -> Listing:
    """The rows of annotation files, with the videos that belong to them.

    An id is `label/youtube_id_000010_000020` wherever the file is, so rearranging a download changes nothing. A row
    without a file is listed under the name it would have.

    Raises:
        ManifestError: a row cannot be used, or not one video is there.
    """
    annotations = list(annotations)
    left_out.ignored.update(annotations)
    files = _by_stem(media, left_out)
    used: set[str] = set()
    drafts: dict[str, Clip] = {}
    missing: list[str] = []
    repeated: list[str] = []
    for csv in annotations:
        rows = csv_rows(csv)
        if not rows[0][1].keys() >= COLUMNS:
            found = some(list(rows[0][1]), 20)
            raise ManifestError(f"{csv} is not a Kinetics CSV: it needs {', '.join(sorted(COLUMNS))}, found {found}")
        for number, row in rows:
            draft, is_missing = _draft(row, files, media, f"{csv}:{number}", settings)
            if draft.id in drafts:
                repeated.append(draft.id)
                continue
            drafts[draft.id] = draft
            used.add(draft.source)
            if is_missing:
                missing.append(draft.id)
    if not drafts:
        raise ManifestError(f"{media} holds no Kinetics CSV: none has the columns {', '.join(sorted(COLUMNS))}")
    if len(missing) == len(drafts):
        name = missing[0].rpartition("/")[2]
        raise ManifestError(
            f"none of the {len(drafts):,} clips is in {media}: looked in it and its subfolders for {name}.mp4, "
            f"{name[:-14]}.mp4 and so on; --media names the folder of the videos"
        )
    for path in files.values():
        if absolute(media, str(path)) not in used:
            left_out.add("unnamed", str(path))
    remarks = [f"{len(repeated):,} rows repeat a clip and are left out: {some(repeated)}"] if repeated else []
    return Listing(list(drafts.values()), remarks)


def _by_stem(media: str, left_out: LeftOut) -> dict[str, PurePosixPath]:
    """The videos of a download by name; the first in order where a name occurs twice."""
    found: dict[str, PurePosixPath] = {}
    for name in sorted(videos_below(media, left_out), key=lambda name: name.parts):
        found.setdefault(name.stem, name)
    return found


def _draft(
    row: Row, files: dict[str, PurePosixPath], media: str, where: str, settings: ManifestSettings
) -> tuple[Clip, bool]:
    """The clip of a row, and whether its video is missing."""
    video = row.get("youtube_id", "")
    if not video:
        raise ManifestError(f"{where}: youtube_id is empty")
    start, end = _whole_seconds(row, "time_start", where), _whole_seconds(row, "time_end", where)
    trimmed = f"{video}_{start:06d}_{end:06d}"
    label = row.get("label", "") or None
    path = files.get(trimmed) or files.get(video)
    is_whole = path is not None and path.stem == video
    folder = f"{label.replace('/', '_')}/" if label else ""
    draft = Clip(
        id=f"{folder}{trimmed}",
        source=absolute(media, str(path) if path else f"{folder}{trimmed}.mp4"),
        split=(split_of_text(row.get("split", ""), where) if settings.split == "auto" else None) or "",
        label=label if settings.label == "folder" else None,
        start=float(start) if is_whole else None,
        end=float(end) if is_whole else None,
        metadata={
            key: value
            for key, value in row.items()
            if key not in ("label", "split", "time_start", "time_end") and value
        }
        | {"time_start": start, "time_end": end},
    )
    return draft, path is None


def _whole_seconds(row: Row, name: str, where: str) -> int:
    text = row.get(name, "")
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        raise ManifestError(f"{where}: {name}={text[:40]!r} is not a time in seconds") from None
