"""A table with one clip per row: a CSV with a line of column names, or JSON Lines. Other columns become metadata."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from lvt_pipeline.errors import ManifestError
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources.draft import (
    PICTURE_FPS,
    Listing,
    arrays_of,
    label_of_folder,
    some,
    split_of_folder,
    split_of_text,
    unique_ids,
)
from lvt_pipeline.manifest.sources.folders import also
from lvt_pipeline.manifest.sources.walk import LeftOut, is_playlist
from lvt_pipeline.storage import decode_text, parse_json_lines
from lvt_pipeline.video.clips import CLIP_KINDS, Clip
from lvt_pipeline.video.episodes.array_files import is_array_file
from lvt_pipeline.video.locations import absolute, as_path, is_url, read_bytes

PATH_COLUMNS = ("path", "source", "video")
# Other fields of a line of a manifest; a manifest is JSON Lines and can be listed again.
_MANIFEST_COLUMNS = ("split_by", "digest", "more_digest", "metadata", "kind", "record", "camera", "fps")

Row = Mapping[str, Any]
NumberedRow = tuple[int, Row]  # with its line number


def list_table(
    kind: Literal["csv", "jsonl"], table: str, media: str, settings: ManifestSettings, left_out: LeftOut
) -> Listing:
    """The clips of a table.

    Args:
        media: the folder or URL that relative paths count from.

    Raises:
        ManifestError: a column is missing, or a row cannot be used; the line is named.
    """
    rows = csv_rows(table) if kind == "csv" else jsonl_rows(table)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    for option in ("path_column", "label_column", "split_column"):
        name = getattr(settings, option)
        if name is not None and name not in columns:
            raise ManifestError(f"{table} has no column {name!r} ({option}); found {some(columns, 20)}")
    path = settings.path_column or next((name for name in PATH_COLUMNS if name in columns), None)
    if path is None:
        raise ManifestError(
            f"{table} has no column named {', '.join(PATH_COLUMNS)}; found {some(columns, 20)}; "
            f"--path-column names another"
        )
    for number, row in rows:
        if not isinstance(row.get(path), str) or not row[path]:
            raise ManifestError(f"{table}:{number}: the column {path!r} is empty")
        if is_playlist(row[path]):
            left_out.add("playlists", row[path])
    rows = [(number, row) for number, row in rows if not is_playlist(row[path])]
    if not rows:
        raise ManifestError(f"{table} lists no video{also(left_out)}")
    sources = [absolute(media, row[path]) for _, row in rows]
    files = [column for column in columns if column != path and _names_array_files(row.get(column) for _, row in rows)]
    uses = Counter(sources)
    names = _names_of(list(uses), media)
    named = {source: (name, plain_id) for source, name, plain_id in zip(uses, names, unique_ids(names), strict=True)}
    drafts = []
    for (number, row), source in zip(rows, sources, strict=True):
        draft = _draft(row, source, *named[source], uses[source] > 1, f"{table}:{number}", settings)
        used = (path, "id", settings.label_column or "label", settings.split_column or "split", "start", "end", *files)
        draft = _with_rest(draft, row, used, kind, f"{table}:{number}", settings)
        arrays = {column: row[column] for column in files if row.get(column)} or row.get("arrays")
        drafts.append(replace(draft, arrays=arrays_of({"arrays": arrays}, media, f"{table}:{number}")))
    return Listing(drafts)


def _names_array_files(values: Iterable[object]) -> bool:
    """Whether a column names files of rows: every value that is not empty has such an ending."""
    given = [value for value in values if value not in ("", None)]
    return bool(given) and all(isinstance(value, str) and is_array_file(value) for value in given)


def _draft(
    row: Row, source: str, name: PurePosixPath, plain_id: str, is_shared: bool, where: str, settings: ManifestSettings
) -> Clip:
    start, end = _seconds(row, "start", where), _seconds(row, "end", where)
    in_range = f"@{start or 0:g}-{'end' if end is None else f'{end:g}'}" if is_shared else ""
    label = settings.label_column or "label"
    split = split_of_text(_text(row, settings.split_column or "split"), where) or split_of_folder(name, settings)
    return Clip(
        id=_text(row, "id") or f"{plain_id}{in_range}",
        source=source,
        split=split or "",
        label=_text(row, label) or None if label in row else label_of_folder(name, settings),
        start=start,
        end=end,
    )


def _with_rest(
    draft: Clip, row: Row, used: Sequence[str], table_kind: str, where: str, settings: ManifestSettings
) -> Clip:
    """The clip with the other columns of a row: its kind, if it is a line of a manifest, and metadata."""
    is_line = "digest" in row or row.get("kind") in CLIP_KINDS
    from_manifest = _MANIFEST_COLUMNS if is_line and table_kind == "jsonl" else ()
    used = (*used, "arrays")
    rest = {key: value for key, value in row.items() if key not in (*used, *from_manifest) and value not in ("", None)}
    if from_manifest:
        metadata = row.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise ManifestError(f"{where}: the metadata {metadata!r} are not a JSON object")
        given = {name: row[name] for name in ("kind", "record", "camera", "fps") if row.get(name) is not None}
        return replace(draft, metadata={**rest, **metadata}, **given)
    if not is_url(draft.source) and os.path.isdir(draft.source):
        return replace(draft, metadata=rest, kind="frames", fps=settings.fps or PICTURE_FPS)
    return replace(draft, metadata=rest)


def csv_rows(location: str) -> list[NumberedRow]:
    """Rows of a CSV by column name, with their line numbers.

    Raises:
        ManifestError: it cannot be read, or has no row.
    """
    text = _text_of(location)
    _require_commas(text, location)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows: list[NumberedRow] = [
            (reader.line_num, {key.strip(): (value or "").strip() for key, value in row.items() if key is not None})
            for row in reader
        ]
    except csv.Error:
        where = (
            f"line {reader.line_num} has a wrong line end or a field of more than {csv.field_size_limit():,} characters"
        )
        raise ManifestError(f"{location} cannot be read as CSV: {where}") from None
    if not rows:
        raise ManifestError(f"{location} lists no clip; it needs a line of column names and one line per clip")
    return rows


def _require_commas(text: str, location: str) -> None:
    header = text.split("\n", 1)[0]
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if separator in header and "," not in header:
            raise ManifestError(f"{location} separates its columns with {name}; save it with commas between them")


def _text_of(location: str) -> str:
    try:
        data = read_bytes(location)
    except OSError as error:
        raise ManifestError(f"{location} cannot be read: {error.strerror}") from None
    return decode_text(data, location, error=ManifestError, kind="a table")


def csv_columns(location: str) -> set[str]:
    """The names of a CSV's columns; empty when it cannot be read as one."""
    try:
        return set(csv_rows(location)[0][1])
    except ManifestError:
        return set()


def jsonl_rows(location: str) -> list[NumberedRow]:
    """The objects of JSON Lines, with their line numbers.

    Raises:
        ManifestError: it cannot be read, a line is not an object, or there is none.
    """
    rows: list[NumberedRow] = list(parse_json_lines(_text_of(location), location, error=ManifestError))
    if not rows:
        raise ManifestError(f"{location} lists no clip; it needs one JSON object per line")
    return rows


def _names_of(sources: Sequence[str], media: str) -> list[PurePosixPath]:
    """Paths relative to the folder they count from, or to the folder that all share if some are elsewhere."""
    paths = [as_path(source) for source in sources]
    folder = as_path(media)
    if all(path.is_relative_to(folder) for path in paths):
        return [path.relative_to(folder) for path in paths]
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root) for path in paths]


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _seconds(row: Row, name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ManifestError(f"{where}: {name}={value!r} is not a time in seconds") from None
