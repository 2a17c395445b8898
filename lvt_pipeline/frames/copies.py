"""Frame shards of a folder in a bucket are read through copies on this machine, each made when it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.receipts import staged_tar
from lvt_pipeline.storage import Place, StoreURL, cache_of, open_storage, write_bytes

_copying = threading.Lock()


def local_shard(root: Place, name: str, digest: str, *, is_fresh: bool = False) -> Path:
    """The tar of a shard on this machine.

    Args:
        root: the folder of frames.
        digest: SHA-256 of the tar; a copy is named after it.
        is_fresh: an earlier copy is made again.

    Raises:
        ArtefactError: the shard is missing.
    """
    if not isinstance(root, StoreURL):
        return root / name
    copy = staged_tar(cache_of(root), name, digest)
    with _copying:
        if is_fresh or not copy.exists():
            found = open_storage(root).read(name)
            if found is None:
                raise ArtefactError(f"{root / name} is missing; run `lvt ingest` again and copy the folder")
            write_bytes(copy, found.data)
    return copy
