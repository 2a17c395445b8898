"""The frames of a code array on disk: missing and damaged shards are named, and never read as codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.layout import as_one_line, numbers_as_text, read_root
from lvt_pipeline.codes.schema import CodeSchema, shard_name
from lvt_pipeline.codes.shard_file import read_chunks, read_frames
from lvt_pipeline.errors import LVTError, StoreError
from lvt_pipeline.storage import describe_os_error


class CodeArray:
    """The frames of a store's code array; damage is never read as codes. Reading is thread-safe.

    Args:
        path: the store.
        schema: what its codes look like.
        sizes: bytes of each shard by name, where known.
        generation: that is read, None while it is being written.
    """

    def __init__(self, path: Path, schema: CodeSchema, sizes: Mapping[str, int], generation: int | None = None) -> None:
        self.path = path
        self._schema = schema
        self._sizes = sizes
        self._generation = generation
        self._checked: set[int] = set()

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        """Frames [start, stop), (stop - start, h, w, n_c).

        Raises:
            StoreError: a shard is missing or damaged; it is named.
            LVTError: the operating system refused, or there is not enough memory.
        """
        if start == stop:
            return np.empty((0, *self._schema.frame_shape), self._schema.dtype)
        size = self._schema.shard_frames
        shards = range(start // size, (stop - 1) // size + 1)
        for index in shards:
            self._require_shard(index)
        try:
            return self._read(start, stop)
        except MemoryError:
            raise LVTError(
                f"{stop - start} frames of {self.path} do not fit into memory; read fewer at a time"
            ) from None
        except (StoreError, OSError):
            for index in shards:  # find the shard, to name it
                try:
                    self._read(max(start, index * size), min(stop, (index + 1) * size))
                except (StoreError, OSError) as error:
                    raise self._error(index, error) from error
            raise

    def read_chunks(self, index: int, numbers: Sequence[int]) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
        """Some chunks of a shard, each in the memory of the one before. See `shard_file.read_chunks`.

        Raises:
            StoreError: the shard is missing or damaged; it is named.
            LVTError: the operating system refused.
        """
        self._require_shard(index)
        try:
            yield from read_chunks(self.path / shard_name(index), self._schema, numbers)
        except (StoreError, OSError) as error:
            raise self._error(index, error) from error

    def problem(self, index: int) -> str:
        """The problem of a shard's file as far as its size shows, empty when there is none.

        Raises:
            LVTError: the operating system refused.
        """
        name = shard_name(index)
        try:
            size = (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except OSError as error:
            raise describe_os_error(error, f"reading {self.path / name}") from error
        expected = self._sizes.get(name, size)
        return "" if size == expected else f"is damaged ({size} bytes where {expected} were written)"

    def _require_shard(self, index: int) -> None:
        # A missing shard is an error here, not zeros as for zarr: zeros are codes like any other.
        if index in self._checked:
            return
        problem = self.problem(index)
        if problem:
            self._require_generation()
            raise StoreError(
                f"{self.path / shard_name(index)} {problem}; run the command that made the store again to restore it"
            )
        self._checked.add(index)

    def _require_generation(self) -> None:
        """Report a generation that was removed while it was read."""
        root = read_root(self.path)
        if root is not None and self._generation is not None and self._generation not in root.numbers:
            raise StoreError(
                f"generation {self._generation} of {self.path} was removed by lvt gc while it was being read; run the "
                f"same command again, which reads {numbers_as_text(root.numbers)}"
            )

    def _error(self, index: int, error: Exception) -> LVTError:
        file = self.path / shard_name(index)
        if isinstance(error, FileNotFoundError):
            self._require_generation()
            return StoreError(f"{file} is missing; run the command that made the store again to restore it")
        if isinstance(error, OSError):
            return describe_os_error(error, f"reading {file}")
        return StoreError(
            f"{file} is damaged ({as_one_line(error)}); delete this file and run the command that made the store again"
        )

    def _read(self, start: int, stop: int) -> NDArray[np.unsignedinteger[Any]]:
        return read_frames(lambda index: self.path / shard_name(index), self._schema, start, stop)
