"""Operations that some file systems lack, and the replacements.

Network, FUSE and older cluster file systems may have no `flock`, or no way to flush a folder. A writer there uses a
lock file; a folder that cannot be flushed is left to the file system, which matters only in a power cut.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lvt_pipeline.errors import BusyError

LOCK_NAME = ".lvt.lock"  # only on file systems that cannot lock a folder itself

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOTTY})


def flush(descriptor: int) -> bool:
    """Flush to the device; False where the file system cannot."""
    return is_supported(lambda: os.fsync(descriptor))


def is_supported(operation: Callable[[], object]) -> bool:
    """Whether the file system has an operation; it is tried.

    Raises:
        OSError: it has it, and it failed.
    """
    try:
        operation()
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


def missing_guarantees(directory: Path) -> list[str]:
    """What the file system of a folder cannot do, one line each with its consequence; empty when nothing is missing."""
    found = []
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not flush(descriptor):
            found.append(
                f"{directory} is on a file system that cannot flush folders; a power cut may lose the newest files"
            )
        if not is_supported(lambda: fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)):
            found.append(
                f"{directory} is on a file system without flock; lvt uses the file {LOCK_NAME} in each output instead, "
                f"which a killed process on another machine leaves behind"
            )
    except BlockingIOError:
        pass  # somebody holds the lock, so there are locks
    finally:
        os.close(descriptor)
    return found


def make_lock_file(directory: Path) -> Path:
    """Own a directory by creating a file in it. The file of a dead process of this machine is replaced."""
    path = directory / LOCK_NAME
    while True:
        try:
            with open(path, "x") as stream:
                stream.write(f"{socket.gethostname()} {os.getpid()}")
            return path
        except FileExistsError:
            owner = owner_of(path)
        if owner is not None:
            raise BusyError(
                f"another process is writing {directory} ({owner}); this file system has no flock, so if no such "
                f"process exists any more, delete {path} and run this again"
            )
        abandoned = path.with_name(f".{LOCK_NAME}.{os.getpid()}.partial")
        with suppress(FileNotFoundError):  # of two processes that find it, one renames it
            os.replace(path, abandoned)
            abandoned.unlink()


def owner_of(lock_file: Path) -> str | None:
    """Who owns a lock file, for a message; None when its process is gone."""
    try:
        host, _, process = lock_file.read_text(errors="replace").partition(" ")
    except FileNotFoundError:
        return None
    if host == socket.gethostname() and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
    return f"process {process or 'unknown'} on {host or 'an unknown machine'}"
