"""The few operations that code stores and frame folders need of the place they are in, on a disk or in a bucket.

A storage is a folder of files with relative names. A file appears whole or not at all. A commit replaces one file and
gives the tag of the content that it started from: of several writers one wins and the others learn that they lost,
also where there are no locks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from lvt_pipeline.storage.places import Place


@dataclass(frozen=True)
class Stored:
    """What was read.

    Attributes:
        data: the file, or the range of it that was asked for.
        size: bytes of the whole file.
        etag: what the server calls this content; empty on a disk.
    """

    data: bytes
    size: int
    etag: str = ""

    @cached_property
    def tag(self) -> str:
        """Differs between any two contents; for `replace`."""
        return self.etag or hashlib.sha256(self.data).hexdigest()


class Entry(NamedTuple):
    """A file in a listing; `modified` is in seconds since 1970."""

    name: str
    size: int
    modified: float


class Storage(Protocol):
    """A folder. Every method raises an `LVTError` of one line when the disk or the server refuses."""

    @property
    def place(self) -> Place:
        """The folder or the URL."""

    def read(self, name: str) -> Stored | None:
        """A whole file, None when there is none."""

    def read_range(self, name: str, start: int, stop: int) -> Stored | None:
        """Bytes [start, stop) of a file, fewer where it ends before; None when there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that does not exist yet; one that exists is never changed.

        Returns:
            whether the file has these bytes now. False: another file was there first.
        """

    def replace(self, name: str, data: bytes, tag: str | None = None) -> bool:
        """Replace a file, or make it.

        Args:
            tag: only if the file still is what was read with this tag.

        Returns:
            whether the file has these bytes now. False: another process has changed it.
        """

    def move(self, source: str, name: str) -> bool:
        """Give a finished file another name. In a bucket, which cannot rename, it is copied and the source stays.

        Returns:
            whether there was such a source.
        """

    def list(self, folder: str = "") -> list[Entry]:
        """All files below a folder, by name."""

    def members(self) -> set[str] | None:
        """Names of the files and folders directly in it, None when there is no such folder."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, those that are there, and on a disk the folders that this leaves empty."""

    @property
    def num_readers(self) -> int:
        """Reads that should wait for an answer at the same time, 0 where reading does not wait."""

    def local(self, name: str = "") -> Path | None:
        """The path of a file or of the folder on this machine, None in a bucket."""

    def exclusive(self) -> AbstractContextManager[bool]:
        """Be the only writer until the block ends, and clear up after a killed one, where that is possible.

        Yields:
            whether it is. In a bucket others may write at the same time, and a killed one leaves nothing half-written.

        Raises:
            BusyError: another process writes here.
        """
