"""What a training watches while it runs: averages, speed and memory for its log, its breakdown, its codebooks.

A training has broken down when a number of a step is not finite, or when its loss explodes: the moving average of the
loss (over about `SMOOTHED_STEPS` steps) exceeds `explosion_factor` times the lowest value that it has had since the
first `SMOOTHED_STEPS` steps. Single bad batches do not count; a run that has lost everything it had learned does.

A codebook has collapsed when validation frames use less than a tenth of the codes they could use. Usage decides, not
perplexity: pictures with much empty background have a low perplexity however healthy their codebook is, but no healthy
codebook leaves nine of ten codes unused. Codebooks are judged once they have settled: the reference start brings most
of its codes back only when the moving averages have forgotten it.
"""

from __future__ import annotations

import math
import resource
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from lvt_pipeline.codes.usage import perplexity
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.runs.layout import BREAKDOWN_NAME
from lvt_pipeline.storage import atomic_directory, write_json

SMOOTHED_STEPS = 50
COLLAPSED_USAGE = 0.1


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


def first_not_finite(numbers: Mapping[str, Any]) -> str:
    """The first metric that is not finite, such as "loss is nan", "" when all are."""
    for name, value in numbers.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                return f"{name} is {number}"
    return ""


@dataclass
class LossWatch:
    """Recognises an explosion of the loss. Its numbers are part of a checkpoint.

    Attributes:
        factor: see `TrainingSettings.explosion_factor`.
        average: moving average of the loss.
        lowest: the least that the average has been, None before it has settled.
        steps: number of losses so far.
    """

    factor: float | None
    average: float = 0.0
    lowest: float | None = None
    steps: int = 0

    def add(self, loss: float) -> str:
        """Take the loss of a step; returns the problem, "" when there is none."""
        self.steps += 1
        # A plain mean at first, then an exponential one.
        self.average += (loss - self.average) / min(self.steps, SMOOTHED_STEPS)
        if self.factor is None or self.steps < SMOOTHED_STEPS:
            return ""
        if self.lowest is None or self.average < self.lowest:
            self.lowest = self.average
        # A loss near or below 0 has no meaningful ratio.
        if self.lowest <= 0 or self.average <= self.factor * self.lowest:
            return ""
        return (
            f"the loss has exploded (its average over {SMOOTHED_STEPS} steps is {self.average:.4g}, "
            f"and was {self.lowest:.4g})"
        )

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        state = asdict(self)
        del state["factor"]
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the numbers of `state`."""
        self.average, self.lowest, self.steps = state["average"], state["lowest"], state["steps"]


def keep_breakdown(
    run: Path, facts: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]], batch: Mapping[str, Tensor]
) -> Path:
    """Write the weights and the batch of a breakdown into `run/breakdown`.

    Args:
        facts: plain data: "what", "step" (whose batch is kept), "weights_after_step", "clips" (of the whole batch).
        weights: tensors by name for each weights file.
        batch: the rows of the whole batch, by name.
    """
    path = run / BREAKDOWN_NAME
    shutil.rmtree(path, ignore_errors=True)
    with atomic_directory(path) as folder:
        for name, tensors in weights.items():
            # Copies, since tied weights share memory, which a file cannot.
            copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
            save_file(copies, folder / name)
        save_file({key: value.contiguous() for key, value in batch.items()}, folder / "batch.safetensors")
        write_json(folder / "breakdown.json", facts)
    return path


def collapsed_codebooks(occurrences: NDArray[np.int64]) -> list[int]:
    """Which codebooks use a single code, or less than a tenth of those they could use.

    Args:
        occurrences: int64 (n_c, K), how often each code occurs. A row of N positions can use min(K, N) codes.
    """
    result = []
    for book, row in enumerate(occurrences):
        usable = min(len(row), int(row.sum()))
        used = int((row > 0).sum())
        if usable > 1 and (used == 1 or used < COLLAPSED_USAGE * usable):
            result.append(book)
    return result


class CodebookWatch:
    """Reports when the codebooks of one training collapse or recover: once per codebook and change."""

    def __init__(self, config: VQVAEConfig, progress: Progress = SILENT) -> None:
        self._config = config
        self._progress = progress
        self._collapsed: set[int] = set()

    def remember(self, collapsed: Iterable[int]) -> None:
        """Take over the codebooks that were reported before the training was interrupted."""
        self._collapsed = set(collapsed)

    def look(self, occurrences: NDArray[np.int64], is_settled: bool) -> list[int]:
        """Collapsed codebooks, in order; changes are reported.

        Args:
            occurrences: int64 (n_c, K), over the validation frames.
            is_settled: whether the codebooks have trained long enough to be judged.
        """
        found = collapsed_codebooks(occurrences) if is_settled else []
        perplexities = perplexity(occurrences)
        for book, row in enumerate(occurrences):
            state = f"{int((row > 0).sum())} of {len(row)} codes used, perplexity {perplexities[book]:.1f}"
            if book in found and book not in self._collapsed:
                self._progress.say(f"codebook {book} has collapsed ({state}); {_advice(self._config)}")
            elif book not in found and book in self._collapsed:
                self._progress.say(f"codebook {book} is in use again ({state})")
        self._collapsed = set(found)
        return found


def _advice(config: VQVAEConfig) -> str:
    """A remedy in words; it names only settings that are not in use yet."""
    if config.quantizer == "fsq":
        return "these frames need fewer model.fsq_levels, or the training a lower training.learning_rate"
    choices = []
    if config.codebook_init != "kmeans":
        choices.append('model.codebook_init="kmeans"')
        if config.ema_init != "consistent":
            choices.append('model.ema_init="consistent"')
    if config.dead_code != "resample":
        choices.append('model.dead_code="resample"')
    choices.append('model.quantizer="fsq"')
    return f"train a new run with {' or '.join(choices)}, or with a smaller model.codebook_size"
