"""Memory and time of a training, measured on one step of the real model and optimizer, writing nothing.

On a GPU a step has the configured micro-batch, and its activations are the peak that the allocator saw beyond weights,
gradients and optimizer state. On a CPU the first has at most two samples; activations are the tensors that autograd
keeps for the backward pass, scaled up to the micro-batch. Where that fits into memory and is quick enough, whole
micro-batches are timed, elsewhere two samples, whose time is scaled up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lvt_pipeline.machine import available_memory
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.training.settings import TrainingSettings
from lvt_pipeline.training.sharding import checkpoint_activations
from lvt_pipeline.training.stepping import make_optimizer
from lvt_pipeline.training.task import StepLoss

CPU_BATCH_SIZE = 2  # a CPU tries this first: a paper-size batch would not fit into the memory of a laptop
CPU_SECONDS = 5.0  # on a CPU, a micro-batch that takes longer than this is not tried
TIMED_STEPS = 3
PART_NAMES = {"quantizer": "codebook"}


def count_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a model. Codebooks count although they follow averages instead of gradients."""
    return {name: num_parameters(part) for name, part in model.named_children()}


def size_of(model: nn.Module, settings: TrainingSettings) -> dict[str, Any]:
    """Parameters of a model, as a whole and by part, and samples of a batch, for the facts of a dry run."""
    parts = {PART_NAMES.get(name, name): count for name, count in count_by_part(model).items()}
    return {"parameters": sum(parts.values()), "parameters_by_part": parts, "batch_size": settings.batch_size}


def measure_step(
    model: nn.Module,
    settings: TrainingSettings,
    make_batch: Callable[[int], Mapping[str, Tensor]],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], StepLoss],
    device: torch.device,
) -> dict[str, Any]:
    """Take one step to warm up and a few to be timed, of which the quickest counts.

    Args:
        make_batch: data for a number of samples.

    Returns:
        "measured_batch_size", "step_seconds" (one whole step with all its micro-batches), "steps_per_second",
        "max_steps", "total_seconds" (of all of them, without evaluations), "memory_bytes" and "memory_bytes_by_part":
        weights (with buffers and their moving average), gradients, optimizer, activations.
    """
    trial = _Trial(model, settings, loss, device)
    micro_batch_size = settings.batch_size // settings.gradient_accumulation_steps
    first = measured = micro_batch_size if device.type == "cuda" else min(micro_batch_size, CPU_BATCH_SIZE)
    batch = {name: value.to(device) for name, value in make_batch(first).items()}
    kept_bytes = trial.take_step(batch, is_watched=True) * micro_batch_size // first
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    elif first < micro_batch_size and trial.can_take(micro_batch_size / first, batch, kept_bytes):
        measured, batch = micro_batch_size, dict(make_batch(micro_batch_size))
    seconds = min(trial.seconds_of_step(batch) for _ in range(TIMED_STEPS))
    parts = trial.bytes_by_part(kept_bytes)
    step_seconds = seconds * settings.batch_size / measured
    return {
        "measured_batch_size": measured,
        "step_seconds": step_seconds,
        "steps_per_second": 1 / step_seconds,
        "max_steps": settings.max_steps,
        "total_seconds": step_seconds * settings.max_steps,
        "memory_bytes": sum(parts.values()),
        "memory_bytes_by_part": parts,
        "device": str(device),
    }


class _Trial:
    """A model that takes steps to be measured."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        loss: Callable[[nn.Module, Mapping[str, Tensor]], StepLoss],
        device: torch.device,
    ) -> None:
        self.model, self.settings, self.loss, self.device = model, settings, loss, device
        self.optimizer = make_optimizer(model, settings)
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        model.train()

    def take_step(self, batch: Mapping[str, Tensor], *, is_watched: bool = False) -> int:
        """One optimizer step; returns the bytes that autograd kept for it, without the weights, if it is watched."""
        own = (*self.model.parameters(), *self.model.buffers(), *batch.values())
        own_storage = {value.untyped_storage().data_ptr() for value in own}
        kept: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own_storage:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        watching = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value) if is_watched else nullcontext()
        is_half = self.settings.precision == "bfloat16"
        with watching, torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
            result = self.loss(self.model, batch)
        assert result.loss is not None
        result.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sum(kept.values())

    def seconds_of_step(self, batch: Mapping[str, Tensor]) -> float:
        """Wall time of one step."""
        start = time.perf_counter()
        self.take_step(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def can_take(self, times: float, batch: Mapping[str, Tensor], kept_bytes: int) -> bool:
        """Whether a batch this many times as large fits into memory, with `kept_bytes`, and is quick enough."""
        return kept_bytes < available_memory() // 2 and self.seconds_of_step(batch) * times < CPU_SECONDS

    def bytes_by_part(self, kept_bytes: int) -> dict[str, int]:
        """Memory after some steps.

        Args:
            kept_bytes: activations of a micro-batch, for devices without an allocator that counts them.
        """
        weights = sum(_bytes(value) for value in (*self.model.parameters(), *self.model.buffers()))
        gradients = sum(_bytes(value) for value in self.model.parameters() if value.requires_grad)
        states = (value for state in self.optimizer.state.values() for value in state.values())
        optimizer = sum(_bytes(value) for value in states if isinstance(value, Tensor))
        if self.device.type == "cuda":
            kept_bytes = max(0, torch.cuda.max_memory_allocated(self.device) - weights - gradients - optimizer)
        averages = weights if self.settings.ema_decay is not None else 0
        return {
            "weights": weights + averages,
            "gradients": gradients,
            "optimizer": optimizer,
            "activations": kept_bytes,
        }


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
