"""How many CPU threads torch computes with, and how they wait: as suits the work, and as other programs leave.

A parallel loop of torch ends when its last thread does, and they wait in busy loops. So threads that have next to
nothing to do cost more than they bring, and one thread that another program keeps from running stops all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import TracebackType

import torch
from torch import nn

from lvt_pipeline import machine

# One more thread pays for each of these shares of the largest matrix product, in seconds of one thread. Both speeds are
# typical of a core; see "Threads" in docs/benchmarks.md.
SECONDS_PER_THREAD = 50e-6
FLOPS_PER_SECOND, BYTES_PER_SECOND = 1e11, 1e10
LOOK_SECONDS = 0.1  # the kernel counts processor time in hundredths of a second
WATCH_SECONDS = 0.5
NOTICED_LOAD = 0.1  # cores that other programs take: as little makes long waits expensive
ELEMENTS_PER_THREAD = 1 << 15  # from which torch gives a sum one more thread
POSITIONS = 256  # of a frame or a slice of codes, as in the paper: rows of a product for each item of a batch


def product_seconds(model: nn.Module, items: int) -> float:
    """Roughly the seconds of one thread for the model's largest product on a batch of frames or slices."""
    sizes = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d))
    ]
    return 2 * max(sizes, default=0) * items * POSITIONS / FLOPS_PER_SECOND


class Threads:
    """Sets torch's number of threads inside a `with` block.

    It is at most the number that was set before (by `torch.set_num_threads`, `OMP_NUM_THREADS` or a data loader) and at
    most this process's share of the cores. A number that was asked for with `machine.use_threads` is taken as it is.

    Args:
        seconds: of one thread, for the largest matrix product of the work.
        leaves_room: begin with one thread; `leave_room` then takes as many as other programs leave cores.
    """

    def __init__(self, seconds: float, *, leaves_room: bool = False) -> None:
        self._before = torch.get_num_threads()
        chosen = machine.chosen_threads()
        self._leaves_room = leaves_room and chosen is None
        useful = max(1, min(self._before, machine.own_cores(), int(seconds / SECONDS_PER_THREAD)))
        self._most = useful if chosen is None else chosen
        self._load = machine.OtherLoad()
        self._looked = time.monotonic()

    def __enter__(self) -> Threads:
        torch.set_num_threads(1 if self._leaves_room else self._most)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.set_num_threads(self._before)

    def leave_room(self) -> None:
        """Take no more threads than other programs have left cores since the last look.

        For work whose results do not depend on the number of threads.
        """
        if not self._leaves_room or self._most == 1 or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        torch.set_num_threads(max(1, min(self._most, round(self._load.free_cores()))))


@contextmanager
def waits_that_leave_room() -> Iterator[None]:
    """`short_waits` whenever other programs leave fewer cores than torch has threads; for work of some minutes."""
    end = threading.Event()
    with ThreadPoolExecutor(1, "lvt-waits") as watch:
        watch.submit(_watch, torch.get_num_threads(), end)
        try:
            yield
        finally:
            end.set()


def _watch(threads: int, end: threading.Event) -> None:
    load, is_short = machine.OtherLoad(), threads > 1
    while not end.is_set():
        with short_waits() if is_short else nullcontext():
            while not end.wait(WATCH_SECONDS) and is_short == (load.free_cores() < threads - NOTICED_LOAD):
                pass
        is_short = not is_short


@contextmanager
def short_waits() -> Iterator[None]:
    """Let torch's threads wait for microseconds only before they sleep. Neither their number nor a result changes.

    GNU OpenMP shortens its busy loops while it has more threads than there are cores (its manual, `GOMP_SPINCOUNT`).
    So a further Python thread starts that many, which then sleep. Another OpenMP is left as it is.
    """
    with ThreadPoolExecutor(1, "lvt-waits") as holder:
        holder.submit(_start_threads, machine.all_cores()).result()
        yield


def _start_threads(count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    torch.zeros(count * ELEMENTS_PER_THREAD).add_(1)
    torch.set_num_threads(before)  # of Python threads to come
