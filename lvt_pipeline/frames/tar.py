"""Tars whose bytes depend on their content alone, readable by webdataset."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO
from urllib.parse import quote

from lvt_pipeline.storage import shortened_name

LONGEST_KEY_BYTES = 220  # leaves room for `.endeffector_pos.npy`


def tar_key(clip_id: str) -> str:
    """Name of a clip inside its shard.

    webdataset cuts the name at the first dot of its last part and skips names that begin with `__`, so both are
    percent-encoded, and so are control characters and the percent sign. Different ids have different keys. A name that
    would be too long for a file when the tar is unpacked is shortened; the id is in the JSON file of the clip.
    """
    folder, slash, name = clip_id.rpartition("/")
    folders = [shortened_name(_encode(part), "", LONGEST_KEY_BYTES) for part in folder.split("/")]
    last = shortened_name(_encode(name).replace(".", "%2E"), "", LONGEST_KEY_BYTES)
    key = "/".join(folders) + slash + last
    return f"%5F{key[1:]}" if key.startswith("__") else key


def _encode(text: str) -> str:
    return "".join(quote(char) if char == "%" or not char.isprintable() else char for char in text)


class TarWriter:
    """A tar whose bytes depend on names and contents alone, and that knows where each content begins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a file; returns the offset of its first byte."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644  # time, user and group stay 0
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)
