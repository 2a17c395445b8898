"""How bytes reach the disk and come back: written whole or not at all, by one writer; read without surprises.

Every file that later runs rely on is written to a temporary name in the same folder, flushed to the device and renamed,
so a reader sees the old file or the new one and a killed process leaves nothing that looks finished. Text, JSON, JSON
Lines and TOML are read here and nowhere else: whatever is in such a file, it is read or refused in one line that names
it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from lvt_pipeline.errors import ArtefactError, BusyError, LVTError
from lvt_pipeline.file_systems import LOCK_NAME, flush, is_supported, make_lock_file, owner_of
from lvt_pipeline.machine import advice_for_siblings

TEMPORARY_SUFFIX = ".partial"
MAX_NAME_BYTES = 255  # of a file or folder name, on every file system in use

_LINE_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_WRONG_PATH = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP)  # not refused, but no file to read
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def describe_os_error(error: OSError, doing: str) -> LVTError:
    """The one-line error for a failed file operation.

    Args:
        error: the error of the operating system.
        doing: the failed operation, such as "writing frames/train-000003.tar".
    """
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EFBIG: "the file-size limit is reached; raise it and run the same command again",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.EACCES: "permission denied; check the owner and mode of the folder",
        errno.EPERM: "operation not permitted; check the owner and mode of the folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return LVTError(f"{doing} failed: {advice}. Finished work is kept")


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The data is on the device before the name appears. On an error the temporary file is removed and `path` is
    untouched.

    Raises:
        LVTError: the operating system refused (disk full, read-only, no permission).
    """
    with _replacement(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            flush(stream.fileno())


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends without an error. `path` must not exist yet."""
    with _replacement(path) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync_file(file)
        sync_directory(temporary)


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends without an error, or else is removed."""
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            _remove(temporary)
        if isinstance(error, OSError):
            raise describe_os_error(error, f"writing {path}") from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(data)


def create_bytes(path: Path, data: bytes) -> bool:
    """Make a file that does not exist yet, whole or not at all. One that exists is never changed.

    Several processes may try at the same time: one of them makes the file.

    Returns:
        whether this call made it.

    Raises:
        BusyError: on a file system without hard links, another process is making it at this moment.
        LVTError: the operating system refused.
    """
    # Attempts of one task on several machines may have the same process id.
    temporary = _temporary(path, f"{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                flush(stream.fileno())
            is_made = _name_if_absent(temporary, path)
            sync_directory(path.parent)
            return is_made
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise describe_os_error(error, f"writing {path}") from error


def _name_if_absent(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken; a hard link does so in one step."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    claim = _temporary(path, "claim")  # only who makes it may rename
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        raise BusyError(f"another process is writing {path}; run this again when it has finished") from None
    try:
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
    finally:
        claim.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, whole or not at all.

    Raises:
        LVTError: a number in it is not finite, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise LVTError(f"{path} was not written: a number in it is not finite") from None
    write_bytes(path, (text + "\n").encode())


# Names -------------------------------------------------------------------------------------------------------------


def shortened_name(name: str, suffix: str = "", max_bytes: int = MAX_NAME_BYTES) -> str:
    """`name` + `suffix` as a file name of at most `max_bytes` bytes.

    A name that is too long keeps its beginning and gets a hash of all of it, so different names stay different.
    """
    if len((name + suffix).encode(errors="surrogateescape")) <= max_bytes:
        return name + suffix
    mark = "~" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]
    room = max_bytes - len((mark + suffix).encode())
    return name.encode(errors="surrogateescape")[:room].decode(errors="ignore") + mark + suffix


def clip_file(clip_id: str, suffix: str) -> str:
    """The relative path of the file of a clip: its id and an ending, every part short enough for any file system.

    The single rule for outputs with one file per clip; record the id in the output's list of files.
    """
    *folders, name = clip_id.split("/")
    return "/".join([*map(shortened_name, folders), shortened_name(name, suffix)])


def has_line_break(text: str) -> bool:
    """Whether a text holds a line break, another control character, or a character that UTF-8 cannot encode."""
    return _LINE_BREAKS.search(text) is not None


def printable(text: str) -> str:
    """A text from elsewhere, ready to print: characters that would break or disguise its line are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _temporary(path: Path, mark: object = None) -> Path:
    suffix = f".{mark or os.getpid()}{TEMPORARY_SUFFIX}"
    return path.with_name("." + shortened_name(path.name, suffix, MAX_NAME_BYTES - 1))


# Reading -----------------------------------------------------------------------------------------------------------


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
    """`read_text` for bytes that are in memory; `where` names them in the message."""
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
        if _HALF_CHARACTER.search(text):
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
    """`read_json_lines` for a text that is in memory; `where` names it in the message."""
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


def sync_file(path: Path) -> None:
    """Flush a file's data to the device."""
    with open(path, "rb") as stream:
        flush(stream.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's names to the device, so a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed writer left half-written in `directory`. Call it only while holding the lock."""
    for path in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Own an output directory until the block ends; it is created if missing.

    The lock is on the directory's own descriptor: it needs no lock file, and the kernel drops it when the process dies,
    so a killed writer never leaves a stale lock. A file system without such locks gets a lock file instead.

    Raises:
        BusyError: another process owns it.
        LVTError: it cannot be created or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise describe_os_error(error, f"opening {directory} for writing") from error
    lock_file: Path | None = None
    try:
        try:
            if not is_supported(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)):
                lock_file = make_lock_file(directory)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                advice = advice_for_siblings() or "wait for it to finish, or stop it"
                raise BusyError(f"another process is writing {directory}; {advice} and run this again") from None
            raise describe_os_error(error, f"locking {directory}") from error
        if not os.access(directory, os.W_OK):
            raise LVTError(f"{directory} is not writable; check its owner and mode, or choose another output folder")
        yield
    finally:
        if lock_file is not None:
            lock_file.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a process owns an output directory at this moment."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        if not is_supported(lambda: fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)):
            return owner_of(directory / LOCK_NAME) is not None
    except OSError:
        return True
    finally:
        os.close(descriptor)  # and with it the lock
    return False
