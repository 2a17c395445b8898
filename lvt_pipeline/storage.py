"""How bytes reach the disk: whole or not at all, and by one writer.

Every file that later runs rely on is written to a temporary name in the same folder, flushed to the device and renamed,
so a reader sees the old file or the new one and a killed process leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lvt_pipeline.errors import ArtefactError, BusyError, LVTError

TEMPORARY_SUFFIX = ".partial"


def describe_os_error(error: OSError, doing: str) -> LVTError:
    """The one-line error for a failed file operation.

    Args:
        error: what the operating system said.
        doing: what was being done, such as "writing frames/train-000003.tar".
    """
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EFBIG: "the file-size limit is reached; raise it and run the same command again",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.EACCES: "permission denied; check the owner and mode of the folder",
        errno.EPERM: "operation not permitted; check the owner and mode of the folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return LVTError(f"{doing} failed: {advice}. What was finished before is kept")


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The data is on the device before the name appears. On an error the temporary file is removed and `path` is
    untouched.

    Raises:
        LVTError: the operating system refused (disk full, read-only, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise describe_os_error(error, f"writing {path}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends without an error. `path` must not exist yet."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync_file(file)
        sync_directory(temporary)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise describe_os_error(error, f"writing {path}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file that one of our commands wrote.

    Raises:
        ArtefactError: it is missing, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read as JSON ({error}); it is damaged or not ours") from error


def sync_file(path: Path) -> None:
    """Flush a file's data to the device."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's names to the device, so a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed writer left half-written in `directory`. Call it only while holding the lock."""
    for path in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """Own an output directory until the block ends; it is created if missing.

    The lock is on the directory's own descriptor: it needs no lock file, and the kernel drops it when the process dies,
    so a killed writer never leaves a stale lock.

    Raises:
        BusyError: another process owns it.
        LVTError: it cannot be created or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise describe_os_error(error, f"opening {directory} for writing") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    f"another process is writing {directory}; wait for it to finish, or stop it and run this again"
                ) from None
            raise describe_os_error(error, f"locking {directory}") from error
        if not os.access(directory, os.W_OK):
            raise LVTError(f"{directory} is not writable; check its owner and mode, or choose another output folder")
        yield
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a process owns an output directory at this moment."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # and with it the lock
    return False
