"""The origin of an output, and whether the same stage would make the same output today.

A fingerprint hashes content and meaning: canonical JSON of the settings that change the result, a `version` integer per
algorithm that is raised by hand when its output changes, and the fingerprints of the inputs. It never holds a path, a
modification time, a pickled object or a package version.

Every output carries a `Provenance` record. Two hashes live in it:

- `recipe`: stage + version + settings + inputs. Equal recipes would make the same output; `lvt why` compares them.
- `fingerprint`: a hash of the output. Later stages name this one as their input, so an output that is made
  again with the same content leaves everything after it valid.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from itertools import islice
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.storage import (
    Place,
    StoreURL,
    describe_os_error,
    open_regular,
    open_storage,
    parse_json,
    read_json,
    write_json,
)

RECORD_NAME = "provenance.json"
ZARR_METADATA = "zarr.json"
SHORT = 12  # hexadecimal digits shown to people
_MEMO_TABLE = "checked_digests"
ROWS_AT_ONCE = 1000  # rows of a table that become text together


def _plain(item: Any) -> Any:
    if is_dataclass(item) and not isinstance(item, type):
        return asdict(item)
    raise TypeError(f"{type(item).__name__} cannot be part of a fingerprint")


# Made once: json.dumps would make one for every call, which takes longer than a small value itself.
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False, default=_plain
)


def canonical_json(value: Any) -> str:
    """One text per meaning: sorted keys, no spaces, dataclasses as objects, paths refused.

    Raises:
        TypeError: the value holds something that is not plain data.
    """
    return _CANONICAL.encode(value)


def canonical_rows(rows: Iterable[Any]) -> Iterator[str]:
    """The text `canonical_json(list(rows))` in pieces: a table of a million rows is never one text in memory."""
    rest = iter(rows)
    lead = "["
    while some := list(islice(rest, ROWS_AT_ONCE)):
        yield lead + canonical_json(some)[1:-1]
        lead = ","
    yield "]" if lead == "," else "[]"


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return fingerprint_text([canonical_json(value)])


def fingerprint_text(pieces: Iterable[str]) -> str:
    """SHA-256 of canonical JSON that comes in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode())
    return digest.hexdigest()


def short(digest: str) -> str:
    """The first digits of a fingerprint, for messages."""
    return digest[:SHORT]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def status_of(path: Path) -> tuple[int, int, int]:
    """Size, mtime in nanoseconds and inode: enough to detect a changed file without reading it."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


class DigestMemo:
    """Remembers file digests by (path, size, mtime, inode), so an unchanged folder is not read twice.

    It is a hint only. Every row carries a checksum of itself; a row that does not fit is forgotten and the file is read
    again. When the file of the memo cannot be used (full disk, damaged), digests are computed and forgotten.
    """

    def __init__(self, database: Path) -> None:
        self._table: dict[str, tuple[int, int, int, str]] = {}
        self._new: dict[str, tuple[int, int, int, str]] = {}
        self._path = database
        with suppress(sqlite3.Error, OSError, ValueError):
            if database.exists():
                with closing(sqlite3.connect(database)) as connection:
                    for name, *row, mark in connection.execute(f"SELECT * FROM {_MEMO_TABLE}"):
                        if _row_mark(name, row) == mark:
                            self._table[name] = tuple(row)

    def digest(self, path: Path) -> str:
        """SHA-256 of the file's bytes, from memory when size, mtime and inode are unchanged."""
        return self.recall(str(path.resolve()), status_of(path), lambda: digest_file(path))

    def recall(self, name: str, seen: tuple[int, int, int], compute: Callable[[], str]) -> str:
        """The value stored under this name if the file looks the same; computed now if it does not.

        Args:
            seen: size, time in nanoseconds and inode, or any three numbers that change with the content.
        """
        row = self._table.get(name)
        if row is not None and row[:3] == seen:
            return row[3]
        digest = compute()
        self._table[name] = self._new[name] = (*seen, digest)
        return digest

    def close(self) -> None:
        """Save the new digests. A database that is damaged is replaced."""
        if not self._new:
            return
        try:
            self._save()
        except (sqlite3.OperationalError, OSError):  # another process is saving, or there is no room
            pass
        except sqlite3.DatabaseError:
            with suppress(sqlite3.Error, OSError):
                self._path.unlink(missing_ok=True)
                self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(name, *row, _row_mark(name, row)) for name, row in self._new.items()]
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {_MEMO_TABLE} "
                "(path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, digest TEXT, mark TEXT)"
            )
            connection.executemany(f"INSERT OR REPLACE INTO {_MEMO_TABLE} VALUES (?, ?, ?, ?, ?, ?)", rows)


def _row_mark(name: str, row: Sequence[object]) -> str:
    """A checksum of a row of the memo."""
    return hashlib.sha256(repr((name, *row)).encode(errors="surrogatepass")).hexdigest()[:16]


def now() -> str:
    """The time as all records spell it: ISO 8601 in UTC, to the second, such as 2026-03-01T09:30:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def lvt_version() -> str:
    """Version of this package, "unknown" when it runs from a plain folder."""
    try:
        return package_version("lvt-pipeline")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The record every output carries.

    Attributes:
        kind: what the output is: manifest, frames, vqvae-run, codes, prior-run, videos, evaluation or report.
        stage: the command that made it.
        version: the stage's algorithm version.
        settings: every setting that changes the result, as plain data.
        inputs: fingerprint of each input, by role ("frames", "tokenizer", ...).
        fingerprint: hash of the output.
        outputs: size in bytes of each file that belongs to the output, by path relative to the output (a
            directory) or to its folder (a file).
        counts: facts worth showing (clips, frames, failures, parameters, ...).
        seconds: wall time of the work that made it.
        finished: ISO-8601 time in UTC; never part of a hash.
    """

    kind: str
    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str
    outputs: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""
    lvt_version: str = field(default_factory=lvt_version)
    command: Sequence[str] = field(default_factory=lambda: list(sys.argv))

    @property
    def recipe(self) -> str:
        """Hash of everything that decides the output."""
        return recipe(self.stage, self.version, self.settings, self.inputs)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the recipe spelled out."""
        return {**asdict(self), "recipe": self.recipe}

    @classmethod
    def from_json(cls, data: Any, source: Place) -> Provenance:
        """Rebuild a record; `source` is named in the error.

        Raises:
            ArtefactError: it is not one of our records.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(data, dict):
            raise ArtefactError(f"{source} holds no provenance record; it is damaged or not ours")
        try:
            record = cls(**{key: value for key, value in data.items() if key in names})
        except TypeError as error:
            raise ArtefactError(f"{source} is not a provenance record ({error})") from error
        for name in ("settings", "inputs", "outputs", "counts"):
            if not isinstance(getattr(record, name), dict):
                raise ArtefactError(f"{source} is a damaged provenance record: {name} is not a table")
        if not isinstance(record.fingerprint, str) or not isinstance(record.version, int):
            raise ArtefactError(
                f"{source} is a damaged provenance record: its fingerprint or version has the wrong type"
            )
        return record


def recipe(stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of what a stage would do: compare it with the recipe of an existing output."""
    return fingerprint({"stage": stage, "version": version, "settings": settings, "inputs": inputs})


def record_path(output: Path) -> Path:
    """Path of an output's record: inside a directory, next to a file (`M.jsonl` -> `M.jsonl.provenance.json`)."""
    if output.is_dir() or (not output.suffix and not output.is_file()):
        return output / RECORD_NAME
    return output.with_name(f"{output.name}.{RECORD_NAME}")


def write_record(output: Path, record: Provenance) -> None:
    """Write the record last: an output without one is not finished."""
    write_json(record_path(output), record.to_json())


def read_record(output: Place) -> Provenance:
    """The record of a finished output. A code store keeps its record in the root attributes of its zarr group.

    Raises:
        ArtefactError: there is none, or it cannot be read.
    """
    found = open_storage(output).read(ZARR_METADATA)
    if found is not None:
        path = output / ZARR_METADATA
        group = parse_json(found.data, path)
        attributes = group.get("attributes") if isinstance(group, dict) else None
        return Provenance.from_json(attributes.get("provenance") if isinstance(attributes, dict) else None, path)
    if isinstance(output, StoreURL):
        found = open_storage(output).read(RECORD_NAME)
        if found is None:
            raise ArtefactError(f"{output} does not exist, or is not finished")
        return Provenance.from_json(parse_json(found.data, output / RECORD_NAME), output / RECORD_NAME)
    if not output.exists():
        raise ArtefactError(f"{output} does not exist")
    path = record_path(output)
    return Provenance.from_json(read_json(path), path)


def finished_record(output: Place) -> Provenance | None:
    """The record of an output, or None when it is missing, unfinished, or its record cannot be read."""
    try:
        return read_record(output)
    except ArtefactError:
        return None


def missing_outputs(output: Place, record: Provenance) -> list[str]:
    """Files the record promises that are gone or have another size, as relative paths.

    Raises:
        LVTError: the file system cannot be read.
    """
    if isinstance(output, StoreURL):
        found = {entry.name: entry.size for entry in open_storage(output).list()}
        return [name for name, size in record.outputs.items() if found.get(name) != size]
    folder = output if output.is_dir() else output.parent
    problems = []
    for name, size in record.outputs.items():
        try:
            if (folder / name).stat().st_size != size:
                problems.append(name)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
            problems.append(name)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise describe_os_error(error, f"reading {folder / name}") from error
            problems.append(name)
    return problems


def differences(record: Provenance, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """What makes an output stale, one line per changed field, empty when nothing does."""
    lines = []
    if record.version != version:
        lines.append(f"algorithm version: {record.version} -> {version}")
    lines += changes("setting ", record.settings, settings)
    lines += changes(
        "input ", {k: short(v) for k, v in record.inputs.items()}, {k: short(v) for k, v in inputs.items()}
    )
    return lines


def changes(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each value that differs, nested names with dots; all of them begin with the prefix."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changes(f"{prefix}{key}.", before, after)
        elif canonical_json(before) != canonical_json(after):
            lines.append(f"{prefix}{key}: {canonical_json(before)} -> {canonical_json(after)}")
    return lines
