"""Frame shards of a folder in a bucket are read through copies on this machine, each made when it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.receipts import staged_name
from lvt_pipeline.frames.records import NEXT_NAME
from lvt_pipeline.storage import Place, StoreURL, cache_of, open_storage, write_bytes

_copying = threading.Lock()


class Tar(NamedTuple):
    """Where the tar of a shard is, and its SHA-256."""

    place: Place
    digest: str


def local_shard(place: Place, digest: str, *, is_fresh: bool = False) -> Path:
    """The tar of a shard on this machine.

    Args:
        place: the tar, in a folder of frames or waiting there to be published.
        digest: its SHA-256; a copy is named after it.
        is_fresh: an earlier copy is made again.

    Raises:
        ArtefactError: the shard is missing.
    """
    if not isinstance(place, StoreURL):
        return place
    root = place.parents[2] if place.parents[1].name == NEXT_NAME else place.parent
    copy = cache_of(root) / staged_name(place.name.partition(".")[0], digest)
    with _copying:
        if is_fresh or not copy.exists():
            found = open_storage(place.parent).read(place.name)
            if found is None:
                raise ArtefactError(f"{place} is missing; run `lvt ingest` again")
            write_bytes(copy, found.data)
    return copy
