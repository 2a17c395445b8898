"""How bytes reach the disk: whole or not at all, by one writer.

Every file that later runs rely on is written to a temporary name, flushed to the device and renamed, so a reader sees
the old file or the new one and a killed process leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any, BinaryIO

from lvt_pipeline.errors import BusyError, LVTError
from lvt_pipeline.file_systems import LOCK_NAME, flush, is_supported, make_lock_file, owner_of
from lvt_pipeline.machine import advice_for_siblings
from lvt_pipeline.storage.names import MAX_NAME_BYTES, shortened_name
from lvt_pipeline.storage.places import Place, StoreURL

TEMPORARY_SUFFIX = ".partial"

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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
def atomic_writer(path: Path, staging: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The data is on the device before the name appears. On an error the temporary file is removed and `path` is
    untouched.

    Args:
        staging: the folder of the temporary file; that of `path` by default.

    Raises:
        LVTError: the operating system refused (disk full, read-only, no permission).
    """
    with _replacement(path, staging) as temporary:
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
def _replacement(path: Path, staging: Path | None = None) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends without an error, or else is removed."""
    temporary = _temporary(path, staging)
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


def create_bytes(path: Path, data: bytes, staging: Path | None = None) -> bool:
    """Make a file that does not exist yet, whole or not at all. One that exists is never changed.

    Several processes may try at the same time: one of them makes the file.

    Args:
        staging: the folder of the temporary file; that of `path` by default.

    Returns:
        whether this call made it.

    Raises:
        BusyError: on a file system without hard links, another process is making it at this moment.
        LVTError: the operating system refused.
    """
    # Attempts of one task on several machines may have the same process id.
    temporary = _temporary(path, staging, f"{os.getpid()}-{secrets.token_hex(4)}")
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
    claim = _temporary(path, mark="claim")  # only who makes it may rename
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
    write_bytes(path, json_bytes(value, path))


def json_bytes(value: Any, where: object) -> bytes:
    """The file that `write_json` writes, with the same errors; `where` names it in them."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError:
        raise LVTError(f"{where} was not written: a number in it is not finite") from None


def _temporary(path: Path, staging: Path | None = None, mark: object = None) -> Path:
    """A path for what will be `path`; in a folder for staging it holds a thread's number, as names meet there."""
    if staging is not None:
        staging.mkdir(parents=True, exist_ok=True)
    suffix = f".{mark or os.getpid()}{f'-{get_ident()}' if staging else ''}{TEMPORARY_SUFFIX}"
    return (staging or path.parent) / ("." + shortened_name(path.name, suffix, MAX_NAME_BYTES - 1))


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


def is_locked(directory: Place) -> bool:
    """Whether a process owns an output directory at this moment; nobody can own one in a bucket."""
    if isinstance(directory, StoreURL):
        return False
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
