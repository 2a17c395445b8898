"""Batches prepared in a thread while the model works on an earlier one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

PREFETCHED_BATCHES = 2


class BatchLoader:
    """Gives parts of batches in order; prepares the next ones meanwhile."""

    def __init__(
        self,
        make: Callable[[int, range], dict[str, Tensor]],
        parts: Iterator[tuple[int, range]],
        device: torch.device,
    ) -> None:
        """
        Args:
            make: rows of the batch of a step, on the CPU; called in the thread.
            parts: step and rows of every part to come.
        """
        self._make, self._parts, self._device = make, parts, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lvt-batches")
        self._queue: deque[Future[dict[str, Tensor]]] = deque()

    def __enter__(self) -> BatchLoader:
        for _ in range(PREFETCHED_BATCHES):
            self._request()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _request(self) -> None:
        part = next(self._parts, None)
        if part is not None:
            self._queue.append(self._thread.submit(self._load, *part))

    def _load(self, step: int, rows: range) -> dict[str, Tensor]:
        batch = self._make(step, rows)
        return {name: value.pin_memory() for name, value in batch.items()} if self._device.type == "cuda" else batch

    def next(self) -> tuple[dict[str, Tensor], float]:
        """The next part on the device, and the seconds spent waiting for it."""
        start = time.perf_counter()
        batch = self._queue.popleft().result()
        waited = time.perf_counter() - start
        self._request()
        return {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}, waited
