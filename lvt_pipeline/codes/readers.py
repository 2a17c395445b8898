"""Who reads a code store: every reader holds a shared lock on the generation it reads, and nothing of that is removed.

The lock is `flock` on the file of the generation's clip table. It needs no file of its own and ends with the process,
so a dead reader leaves none behind. `lvt gc` takes the exclusive lock of every generation that it is about to remove;
where it cannot, the generation stays and the processes that read it are named. On a file system without `flock` no
reader can be seen, and so no generation is removed unless the user states that nobody reads the store. In a bucket
there are no locks at all: a generation that was current until a short while ago stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from lvt_pipeline.codes.layout import GENERATIONS, table_name
from lvt_pipeline.errors import BusyError
from lvt_pipeline.file_systems import is_supported
from lvt_pipeline.storage import Place, describe_os_error, open_storage

COMMAND_CHARACTERS = 80  # of a reader's command line that a message shows

_IS_HELD = (errno.EWOULDBLOCK, errno.EACCES)
GRACE_HOURS = 24.0
NO_LOCKS = "the file system has no locks, so its readers cannot be seen; see --ignore-readers"


class BeingRemovedError(BusyError):
    """Another process is removing the generation at this moment."""


class Hold:
    """A shared lock on a generation, until it is closed or nothing refers to it any more.

    A process that receives it (a worker of a data loader) takes a lock of its own.
    """

    def __init__(self, store: Path, generation: int) -> None:
        """
        Raises:
            FileNotFoundError: the generation does not exist.
            BeingRemovedError: another process is removing it.
            LVTError: the operating system refused to open its file.
        """
        self._table = store / table_name(generation)
        self._descriptor = -1
        try:
            self._descriptor = os.open(self._table, os.O_RDONLY)
            _lock(self._descriptor, fcntl.LOCK_SH)
        except FileNotFoundError:
            raise
        except OSError as error:
            is_held = self._descriptor >= 0 and error.errno in _IS_HELD
            self.close()
            if is_held:
                raise BeingRemovedError(f"{self._table} is being removed by lvt gc") from None
            raise describe_os_error(error, f"reading {self._table}") from error

    @classmethod
    def on(cls, store: Place, generation: int) -> Self | None:
        """The lock where there are files to lock, None in a bucket; errors as in `Hold`."""
        folder = open_storage(store).local()
        return None if folder is None else cls(folder, generation)

    @property
    def is_current(self) -> bool:
        """Whether the locked file is still the one that the store has under its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._table))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the lock back."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be shutting down
            self.close()

    def __getstate__(self) -> Path:
        return self._table

    def __setstate__(self, table: Path) -> None:
        self._table, self._descriptor = table, -1
        with suppress(OSError):  # the process that it came from still holds its own
            self._descriptor = os.open(table, os.O_RDONLY)
            _lock(self._descriptor, fcntl.LOCK_SH)


@contextmanager
def without_readers(
    store: Place, generations: Iterable[int], *, is_forced: bool = False, grace_hours: float = GRACE_HOURS
) -> Iterator[dict[int, str]]:
    """Keep readers away from generations until the block ends, as far as nobody reads them.

    Args:
        is_forced: the user states that nobody reads the store, which is believed where there are no locks.
        grace_hours: in a bucket, for how long a generation stays after a newer one has taken its place.

    Yields:
        the generations that must stay, each with the readers in words.

    Raises:
        LVTError: a generation cannot be locked.
    """
    folder = open_storage(store).local()
    if folder is None:
        yield {} if is_forced else _recent(store, generations, grace_hours)
        return
    in_use: dict[int, str] = {}
    with ExitStack() as stack:
        for generation in generations:
            table = folder / table_name(generation)
            try:
                try:
                    descriptor = os.open(table, os.O_RDWR)  # over NFS an exclusive lock needs it
                except PermissionError:
                    descriptor = os.open(table, os.O_RDONLY)
            except FileNotFoundError:
                continue
            stack.callback(os.close, descriptor)
            try:
                if not _lock(descriptor, fcntl.LOCK_EX) and not is_forced:
                    in_use[generation] = NO_LOCKS
            except OSError as error:
                if error.errno not in _IS_HELD:
                    raise describe_os_error(error, f"locking {table}") from error
                in_use[generation] = f"it is being read by {_readers_of(os.fstat(descriptor))}"
        yield in_use


def _recent(store: Place, generations: Iterable[int], hours: float) -> dict[int, str]:
    """Generations that were current within the last hours, and so may have readers that nobody can see, in words."""
    written = {entry.name: entry.modified for entry in open_storage(store).list(GENERATIONS)}
    limit, reason = time.time() - 3600 * hours, f"it was current within the last {hours:g} hours; see --grace"
    return {
        number: reason
        for number in generations
        if any(written.get(table_name(later), 0) > limit for later in range(number + 1, number + 2 + len(written)))
    }


def require_no_readers(store: Place, in_use: Mapping[int, str]) -> None:
    """Refuse to replace a store that is being read.

    Args:
        in_use: see `without_readers`.

    Raises:
        BusyError: a generation is in use; its readers are named.
    """
    readers = sorted({text for text in in_use.values() if text != NO_LOCKS})
    if readers:
        raise BusyError(f"{store} cannot be replaced: {'; '.join(readers)}; wait for that to finish, or stop it")


def _lock(descriptor: int, kind: int) -> bool:
    """Take a lock without waiting; False where the file system has none."""
    return is_supported(lambda: fcntl.flock(descriptor, kind | fcntl.LOCK_NB))


def _readers_of(table: Any) -> str:
    """The processes of this machine that have a clip table open, in words."""
    found = []
    own = os.getpid()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            descriptors = list((process / "fd").iterdir())
            if any(_is_file(descriptor, table) for descriptor in descriptors):
                number = int(process.name)
                if number == own:  # this process has it open to look; a second time if it reads too
                    if sum(_is_file(descriptor, table) for descriptor in descriptors) > 1:
                        found.append("this process")
                    continue
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
                found.append(f"process {number} ({' '.join(words)[:COMMAND_CHARACTERS]})")
    return ", ".join(sorted(found)) or "a process of another user or machine"


def _is_file(descriptor: Path, file: Any) -> bool:
    try:
        return os.path.samestat(descriptor.stat(), file)
    except OSError:
        return False
