"""What a line of a training's log says about the steps since the line before: averages, speed, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the GPU if it has one, of the host otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Averages:
    """Averages of the metrics since the last line of the log."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def means(self) -> dict[str, float]:
        return {name: total / self.steps for name, total in self.sums.items()}


class Clock:
    """Wall time of the training steps since the last line of the log, and how much of it went into waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()
        self.elsewhere = 0.0
        self.waiting = 0.0
        self.steps = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block is not training."""
        start = time.perf_counter()
        yield
        self.elsewhere += time.perf_counter() - start

    def facts(self, units_per_step: Mapping[str, int]) -> dict[str, float]:
        training = max(time.perf_counter() - self.start - self.elsewhere, 1e-9)
        rate = self.steps / training
        return {
            "steps_per_second": round(rate, 4),
            **{f"{unit}_per_second": round(rate * count, 1) for unit, count in units_per_step.items()},
            "data_wait_share": round(min(1.0, self.waiting / training), 4),
        }
