"""How bytes reach a disk or a bucket and come back: written whole or not at all, and read without surprises.

`files` writes and locks files on a disk, `texts` reads text formats, `names` makes file names. `protocol` describes a
storage, of which there are two: `posix` and `objects`.
"""

from __future__ import annotations

from lvt_pipeline.storage.files import (
    TEMPORARY_SUFFIX,
    atomic_directory,
    atomic_writer,
    create_bytes,
    describe_os_error,
    exclusive_lock,
    is_locked,
    remove_leftovers,
    sync_directory,
    write_bytes,
    write_json,
)
from lvt_pipeline.storage.names import clip_file, has_line_break, printable, shortened_name
from lvt_pipeline.storage.objects import ObjectStorage
from lvt_pipeline.storage.places import Place, StoreURL, as_place, cache_of, require_local
from lvt_pipeline.storage.posix import PosixStorage
from lvt_pipeline.storage.protocol import Entry, Storage, Stored
from lvt_pipeline.storage.texts import (
    decode_text,
    json_log,
    numbered_lines,
    open_regular,
    parse_json,
    parse_json_lines,
    read_json,
    read_json_lines,
    read_text,
    read_toml,
)

__all__ = [
    "TEMPORARY_SUFFIX",
    "Entry",
    "Place",
    "Storage",
    "StoreURL",
    "Stored",
    "as_place",
    "atomic_directory",
    "atomic_writer",
    "cache_of",
    "clip_file",
    "create_bytes",
    "decode_text",
    "describe_os_error",
    "exclusive_lock",
    "has_line_break",
    "is_locked",
    "json_log",
    "numbered_lines",
    "open_regular",
    "open_storage",
    "parse_json",
    "parse_json_lines",
    "printable",
    "read_json",
    "read_json_lines",
    "read_text",
    "read_toml",
    "remove_leftovers",
    "require_local",
    "shortened_name",
    "sync_directory",
    "write_bytes",
    "write_json",
]


def open_storage(place: Place | str, staging: str = "") -> Storage:
    """The storage in a folder or behind a URL; neither needs to exist.

    Args:
        staging: relative folder for files that are being written to a disk; a bucket needs none.
    """
    place = as_place(place)
    return ObjectStorage(place) if isinstance(place, StoreURL) else PosixStorage(place, staging)
