"""The list of clips: one JSON object per line, made from a folder of videos or a CSV, read by every later stage.

A clip is a video or a time range of one. Its fingerprint is that of the video's bytes and the range, never of the path,
so renaming or moving a file invalidates nothing. Splits are decided here, once: by folders named train, val and test,
or else by the content itself, so that adding videos moves no other clip and equal videos never lie in two splits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lvt_pipeline.config import to_plain
from lvt_pipeline.data.frames import SPLITS
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError, ManifestError
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import DigestMemo, Provenance, digest_file, fingerprint, read_record, write_record
from lvt_pipeline.storage import write_bytes

STAGE = "manifest"
VERSION = 1

# Files with these endings are listed even if they turn out to be broken: decoding decides, and says why.
# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
PATH_COLUMNS = ("path", "source", "video")
_MEMO = Path(".lvt") / "digests.sqlite"


@dataclass(frozen=True, kw_only=True)
class ManifestSettings:
    """How clips are assigned to splits and labels."""

    split: Literal["auto", "hash", "none"] = "auto"  # auto: folders named train, val, test decide, else the content
    val_share: float = 0.1  # expected share of clips whose content falls into val
    test_share: float = 0.1
    label: Literal["folder", "none"] = "folder"  # folder: the name of the folder a video lies in

    def __post_init__(self) -> None:
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise ConfigError(
                f"val_share={self.val_share} and test_share={self.test_share} leave nothing to train on; "
                f"their sum must stay below 1"
            )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One line of a manifest.

    Attributes:
        source: path of the video, absolute.
        digest: SHA-256 of the video's bytes; empty when the file is missing.
        start, end: time range in seconds from the first frame, the end excluded; None is the video's own.
        metadata: anything else known about the clip; it never changes a result.
    """

    id: str
    source: str
    digest: str
    start: float | None = None
    end: float | None = None
    split: str = "train"
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of what the clip shows."""
        return fingerprint({"digest": self.digest, "start": self.start, "end": self.end})


def manifest_fingerprint(clips: Iterable[Clip]) -> str:
    """Hash of a list of clips, in order: ids, contents, splits and labels."""
    return fingerprint([[clip.id, clip.fingerprint, clip.split, clip.label] for clip in clips])


# Reading -----------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[Clip]:
    """Parse a manifest. `id` and `source` are needed; `split` is train and the digest is computed when absent.

    Raises:
        ManifestError: it is missing, empty, or a line cannot be used; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist; `lvt manifest build` makes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not a manifest, one JSON object per line ({error})") from error
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        clip = _parse_line(line, path.parent, where=f"{path}:{number}")
        if clip.id in seen:
            raise ManifestError(f"{path}:{number}: the id {clip.id!r} is already used in line {seen[clip.id]}")
        seen[clip.id] = number
        clips.append(clip)
    if not clips:
        raise ManifestError(f"{path} lists no clip")
    return clips


def _parse_line(line: str, folder: Path, where: str) -> Clip:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: not a JSON object, found {line.strip()[:40]}")
    for name in ("id", "source"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ManifestError(f"{where}: {name!r} is missing or not a text")
    split, label, metadata = entry.get("split", "train"), entry.get("label"), entry.get("metadata", {})
    if split not in SPLITS:
        raise ManifestError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
    if not isinstance(label, str | None):
        raise ManifestError(f"{where}: the label {label!r} is not a text")
    if not isinstance(metadata, dict):
        raise ManifestError(f"{where}: the metadata {metadata!r} are not a JSON object")
    source = _absolute(folder, entry["source"])
    clip = Clip(
        id=entry["id"],
        source=source,
        digest=str(entry.get("digest") or _digest_of(source, digest_file)),
        start=entry.get("start"),
        end=entry.get("end"),
        split=split,
        label=label,
        metadata=metadata,
    )
    _check_clip(clip, where)
    return clip


def _check_clip(clip: Clip, where: str) -> None:
    # Ids become file names of samples and pictures, so they must stay inside their folder.
    if "\0" in clip.id or any(part in ("", ".", "..") for part in clip.id.split("/")):
        raise ManifestError(f"{where}: the id {clip.id!r} is not a relative path such as folder/name")
    for name, moment in (("start", clip.start), ("end", clip.end)):
        if moment is not None and (
            isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment < math.inf
        ):
            raise ManifestError(f"{where}: {name}={moment!r} is not a time in seconds")
    if clip.end is not None and clip.end <= (clip.start or 0):
        raise ManifestError(f"{where}: the range ends at {clip.end} s, before it starts at {clip.start or 0} s")


# Building ----------------------------------------------------------------------------------------------------------


def build_manifest(
    source: Path, out: Path, settings: ManifestSettings = ManifestSettings(), *, progress: Progress = SILENT
) -> Provenance:
    """List the videos of a folder, or the rows of a CSV, and write the manifest.

    The same videos and settings give the same bytes; an unchanged manifest is left untouched.

    Args:
        source: a folder, searched with its subfolders; or a `.csv` with a column `path` (or `source`, or `video`) and
            optionally `id`, `label`, `split`, `start` and `end`; other columns become metadata. Relative paths in it
            count from the CSV's folder.
        out: the manifest, such as `clips.jsonl`.

    Raises:
        ManifestError: the source is missing or lists no video, or two rows are the same clip.
    """
    began = time.monotonic()
    memo = DigestMemo(out.absolute().parent / _MEMO)
    try:
        drafts = list(_draft_clips(source, settings))
        clips = _with_digests(drafts, memo, progress)
    finally:
        memo.close()
    clips = _with_splits(clips, settings)
    _report_oddities(clips, progress)
    data = "".join(_line(clip, out.absolute().parent) for clip in clips).encode()
    record = Provenance(
        kind="manifest",
        stage=STAGE,
        version=VERSION,
        settings=to_plain(settings),
        inputs={},
        fingerprint=manifest_fingerprint(clips),
        outputs={out.name: len(data)},
        counts=_counts(clips),
        seconds=round(time.monotonic() - began, 3),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    unchanged = _unchanged_record(out, data, record)
    if unchanged is not None:
        return unchanged
    write_bytes(out, data)
    write_record(out, record)
    return record


@dataclass(frozen=True)
class _Draft:
    """A clip before its content is known; `split` is what a folder or a row asks for."""

    id: str
    source: str
    split: str | None = None
    label: str | None = None
    start: float | None = None
    end: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def _draft_clips(source: Path, settings: ManifestSettings) -> Iterator[_Draft]:
    if source.is_dir():
        return _drafts_of_folder(source, settings)
    if not source.exists():
        raise ManifestError(f"{source} does not exist; give a folder of videos or a CSV that lists them")
    if source.suffix.lower() == ".csv":
        return _drafts_of_csv(source, settings)
    raise ManifestError(f"{source} is neither a folder nor a .csv file; give the folder that holds the videos")


def _drafts_of_folder(folder: Path, settings: ManifestSettings) -> Iterator[_Draft]:
    names = sorted(_video_files(folder), key=lambda name: name.parts)
    if not names:
        raise ManifestError(
            f"{folder} holds no video: no file in it or its subfolders ends in one of "
            f"{' '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    for name, clip_id in zip(names, _unique_ids(names), strict=True):
        yield _Draft(
            id=clip_id,
            source=_absolute(folder, str(name)),
            split=_split_of_folder(name) if settings.split == "auto" else None,
            label=_label_of_folder(name, settings),
        )


def _video_files(folder: Path) -> Iterator[PurePosixPath]:
    """Videos below a folder, relative to it, hidden ones left out. Links are followed; no folder is entered twice."""
    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_EXTENSIONS:
                yield PurePosixPath(Path(parent, name).relative_to(folder).as_posix())


def _unique_ids(names: Sequence[PurePosixPath]) -> list[str]:
    """Paths without their ending; files that would share an id keep it."""
    plain = [str(name.with_suffix("")) for name in names]
    uses = Counter(plain)
    ids = [short if uses[short] == 1 else str(name) for name, short in zip(names, plain, strict=True)]
    for clip_id in ids:
        if not _is_utf8(clip_id):
            raise ManifestError(f"the file name {clip_id!r} is not UTF-8; rename the file")
    return ids


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_of_folder(name: PurePosixPath) -> str | None:
    """The split that the first or second folder of a path names."""
    return next((SPLIT_FOLDERS[part.lower()] for part in name.parts[:-1][:2] if part.lower() in SPLIT_FOLDERS), None)


def _label_of_folder(name: PurePosixPath, settings: ManifestSettings) -> str | None:
    """The folder a video lies in; a folder that names the split is no class."""
    if settings.label == "none" or len(name.parts) < 2:
        return None
    parent = name.parts[-2]
    return None if settings.split == "auto" and len(name.parts) <= 3 and parent.lower() in SPLIT_FOLDERS else parent


def _drafts_of_csv(path: Path, settings: ManifestSettings) -> Iterator[_Draft]:
    rows = _csv_rows(path)
    column = next((name for name in PATH_COLUMNS if name in rows[0][1]), None)
    if column is None:
        raise ManifestError(f"{path} has no column named {', '.join(PATH_COLUMNS)}; found {', '.join(rows[0][1])}")
    for number, row in rows:
        if not row[column]:
            raise ManifestError(f"{path}:{number}: the column {column!r} is empty")
    sources = [_absolute(path.parent, row[column]) for _, row in rows]
    names = _names_of_sources(sources, path.absolute().parent)
    ids = dict(zip(dict.fromkeys(names), _unique_ids(list(dict.fromkeys(names))), strict=True))
    uses = Counter(sources)
    for (number, row), source, name in zip(rows, sources, names, strict=True):
        where = f"{path}:{number}"
        start, end = _seconds(row, "start", where), _seconds(row, "end", where)
        in_range = f"@{start or 0:g}-{'end' if end is None else f'{end:g}'}" if uses[source] > 1 else ""
        yield _Draft(
            id=row.get("id") or f"{ids[name]}{in_range}",
            source=source,
            split=_split_of_row(row, where) or (_split_of_folder(name) if settings.split == "auto" else None),
            label=row["label"] or None if "label" in row else _label_of_folder(name, settings),
            start=start,
            end=end,
            metadata={
                key: value
                for key, value in row.items()
                if key not in (column, "id", "label", "split", "start", "end") and value
            },
        )


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows by column name, with their line numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [
                (reader.line_num, {key.strip(): (value or "").strip() for key, value in row.items() if key is not None})
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} cannot be read as CSV ({error})") from error
    if not rows:
        raise ManifestError(f"{path} lists no clip; it needs a line of column names and one line per clip")
    return rows


def _names_of_sources(sources: Sequence[str], folder: Path) -> list[PurePosixPath]:
    """Paths relative to the CSV's folder, or to the folder that all videos share if some lie elsewhere."""
    inside = all(os.path.commonpath([source, folder]) == str(folder) for source in sources)
    root = folder if inside else Path(os.path.commonpath([os.path.dirname(source) for source in sources]))
    return [PurePosixPath(Path(source).relative_to(root).as_posix()) for source in sources]


def _split_of_row(row: Mapping[str, str], where: str) -> str | None:
    asked = row.get("split", "")
    if asked and asked.lower() not in SPLIT_FOLDERS:
        raise ManifestError(f"{where}: split {asked!r} is not one of {', '.join(SPLITS)}")
    return SPLIT_FOLDERS[asked.lower()] if asked else None


def _seconds(row: Mapping[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "")
    try:
        return float(text) if text else None
    except ValueError:
        raise ManifestError(f"{where}: {name}={text!r} is not a time in seconds") from None


def _with_digests(drafts: Sequence[_Draft], memo: DigestMemo, progress: Progress) -> list[Clip]:
    clips: list[Clip] = []
    known: dict[str, str] = {}
    seen: set[str] = set()
    with progress.bar("hashing videos", len(drafts), "file") as bar:
        for draft in drafts:
            if draft.source not in known:
                known[draft.source] = _digest_of(draft.source, memo.digest)
            clip = Clip(
                id=draft.id,
                source=draft.source,
                digest=known[draft.source],
                start=draft.start,
                end=draft.end,
                split=draft.split or "",
                label=draft.label,
                metadata=draft.metadata,
            )
            _check_clip(clip, where=draft.source)
            if clip.id in seen:
                raise ManifestError(f"two clips have the id {clip.id!r}; give them different ids or time ranges")
            seen.add(clip.id)
            clips.append(clip)
            bar.advance()
    return clips


def _digest_of(source: str, digest: Callable[[Path], str]) -> str:
    """Digest of a file's bytes, empty when there is no such file: decoding will record it as missing."""
    try:
        return digest(Path(source))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except IsADirectoryError:
        raise ManifestError(f"{source} is a folder, not a video") from None
    except OSError as error:
        raise LVTError(f"{source} cannot be read: {error.strerror}; check its owner and mode") from error


def _with_splits(clips: Sequence[Clip], settings: ManifestSettings) -> list[Clip]:
    """Fill in the splits that no folder and no row decides."""
    if settings.split == "none":
        return [replace(clip, split=clip.split or "train") for clip in clips]
    undecided = {_content_key(clip) for clip in clips if not clip.split}
    # The same content stays together even if only one of its copies lies in a named folder.
    decided = {_content_key(clip): clip.split for clip in clips if clip.split}
    by_content = _split_by_content(undecided - decided.keys(), set(decided.values()), settings)
    assigned = {**by_content, **decided}
    return [replace(clip, split=clip.split or assigned[_content_key(clip)]) for clip in clips]


def _content_key(clip: Clip) -> str:
    return clip.digest or hashlib.sha256(clip.id.encode()).hexdigest()


def _split_by_content(digests: set[str], filled: set[str], settings: ManifestSettings) -> dict[str, str]:
    """Assign contents to splits by where their digest falls between 0 and 1.

    A content's place depends on nothing but itself, so a growing dataset keeps its splits. Only a small dataset is
    adjusted: with three contents or more no wanted split stays empty; the content nearest to its interval moves in.
    """
    test, val = settings.test_share, settings.val_share
    intervals = {"test": (0.0, test), "val": (test, test + val), "train": (test + val, 1.0)}
    wanted = [split for split, (low, high) in intervals.items() if high > low]
    place = {digest: int(digest[:16], 16) / 2**64 for digest in sorted(digests)}
    splits = {
        digest: next(split for split in wanted if intervals[split][0] <= x < intervals[split][1] or split == wanted[-1])
        for digest, x in place.items()
    }
    if len(digests) < 3:
        return splits
    for split in wanted:
        if split in filled or split in splits.values():
            continue
        low, high = intervals[split]
        sizes = Counter(splits.values())
        spare = [digest for digest in splits if sizes[splits[digest]] > 1]
        if spare:
            nearest = min(spare, key=lambda digest: max(low - place[digest], place[digest] - high))
            splits[nearest] = split
    return splits


def _report_oddities(clips: Sequence[Clip], progress: Progress) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        if not clip.digest:
            progress.say(f"{clip.source} does not exist; its clip {clip.id} will be recorded as missing")
        elif clip.fingerprint in first:
            other = first[clip.fingerprint]
            leak = "" if other.split == clip.split else f", and lies in {clip.split} while that is in {other.split}"
            progress.say(f"{clip.id} has the same content as {other.id}{leak}")
        else:
            first[clip.fingerprint] = clip


def _line(clip: Clip, folder: Path) -> str:
    entry = {
        "id": clip.id,
        "source": _portable(clip.source, folder),
        "split": clip.split,
        "label": clip.label,
        "start": clip.start,
        "end": clip.end,
        "digest": clip.digest,
        "metadata": dict(clip.metadata) or None,
    }
    return json.dumps({key: value for key, value in entry.items() if value is not None}, ensure_ascii=False) + "\n"


def _portable(source: str, folder: Path) -> str:
    """The path relative to the manifest's folder, so both can move together; absolute if they share only the root."""
    shared = os.path.commonpath([source, folder])
    return source if shared == os.path.sep else Path(os.path.relpath(source, folder)).as_posix()


def _absolute(folder: Path, path: str) -> str:
    return os.path.normpath(os.path.join(folder.absolute(), path))


def _counts(clips: Sequence[Clip]) -> dict[str, Any]:
    splits = Counter(clip.split for clip in clips)
    return {
        "clips": len(clips),
        "splits": {split: splits[split] for split in SPLITS},
        "labels": len({clip.label for clip in clips} - {None}),
        "missing": sum(not clip.digest for clip in clips),
    }


def _unchanged_record(out: Path, data: bytes, record: Provenance) -> Provenance | None:
    """The record of an existing manifest that is the same as the one about to be written."""
    try:
        old = read_record(out)
        if out.read_bytes() == data and (old.recipe, old.fingerprint) == (record.recipe, record.fingerprint):
            return old
    except (ArtefactError, OSError):
        pass
    return None
