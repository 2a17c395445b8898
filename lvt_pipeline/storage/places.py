"""Where outputs are: a path of this machine, or a URL of an object store."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from lvt_pipeline.errors import LVTError

_URL = re.compile(r"(s3|gs|az):/{1,2}[^/]")  # pathlib makes one slash of two


class StoreURL(PurePosixPath):
    """A folder or file in a bucket, such as s3://bucket/data.zarr: as a path, but nothing of it is on this machine."""

    __slots__ = ()

    def __str__(self) -> str:
        return re.sub(r"^(s3|gs|az):/", r"\1://", super().__str__())

    def absolute(self) -> StoreURL:
        """Itself: a URL depends on no working directory."""
        return self

    @property
    def bucket(self) -> str:
        """Name of the bucket, or of the container."""
        return self.parts[1]


Place: TypeAlias = Path | StoreURL


def cache_of(url: StoreURL) -> Path:
    """The folder on this machine for copies of what is behind a URL. Deleting it is always safe."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lvt" / f"{url.name}-{hashlib.sha256(str(url).encode()).hexdigest()[:12]}.cache"


def require_local(place: Place, what: str) -> Path:
    """The path of something that has to be on this machine.

    Args:
        what: it in words, such as "a frame folder".

    Raises:
        LVTError: it is a URL.
    """
    if isinstance(place, StoreURL):
        raise LVTError(f"{place} is a URL; {what} has to be on this machine")
    return place


def as_place(place: Place | str) -> Place:
    """A text or a path as the place that it names; a `Path` made from a URL is that URL."""
    if isinstance(place, StoreURL):
        return place
    return StoreURL(place) if _URL.match(str(place)) else Path(place)
