"""Operations that some file systems lack, and the replacements.

Network, FUSE and older cluster file systems may have no `flock`, or no way to flush a folder. A writer there uses a
lock file; a folder that cannot be flushed is left to the file system, which matters only in a power cut.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Callable
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


def is_lock_file(name: str) -> bool:
    """Whether a file of this name in an output folder belongs to its lock."""
    return name == LOCK_NAME or name.startswith(f"{LOCK_NAME}.")


def make_lock_file(directory: Path) -> Path:
    """Own a directory by creating a file in it. The file of a dead process of this machine is replaced.

    Raises:
        BusyError: another process owns it.
    """
    path = directory / LOCK_NAME
    _own(path)
    return path


def owner_of(lock_file: Path) -> str | None:
    """The owner of a lock file, for a message; None when the file or its process is gone."""
    try:
        return _living_owner(lock_file.read_text(errors="replace"))
    except FileNotFoundError:
        return None


def _own(path: Path) -> None:
    """Create a lock file, or replace that of a dead process.

    Of several processes that find the same abandoned file, the one that owns a second lock file, named after the
    content of the first, replaces it; the content is unique and is read again under that second lock, so a file that
    another process has made meanwhile is never replaced. The second file may be abandoned too, and is replaced in the
    same way.
    """
    content = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
    while not _create(path, content):
        try:
            found = path.read_text(errors="replace")
        except FileNotFoundError:
            continue
        owner = _living_owner(found)
        if owner is not None:
            raise BusyError(
                f"another process is writing {path.parent} ({owner}); this file system has no flock, so if no such "
                f"process exists any more, delete {path} and run this again"
            )
        second = path.with_name(f"{LOCK_NAME}.{hashlib.sha256(found.encode()).hexdigest()[:16]}")
        _own(second)
        try:
            if path.read_text(errors="replace") == found:
                os.replace(_written(path, content), path)
                return
        except FileNotFoundError:
            continue
        finally:
            second.unlink()


def _create(path: Path, content: str) -> bool:
    """Make a file that must not exist; with its content at once, where the file system has hard links."""
    temporary = _written(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with open(path, "x") as stream:
                stream.write(content)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _written(path: Path, content: str) -> Path:
    """The content of a lock file, in a file of another name."""
    temporary = path.with_name(f"{path.name}.{content.split()[-1]}.partial")
    temporary.write_text(content)
    return temporary


def _living_owner(content: str) -> str | None:
    host, process, *_ = [*content.split(), "", ""]
    if host == socket.gethostname() and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:
            pass
    return f"process {process or 'unknown'} on {host or 'an unknown machine'}"
