"""How bytes reach a disk or a bucket and come back: written whole or not at all, and read without surprises.

`files` writes and locks files on a disk, `texts` reads text formats, `names` makes file names. `protocol` describes a
storage, of which there are two: `posix` and `objects`.
"""

from __future__ import annotations

from lvt_pipeline.storage.files import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
from lvt_pipeline.storage.files import atomic_directory as atomic_directory
from lvt_pipeline.storage.files import atomic_writer as atomic_writer
from lvt_pipeline.storage.files import describe_os_error as describe_os_error
from lvt_pipeline.storage.files import exclusive_lock as exclusive_lock
from lvt_pipeline.storage.files import is_locked as is_locked
from lvt_pipeline.storage.files import json_bytes as json_bytes
from lvt_pipeline.storage.files import remove_leftovers as remove_leftovers
from lvt_pipeline.storage.files import write_bytes as write_bytes
from lvt_pipeline.storage.files import write_json as write_json
from lvt_pipeline.storage.names import clip_file as clip_file
from lvt_pipeline.storage.names import has_line_break as has_line_break
from lvt_pipeline.storage.names import printable as printable
from lvt_pipeline.storage.names import shortened_name as shortened_name
from lvt_pipeline.storage.objects import ObjectStorage
from lvt_pipeline.storage.places import Place as Place
from lvt_pipeline.storage.places import StoreURL as StoreURL
from lvt_pipeline.storage.places import as_place as as_place
from lvt_pipeline.storage.places import cache_of as cache_of
from lvt_pipeline.storage.places import require_local as require_local
from lvt_pipeline.storage.posix import PosixStorage
from lvt_pipeline.storage.protocol import Entry as Entry
from lvt_pipeline.storage.protocol import Storage as Storage
from lvt_pipeline.storage.protocol import Stored as Stored
from lvt_pipeline.storage.texts import decode_text as decode_text
from lvt_pipeline.storage.texts import json_log as json_log
from lvt_pipeline.storage.texts import numbered_lines as numbered_lines
from lvt_pipeline.storage.texts import open_regular as open_regular
from lvt_pipeline.storage.texts import parse_json as parse_json
from lvt_pipeline.storage.texts import parse_json_lines as parse_json_lines
from lvt_pipeline.storage.texts import read_json as read_json
from lvt_pipeline.storage.texts import read_json_lines as read_json_lines
from lvt_pipeline.storage.texts import read_text as read_text
from lvt_pipeline.storage.texts import read_toml as read_toml


def open_storage(place: Place | str, staging: str = "") -> Storage:
    """The storage in a folder or behind a URL; neither needs to exist.

    Args:
        staging: relative folder for files that are being written to a disk; a bucket needs none.
    """
    place = as_place(place)
    return ObjectStorage(place) if isinstance(place, StoreURL) else PosixStorage(place, staging)
