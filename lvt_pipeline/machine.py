"""Python's own bookkeeping of memory, kept out of the way of large tables."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """No search for reference cycles while the block (or the decorated function) runs.

    A table of a million clips is some millions of objects that all stay. While they are made, every search would walk
    through all that are there and free nothing, which takes longer than making them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
