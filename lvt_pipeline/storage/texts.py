"""Text, JSON, JSON Lines and TOML are read here and nowhere else.

Whatever is in such a file, it is read or refused in one line that names it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.storage.files import describe_os_error

_WRONG_PATH = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)  # not refused, but no file to read
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def describe_file(mode: int) -> str:
    """What a directory entry is, from its `st_mode`: "a folder", "a named pipe", ..."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. Nothing else is opened: a pipe would wait forever, a device may act.

    Raises:
        OSError: there is no such file or it cannot be read; `strerror` names the case of a file that is not regular.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, f"it is {describe_file(mode)}, not a regular file", str(path))


def read_text(path: Path, *, error: type[LVTError] = ArtefactError, kind: str = "text") -> str:
    """The content of a UTF-8 text file, without a byte order mark; line ends are left as they are.

    Args:
        error: the class of the error to raise.
        kind: what the file should be, for the message.

    Raises:
        LVTError: of the class `error`, in one line that names the file. When the operating system refused to read it,
            which is no statement about its content, an `LVTError` of no other class.
    """
    return decode_text(read_regular(path, error=error, kind=kind), path, error=error, kind=kind)


def read_regular(path: Path, *, error: type[LVTError] = ArtefactError, kind: str = "a file") -> bytes:
    """The bytes of a regular file. Arguments and errors as in `read_text`."""
    try:
        with open_regular(path) as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist") from None
    except ValueError:  # a null character in the path
        raise error(f"{path} cannot be read as {kind}: bad path") from None
    except OSError as problem:
        if problem.errno in _WRONG_PATH:
            raise error(f"{path} cannot be read as {kind}: {problem.strerror}") from None
        raise describe_os_error(problem, f"reading {path}") from problem


def decode_text(data: bytes, where: object, *, error: type[LVTError] = ArtefactError, kind: str = "text") -> str:
    """`read_text` for bytes that are in memory, with the same errors; `where` names them in the message."""
    try:
        # Not "utf-8-sig": Python loads that codec on first use, which fails without permissions or free descriptors.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        raise error(f"{where} cannot be read as {kind}: byte {problem.start:,} is not UTF-8") from None


def parse_json(text: str | bytes, where: object, *, error: type[LVTError] = ArtefactError) -> Any:
    """One JSON value; only what JSON allows, so no NaN and no infinite number.

    Args:
        where: file (and line) for the message.

    Raises:
        LVTError: of the class `error`, in one line that names `where`.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, error=error, kind="JSON")
    try:
        return _parse(text)
    except _Unusable as problem:
        raise error(f"{where} cannot be read as JSON: {problem}; it is damaged or was not written by lvt") from None


class _Unusable(Exception):
    """Why a text is not JSON."""


def _parse(text: str) -> Any:
    try:
        value = _JSON.decode(text)
        if "\\u" in text and _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        cause = f"the text breaks off or is wrong at {place}" if text.strip() else "it is empty"
    except RecursionError:
        cause = "it is nested too deeply"
    except UnicodeEncodeError:
        cause = "a text in it holds half of a character (an unpaired surrogate)"
    except ValueError:  # Python refuses to convert thousands of digits
        cause = "a number in it is too large or not finite"
    raise _Unusable(cause)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def read_json(path: Path, *, error: type[LVTError] = ArtefactError) -> Any:
    """Parse a JSON file that one of our commands wrote.

    Raises:
        LVTError: of the class `error`: it is missing, unreadable, or not JSON.
    """
    return parse_json(read_text(path, error=error, kind="JSON"), path, error=error)


def read_json_lines(path: Path, *, error: type[LVTError] = ArtefactError) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its line number from 1; blank lines are skipped.

    Lines end at the newline character only: JSON texts may hold every other character that Python calls a line end.

    Raises:
        LVTError: of the class `error`, naming the file and the line.
    """
    return parse_json_lines(read_text(path, error=error, kind="JSON Lines"), path, error=error)


def parse_json_lines(text: str, where: object, *, error: type[LVTError] = ArtefactError) -> list[tuple[int, Any]]:
    """`read_json_lines` for a text that is in memory, with the same errors; `where` names it in the message."""
    rows = []
    for number, line in numbered_lines(text):
        try:
            row = _parse(line)
        except _Unusable as problem:
            raise error(f"{where}:{number}: not a JSON object: {problem}") from None
        if not isinstance(row, dict):
            raise error(f"{where}:{number}: not a JSON object, found {line.strip()[:40]}")
        rows.append((number, row))
    return rows


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; they end at the newline character only."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def json_log(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a log of JSON Lines, leaving out lines that a crash cut short or that are damaged."""
    for line in data.split(b"\n"):
        with suppress(ArtefactError):
            value = parse_json(line, "")
            if isinstance(value, dict):
                yield value


def read_toml(path: Path, *, error: type[LVTError] = ArtefactError) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        LVTError: of the class `error`, with line and column.
    """
    text = read_text(path, error=error, kind="TOML")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        problem_text = str(problem)
    except RecursionError:
        problem_text = "it is nested too deeply"
    except ValueError:
        problem_text = "a number in it is too large"
    raise error(f"{path} is not a TOML file: {problem_text}")
