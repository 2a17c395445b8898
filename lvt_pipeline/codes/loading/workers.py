"""Batches from the worker processes of torch's `DataLoader`, through memory that worker and receiver keep.

torch sends every tensor in fresh shared memory, which costs the receiver more than a gather of the same windows. Here
each worker writes into a few places that are shared from the start, and sends the number of a place. Codes go there as
narrow as they are stored; the receiver makes int64 of them.

No place is written again too early: torch asks a worker for at most `prefetch_factor` batches that it has not received.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

# Codes of windows by index, in the dtype of the store and perhaps in given memory, and side arrays.
Read = Callable[[Sequence[int], NDArray[Any] | None], dict[str, Tensor]]


class WindowLoader(DataLoader[Any]):
    """A `DataLoader` that gives whole batches of windows: int64 codes, or a dict of them and of side arrays."""

    def __init__(
        self, read: Read, count: int, shape: tuple[int, ...], dtype: DTypeLike, batch_size: int, **options: Any
    ) -> None:
        """Over `count` windows, each of which has this shape and dtype in the store."""
        self._maker = _BatchMaker(read, shape, np.dtype(dtype))
        super().__init__(cast("Dataset[Any]", range(count)), batch_size, collate_fn=self._maker, **options)

    def __iter__(self) -> Any:
        """As `DataLoader`. Workers that it starts have memory of their own, so that several loops may run at once."""
        largest = self.batch_size or getattr(self.batch_sampler, "batch_size", 0)
        keeps_workers = self.persistent_workers and self.collate_fn is not self._maker
        if self.num_workers and largest and not keeps_workers:
            self.collate_fn = self._maker  # lets the memory of the loop before go
            size = largest * math.prod(self._maker.shape) * self._maker.dtype.itemsize
            shared = _SharedPlaces(self.num_workers, cast(int, self.prefetch_factor), size)
            self.collate_fn = replace(self._maker, shared=shared)
        return super().__iter__()


class _SharedPlaces:
    """Memory that the receiver shares with its workers, each of which has `places` places of `size` bytes."""

    keys = itertools.count()

    def __init__(self, num_workers: int, places: int, size: int) -> None:
        self.key = next(self.keys)
        self._places, self._size, self._batches = places, size, 0
        self._memory = RawArray("B", num_workers * places * size)
        _OPEN[self.key] = self

    def next(self, worker: int) -> int:
        """The place of the worker's next batch."""
        self._batches += 1
        return worker * self._places + self._batches % self._places

    def array(self, place: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """An array in a place; None if the place is too small for it."""
        count = math.prod(shape)
        if count * dtype.itemsize > self._size:
            return None
        return np.frombuffer(self._memory, dtype, count, place * self._size).reshape(shape)


_OPEN: WeakValueDictionary[int, _SharedPlaces] = WeakValueDictionary()


@dataclass(frozen=True)
class _BatchMaker:
    """Makes a batch in a worker, or in this process."""

    read: Read
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shared: _SharedPlaces | None = None

    def __call__(self, indices: Sequence[int]) -> Any:
        worker = get_worker_info()
        if worker is None:
            return widened(self.read(indices, None))
        codes = place = None
        if self.shared is not None:
            place = self.shared.next(worker.id)
            codes = self.shared.array(place, (len(indices), *self.shape), self.dtype)
        arrays = self.read(indices, codes)
        if self.shared is None or codes is None:
            return _Sent(widened, (arrays,))
        side = {name: rows for name, rows in arrays.items() if name != "codes"}
        return _Sent(_fetched, (self.shared.key, place, codes.shape, self.dtype, side))


class _Sent(NamedTuple):
    """Becomes a batch in the process that receives it."""

    receive: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple(self)


def _fetched(key: int, place: int, shape: tuple[int, ...], dtype: np.dtype[Any], side: dict[str, Tensor]) -> Any:
    codes = _OPEN[key].array(place, shape, dtype)
    assert codes is not None
    return widened({"codes": torch.from_numpy(codes), **side})


def widened(arrays: Mapping[str, Tensor]) -> Any:
    """Windows with codes as int64; codes alone where there are no side arrays."""
    codes = torch.from_numpy(arrays["codes"].numpy().astype(np.int64))  # NumPy asks for huge pages, torch does not
    return {**arrays, "codes": codes} if len(arrays) > 1 else codes
