"""The interface between a training loop and a network; everything random comes from (seed, step).

The loop reseeds torch before every step, and a task makes its batches from (seed, step) alone. So a run that resumes
needs no random state, and 2N steps equal N steps, a resume, and N steps, bit for bit on a CPU (same number of threads).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class StepLoss(NamedTuple):
    """The loss of one part of a batch.

    Attributes:
        loss: scalar mean to minimise; None when the part holds nothing to learn from.
        weight: number of items the mean is over, so that parts add up to the mean over the whole batch.
        metrics: further scalar means over the same items, named as in `Task.metric_names`.
    """

    loss: Tensor | None
    weight: float
    metrics: Mapping[str, Tensor]


class Task(Protocol):
    """A model to train, and its data.

    Attributes:
        model: on the device it is trained on, or on the CPU if it is to be sharded.
        metric_names: what `loss` reports in addition to the loss.
        unit: the unit of speed, such as "codes".
        units_per_step: units in a whole step.
        row_unit: the unit of one row of a batch, such as "windows".
        score: the evaluation metric that decides which checkpoint is best; lower is better.
    """

    model: nn.Module
    metric_names: tuple[str, ...]
    unit: str
    units_per_step: int
    row_unit: str
    score: str

    def batch(self, step: int, rows: range) -> dict[str, Tensor]:
        """Rows of the batch of a step (counted from 1), on the CPU. Depends on the step alone; called in a thread."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepLoss:
        """Loss of some rows, already on the device."""

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Validation metrics as plain data, {} when there is nothing to validate on. The model is in eval mode."""

    def remember(self, evaluation: Mapping[str, Any]) -> None:
        """Take over the last evaluation from before the training was interrupted."""

    def picture(self, model: nn.Module) -> NDArray[np.uint8] | None:
        """A picture of the model's present output, uint8 (H, W, 3), or None. The model is in eval mode.

        Raises:
            NotFiniteError: the predictions of the model are not finite.
        """

    def batch_clips(self, step: int) -> list[str]:
        """Ids of the clips in the batch of a step, for error messages."""


def step_seed(seed: int, step: int) -> int:
    """A number below 2**63 for everything random in a step; steps and seeds do not resemble each other."""
    digest = hashlib.sha256(f"lvt step {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block with torch's generators set by `seed`, and give the caller's random state back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def determinism(is_wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits every time; torch raises where it has none."""
    if not is_wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it before its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        steps: steps taken, over all sessions of the run.
        seconds: wall time of those, in seconds.
        evaluation: metrics of the last evaluation, {} when there was nothing to validate on.
        weights: tensors by name for each weights file; of a sharded model on the CPU, and in rank 0 only.
        is_early: whether `patience` ended it before `max_steps`.
    """

    steps: int
    seconds: float
    evaluation: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    is_early: bool = False

    def counts(self) -> dict[str, Any]:
        """Facts for the record of a run."""
        return {"steps": self.steps, **({"stopped_early": True} if self.is_early else {})}
