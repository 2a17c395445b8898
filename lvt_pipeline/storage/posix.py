"""A storage on a file system."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lvt_pipeline.file_systems import is_supported
from lvt_pipeline.storage.files import (
    atomic_writer,
    create_bytes,
    describe_os_error,
    exclusive_lock,
    remove_leftovers,
    sync_directory,
)
from lvt_pipeline.storage.protocol import Entry, Stored


class PosixStorage:
    """See `Storage`.

    Args:
        root: the folder.
        staging: relative folder in which files are written before they get their names.
    """

    num_readers = 0

    def __init__(self, root: Path, staging: str = "") -> None:
        self.place = root.absolute()
        self._staging = self.place / staging

    def read(self, name: str) -> Stored | None:
        return self._read(name, 0, None)

    def read_range(self, name: str, start: int, stop: int) -> Stored | None:
        return self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int | None) -> Stored | None:
        with self._one_line(f"reading {self.place}/{name}"):  # joining paths takes longer than opening the file
            try:
                descriptor = os.open(f"{self.place}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                size = os.fstat(descriptor).st_size
                end = size if stop is None else min(stop, size)
                data = os.pread(descriptor, max(0, end - start), start)
                while len(data) < end - start:  # the system reads at most 2 GiB at once
                    piece = os.pread(descriptor, end - start - len(data), start + len(data))
                    if not piece:
                        break
                    data += piece
            finally:
                os.close(descriptor)
        return Stored(data, size)

    def create(self, name: str, data: bytes) -> bool:
        is_made = create_bytes(self.place / name, data, self._staging)
        self._sync_folders(name)
        if is_made:
            return True
        found = self.read(name)
        return found is not None and found.data == data

    def replace(self, name: str, data: bytes, tag: str | None = None) -> bool:
        with self._one_line(f"writing {self.place / name}"), _locked(self.place / name if tag else None):
            if tag is not None:
                found = self.read(name)
                if found is None or found.tag != tag:
                    return found is not None and found.data == data
            with atomic_writer(self.place / name, self._staging) as stream:
                stream.write(data)
            self._sync_folders(name)
        return True

    def move(self, source: str, name: str) -> bool:
        with self._one_line(f"writing {self.place / name}"), suppress(FileNotFoundError):
            os.replace(self.place / source, self.place / name)
            sync_directory((self.place / name).parent)
            return True
        return False

    def _sync_folders(self, name: str) -> None:
        """New folders must be as durable as the file in them."""
        for folder in (self.place / name).parents:
            if folder == self.place:
                break
            sync_directory(folder)

    def list(self, folder: str = "") -> list[Entry]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise describe_os_error(error, f"reading {error.filename}")

        found = []
        for parent, _, files in os.walk(self.place / folder, onerror=refuse):
            for name in files:
                path = Path(parent, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # it went meanwhile
                found.append(Entry(path.relative_to(self.place).as_posix(), status.st_size, status.st_mtime))
        return sorted(found)

    def members(self) -> set[str] | None:
        with self._one_line(f"reading {self.place}"):
            try:
                return set(os.listdir(self.place))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._one_line(f"removing {self.place / name}"):
                (self.place / name).unlink(missing_ok=True)
                for folder in (self.place / name).parents:
                    if folder == self.place or not folder.is_dir() or any(folder.iterdir()):
                        break
                    folder.rmdir()

    def local(self, name: str = "") -> Path | None:
        return self.place / name

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        with exclusive_lock(self.place):
            remove_leftovers(self._staging)
            yield True

    @contextmanager
    def _one_line(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise describe_os_error(error, doing) from error


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Keep others from replacing the file that has this name, if there is one, until the block ends."""
    while path is not None:
        try:
            descriptor = os.open(path, os.O_RDWR)  # over NFS an exclusive lock needs it
        except FileNotFoundError:
            break
        try:
            is_supported(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX))  # noqa: B023
            try:
                is_named = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except FileNotFoundError:
                is_named = False
            if is_named:
                yield
                return
        finally:
            os.close(descriptor)
    yield
